//! Client programs as child processes: output gathered, time limited, failure told with the end of what was printed.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::corpus::{Error, Result};

/// A client that prints nothing and does not end within this time is ended.
const LIMIT: Duration = Duration::from_secs(900);

/// Runs `program arguments` in `folder` and returns what it printed to standard output.
///
/// # Errors
/// [`Error::Client`] when the program is absent, fails or takes longer than 15 minutes.
pub(super) fn output(program: &str, arguments: &[&str], folder: &Path) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Error::Client(format!("{program} does not start: {e}; is it installed?")))?;
    let stdout = gather(child.stdout.take());
    let stderr = gather(child.stderr.take());
    let ended = wait(&mut child);
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match ended {
        Some(true) => Ok(stdout),
        Some(false) => Err(Error::Client(format!("{program} failed: {}", tail(&stderr, &stdout)))),
        None => Err(Error::Client(format!("{program} was ended after {} s", LIMIT.as_secs()))),
    }
}

fn gather(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pipe that breaks gives what came before.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// `Some(success)`, or `None` when the limit passed and the child was killed.
fn wait(child: &mut Child) -> Option<bool> {
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if begin.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// The last telling lines of what a client printed.
fn tail(stderr: &str, stdout: &str) -> String {
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors: Vec<&str> =
        lines.iter().copied().filter(|line| line.to_lowercase().contains("err") || line.starts_with("E:")).collect();
    // A single one, as tar's, may only say that it ends; what was before it says why.
    let chosen = if errors.len() < 2 { &lines } else { &errors };
    chosen[chosen.len().saturating_sub(3)..].join(" | ")
}
