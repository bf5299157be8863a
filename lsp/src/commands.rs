//! The commands of the program, one file each. Only these write to standard output.

use std::io::Write;

use anyhow::Context;

pub(crate) mod bench;
pub(crate) mod complete;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod replay;
pub(crate) mod serve;

/// Writes a command's result to standard output. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// The output cannot be written.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}
