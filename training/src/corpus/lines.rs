//! The lines of a text file, plain or packed by gzip.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Error, Result};

/// Opens a file; one whose name ends in `.gz` is unpacked by the program `gzip`.
///
/// # Errors
/// A file that cannot be read. What is not a whole gzip file, or no UTF-8, is an error where the lines end or break.
pub fn open(path: &Path) -> Result<TextLines> {
    if path.extension().is_none_or(|extension| extension != "gz") {
        let file: Box<dyn BufRead + Send> = Box::new(BufReader::new(File::open(path).map_err(Error::io(path))?));
        return Ok(TextLines { path: path.to_owned(), text: file, n_lines: 0, gzip: None });
    }
    let gzip = Command::new("gzip").arg("-dc").arg(path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut gzip = gzip.map_err(|error| Error::Client(format!("gzip does not start: {error}; is it installed?")))?;
    let output = gzip.stdout.take().ok_or_else(|| Error::format(path, "gzip has no output"))?;
    let output: Box<dyn BufRead + Send> = Box::new(BufReader::new(output));
    Ok(TextLines { path: path.to_owned(), text: output, n_lines: 0, gzip: Some(gzip) })
}

/// What is wrong in a line of JSON, with the column; its own number of the line would be 1.
pub fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    if error.is_eof() { message.to_owned() } else { format!("column {}: {message}", error.column()) }
}

/// Lines with their numbers, from 1; empty ones are left out, and after an error nothing follows.
pub struct TextLines {
    path: PathBuf,
    text: Box<dyn BufRead + Send>,
    n_lines: usize,
    gzip: Option<Child>,
}

impl Iterator for TextLines {
    type Item = Result<(usize, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = String::new();
            self.n_lines += 1;
            if let Err(error) = self.text.read_line(&mut line) {
                return Some(Err(Error::format(&self.path, format!("line {}: {error}", self.n_lines))));
            }
            // The last line may be cut off: gzip is asked before anyone reads it.
            if !line.ends_with('\n') && !self.is_whole() {
                return Some(Err(Error::format(&self.path, "expected a whole gzip file")));
            }
            if line.is_empty() {
                return None;
            }
            if !line.trim().is_empty() {
                return Some(Ok((self.n_lines, line)));
            }
        }
    }
}

impl TextLines {
    /// Whether gzip, where it unpacks the file, ended well.
    fn is_whole(&mut self) -> bool {
        self.gzip.take().is_none_or(|mut gzip| gzip.wait().is_ok_and(|status| status.success()))
    }
}

impl Drop for TextLines {
    fn drop(&mut self) {
        // A reader that stops early leaves gzip with nobody to write to.
        if let Some(mut gzip) = self.gzip.take() {
            let _ = gzip.kill();
            let _ = gzip.wait();
        }
    }
}
