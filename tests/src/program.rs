//! Finding and running the binaries under test.

use anyhow::{Context, Result, ensure};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What a program did: its exit code (`None` when a signal ended it) and what it printed.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The binary `name` that `cargo test --release` built: the folder above the one that holds this test executable,
/// or the file named by the environment (`MULTICODER_BIN`, `MULTICODER_LSP_BIN`).
///
/// # Errors
/// Names the file that should be there and the command that makes it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let variable = format!("{}_BIN", name.to_uppercase().replace('-', "_"));
    if let Some(path) = std::env::var_os(&variable) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{variable} is {}, which is not a file", path.display());
        return Ok(path);
    }
    let test = std::env::current_exe().context("the path of this test executable")?;
    let folder = test.parent().and_then(|deps| deps.parent()).context("test executable outside target/PROFILE/deps")?;
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    ensure!(path.is_file(), "{} is missing: run `cargo build --release` first, or set {variable}", path.display());
    Ok(path)
}

/// Runs a command to its end with nothing on standard input.
///
/// # Errors
/// When the program cannot be started or is not done within `deadline` (it is then killed).
pub fn run(command: &mut Command, deadline: Duration) -> Result<Finished> {
    let what = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("starting {what}"))?;
    let id = child.id();
    let (done, waiting) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let started = Instant::now();
    match waiting.recv_timeout(deadline) {
        Ok(output) => Ok(finished(&output.with_context(|| format!("waiting for {what}"))?)),
        Err(_) => {
            // Not yet waited for (the thread still does), so that the number is still that of this process.
            signal(id, libc::SIGKILL)?;
            anyhow::bail!("{what} was not done after {:.1} s", started.elapsed().as_secs_f64())
        }
    }
}

/// Ends a process at once (SIGKILL), as the kernel's out-of-memory killer does, and waits until it is gone.
///
/// # Errors
/// The process cannot be killed, or had ended by itself before.
pub fn kill(child: &mut Child) -> Result<()> {
    child.kill().with_context(|| format!("killing process {}", child.id()))?;
    let status = child.wait().with_context(|| format!("waiting for process {}", child.id()))?;
    ensure!(
        status.signal() == Some(libc::SIGKILL),
        "process {} ended by itself before it was killed: {status}",
        child.id()
    );
    Ok(())
}

/// Asks a process to end (SIGINT), as Ctrl-C does.
///
/// # Errors
/// The signal cannot be sent.
pub fn interrupt(child: &Child) -> Result<()> {
    signal(child.id(), libc::SIGINT)
}

/// Sends a signal to a process that this one has started and not yet waited for.
fn signal(process_id: u32, number: libc::c_int) -> Result<()> {
    let id = libc::pid_t::try_from(process_id).context("a process number")?;
    // SAFETY: the call takes two numbers and touches no memory of this process.
    let result = unsafe { libc::kill(id, number) };
    let error = std::io::Error::last_os_error();
    ensure!(result == 0, "sending signal {number} to process {process_id}: {error}");
    Ok(())
}

/// The language server, with the model inside it, or with the one that `MULTICODER_TEST_MODEL` names (a `.gguf` file or a folder).
///
/// # Errors
/// Those of [`binary`].
pub fn language_server() -> Result<Command> {
    let mut command = Command::new(binary("multicoder-lsp")?);
    if let Some(model) = std::env::var_os("MULTICODER_TEST_MODEL") {
        command.arg("--model").arg(model);
    }
    Ok(command)
}

fn finished(output: &Output) -> Finished {
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
