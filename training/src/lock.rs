//! One writer for a folder.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Held while a process writes into a folder. The operating system lets go of it when the process ends, however it does.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "its end is what counts")] File);

impl Lock {
    /// Makes the folder where there is none.
    ///
    /// # Errors
    /// Another process that holds it.
    pub fn of(folder: &Path) -> Result<Lock> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(".lock");
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "{}: another process trains in this folder; wait for it, or choose another --out",
                    folder.display()
                )
            }
            // File systems without locks, such as some of networks: whoever trains there is on his own.
            Err(TryLockError::Error(_)) => Ok(Lock(file)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let first = Lock::of(&folder).unwrap();
        let refused = Lock::of(&folder).unwrap_err().to_string();
        assert!(refused.contains("run: another process trains in this folder"), "{refused}");
        drop(first);
        assert!(Lock::of(&folder).is_ok());
    }
}
