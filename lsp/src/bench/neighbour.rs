//! Another process that keeps a core busy, as a compiler does.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// Ends when it is dropped.
pub(super) struct Neighbour(Child);

impl Neighbour {
    /// This program again, at nothing but work.
    pub(super) fn start() -> Result<Neighbour> {
        let program = std::env::current_exe().context("this program's own path")?;
        let mut command = Command::new(program);
        let child = command.arg("spin").stdin(Stdio::piped()).spawn().context("a busy neighbour")?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(Neighbour(child))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Keeps a core busy until standard input ends, as it does when whoever started this is gone.
pub fn spin() {
    let input = std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    while !input.is_finished() {
        for _ in 0..1000 {
            std::hint::spin_loop();
        }
    }
}
