//! The peer: PyTorch, found or installed into a virtual environment of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Variant;

const SCRIPT: &str = include_str!("../../peers/torch_train.py");

/// A Python with PyTorch.
#[derive(Clone, Debug)]
pub struct Torch {
    python: PathBuf,
}

/// The given Python, or that of our virtual environment, which is made and filled where there is none.
///
/// # Errors
/// No Python, no PyTorch in the given one, or one that cannot be installed.
pub fn find(python: Option<&Path>) -> Result<Torch> {
    if let Some(python) = python {
        ensure!(
            has_torch(python),
            "--python {}: expected a Python with PyTorch (import torch failed)",
            python.display()
        );
        return Ok(Torch { python: python.to_owned() });
    }
    let folder = cache_folder()?.join("torch-peer");
    let python = folder.join("bin/python");
    if !has_torch(&python) {
        eprintln!("installing PyTorch into {} (once; some 5 GB)", folder.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder), "python3 -m venv")?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "torch", "numpy"];
        run(Command::new(&python).args(pip), "pip install torch")?;
        ensure!(has_torch(&python), "{}: PyTorch was installed but cannot be imported", python.display());
    }
    Ok(Torch { python })
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

fn has_torch(python: &Path) -> bool {
    let import = Command::new(python).args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    import.is_ok_and(|status| status.success())
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("{what}: cannot start"))?;
    ensure!(status.success(), "{what} failed ({status}); or give --python a Python that has PyTorch");
    Ok(())
}

/// `$XDG_CACHE_HOME/multicoder`, or below `~/.cache`.
fn cache_folder() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set: no place for PyTorch; give --python")?.join("multicoder"))
}
