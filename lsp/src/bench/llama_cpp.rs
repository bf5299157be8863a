//! llama.cpp, in a Python process that answers line by line.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::subject::Exported;
use super::{Answer, Program, Request};

const SCRIPT: &str = include_str!("../../peers/llama_cpp.py");

/// Ends when it is dropped.
pub(super) struct LlamaCpp {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(super) version: String,
}

#[derive(Deserialize)]
struct Hello {
    version: String,
}

impl LlamaCpp {
    /// With the exported weights, so many threads and room for `context` tokens.
    pub(super) fn start(python: &Path, model: Option<&Exported>, threads: usize, context: usize) -> Result<LlamaCpp> {
        let model = model.context("no exported model")?;
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT, "--model"]).arg(&model.path);
        command.args(["--threads", &threads.to_string(), "--context", &context.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("llama.cpp")?;
        let input = child.stdin.take().context("standard input of llama.cpp")?;
        let output = BufReader::new(child.stdout.take().context("standard output of llama.cpp")?);
        let mut peer = LlamaCpp { child, input, output, version: String::new() };
        peer.version = peer.read::<Hello>()?.version;
        Ok(peer)
    }

    fn read<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.output.read_line(&mut line).context("llama.cpp")? == 0 {
            bail!("llama.cpp ended without an answer; what it said stands above");
        }
        serde_json::from_str(&line).with_context(|| format!("llama.cpp answered {line}"))
    }
}

impl Program for LlamaCpp {
    fn answer(&mut self, request: Request) -> Result<Answer> {
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        self.input.write_all(&line).and_then(|()| self.input.flush()).context("llama.cpp takes no request")?;
        self.read()
    }
}

impl Drop for LlamaCpp {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
