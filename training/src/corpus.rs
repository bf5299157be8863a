//! Packages in, Parquet shards out: named packages are fetched through the ordinary clients, then filtered, masked,
//! de-duplicated, split by package and capped: `manifest` → `fetch` (`licence`, `lock`) → `input` (`archive`) → `stage` (`walk` or
//! `dataset`; `judge`: `filter`, `mask`, `minhash`, `decontaminate`; `spill`, `order`) → `build` (`compare`, `dedup`, `budget`) →
//! `write` → `report`, `stages`. `duplicates` removes near-duplicates from finished shards, with what
//! `dedup` finds on this machine or the plans of `fusion` on one or many.

use std::path::{Path, PathBuf};

pub mod archive;
pub mod budget;
pub mod build;
mod command;
mod compare;
pub mod dataset;
pub mod decontaminate;
pub mod dedup;
pub mod duplicates;
pub mod fetch;
pub mod filter;
#[cfg(feature = "datafusion")]
pub mod fusion;
pub mod input;
pub mod judge;
pub mod licence;
pub mod lines;
pub mod lock;
pub mod manifest;
pub mod mask;
pub mod minhash;
pub mod order;
mod progress;
pub mod report;
mod spill;
pub mod stage;
pub mod stages;
pub mod walk;
mod write;

/// What went wrong while fetching or building a corpus.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    /// A manifest, lock or stage file says something impossible; the message names field, value and expectation.
    #[error("{path}: {message}")]
    Format { path: PathBuf, message: String },
    /// A client program failed; the message carries the end of what it printed.
    #[error("{0}")]
    Client(String),
    /// The engine that runs the plans failed; the message is its own.
    #[error("plan of near-duplicate removal: {0}")]
    Plan(String),
    /// Reading or writing shards failed.
    #[error(transparent)]
    Shard(#[from] crate::data::shard::Error),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A closure for `map_err` that names `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |error| Error::Io { path, error }
    }

    /// A format error of `path`.
    pub(crate) fn format(path: &Path, message: impl Into<String>) -> Error {
        Error::Format { path: path.to_owned(), message: message.into() }
    }
}

/// A folder that this process holds; one that is ended by force holds none.
pub(crate) struct Held(std::fs::File);

impl Drop for Held {
    fn drop(&mut self) {
        // Closing is not enough: a child that is about to start has the file open for a moment, too.
        let _ = self.0.unlock();
    }
}

/// Holds `dir` for one build or fetch at a time; file systems without locks let everyone in.
pub(crate) fn hold(dir: &Path) -> Result<Held> {
    let path = dir.join("in-use");
    let file = std::fs::File::create(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::format(dir, "another process works in this folder; wait for it, or name another folder"))
        }
        _ => Ok(Held(file)),
    }
}

/// Writes `bytes` beside `path` and renames, so that the file is whole or absent.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, bytes).map_err(Error::io(&part))?;
    std::fs::rename(&part, path).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = hold(dir.path()).unwrap();
        let error = hold(dir.path()).err().unwrap().to_string();
        assert!(error.contains("another process works in this folder"), "{error}");
        drop(first);
        hold(dir.path()).unwrap();
    }
}
