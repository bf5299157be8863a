//! The peer: PyTorch, found or installed into a virtual environment of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use multicoder_peers::{Peer, cache_folder};

use super::Variant;

const SCRIPT: &str = include_str!("../../peers/torch_train.py");

/// A Python with PyTorch.
#[derive(Clone, Debug)]
pub struct Torch {
    python: PathBuf,
}

const PEER: Peer = Peer { name: "PyTorch", module: "torch", packages: &["torch", "numpy"], size: "some 5 GB" };

/// The given Python, or one in an environment of its own.
///
/// # Errors
/// No Python, no PyTorch in the given one, or one that cannot be installed.
pub fn find(python: Option<&Path>) -> Result<Torch> {
    Ok(Torch { python: PEER.python(python)? })
}

impl Torch {
    /// A Python that is never started.
    #[cfg(test)]
    pub(crate) fn at(python: &str) -> Torch {
        Torch { python: python.into() }
    }

    /// A process that measures the model of `variant`.
    pub(super) fn command(&self, variant: &Variant, mode: &str, steps: usize, threads: usize) -> Result<Command> {
        let config = &variant.config;
        let folder = cache_folder()?.join("bench");
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let (script, model) =
            (folder.join("torch_train.py"), folder.join(format!("model-{}.json", std::process::id())));
        std::fs::write(&script, SCRIPT).with_context(|| script.display().to_string())?;
        std::fs::write(&model, serde_json::to_vec(&config.model)?).with_context(|| model.display().to_string())?;
        let mut command = Command::new(&self.python);
        command.arg(&script).arg("--model").arg(&model);
        command.args(["--mode", mode, "--dtype", variant.compute.name(), "--device", variant.device.name()]);
        let numbers = [
            ("--batch", config.micro_batch_sequences()),
            ("--sequence", config.data.sequence_tokens),
            ("--steps", steps),
            ("--threads", threads),
        ];
        for (name, value) in numbers {
            command.args([name, &value.to_string()]);
        }
        command.env("OMP_NUM_THREADS", threads.to_string());
        Ok(command)
    }
}
