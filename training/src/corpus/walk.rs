//! Files of a source tree: every plain file of a folder, or the tracked files of a git checkout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, Result};

/// A file of a tree: where it lies, and its path inside the tree with `/` between the parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceFile {
    /// Path inside the tree.
    pub inner: String,
    /// Path on disk.
    pub path: PathBuf,
}

/// Every plain file below `root`, sorted by path; no symbolic links, no folders whose name begins with a dot.
///
/// # Errors
/// A folder cannot be read.
pub fn files_of_folder(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let entry = entry.map_err(Error::io(&folder))?;
            let kind = entry.file_type().map_err(Error::io(&entry.path()))?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if kind.is_dir() && !hidden {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.extend(source_file(root, entry.path()));
            }
        }
    }
    strip_common_folder(&mut files);
    files.sort();
    Ok(files)
}

/// The tracked files of the git checkout at `root`, sorted by path.
///
/// # Errors
/// [`Error::Client`] when git is absent or `root` is no checkout.
pub fn files_of_git(root: &Path) -> Result<Vec<SourceFile>> {
    let listed = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output();
    let listed = listed.map_err(|e| Error::Client(format!("git does not start: {e}; is it installed?")))?;
    if !listed.status.success() {
        let reason = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
        return Err(Error::Client(format!("git ls-files in {}: {reason}", root.display())));
    }
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let paths = names.split('\0').filter(|name| !name.is_empty()).map(|name| root.join(name));
    let plain = paths.filter(|path| path.symlink_metadata().is_ok_and(|m| m.is_file()));
    let mut files: Vec<SourceFile> = plain.filter_map(|path| source_file(root, path)).collect();
    files.sort();
    Ok(files)
}

fn source_file(root: &Path, path: PathBuf) -> Option<SourceFile> {
    let inner = path.strip_prefix(root).ok()?.to_str()?.replace('\\', "/");
    Some(SourceFile { inner, path })
}

/// Archives often hold one folder (`name-1.2/`); it says nothing.
fn strip_common_folder(files: &mut [SourceFile]) {
    let Some(first) = files.first() else { return };
    let Some((folder, _)) = first.inner.split_once('/') else { return };
    let prefix = format!("{folder}/");
    if files.iter().all(|file| file.inner.starts_with(&prefix)) {
        files.iter_mut().for_each(|file| file.inner.drain(..prefix.len()).for_each(|_| {}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_in_order_without_links_and_hidden_folders() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["p-1/src/b.rs", "p-1/src/a.rs", "p-1/.git/x.rs", "p-1/z.rs"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink("z.rs", dir.path().join("p-1/link.rs")).unwrap();
        let names: Vec<_> = files_of_folder(dir.path()).unwrap().into_iter().map(|f| f.inner).collect();
        assert_eq!(names, ["src/a.rs", "src/b.rs", "z.rs"]);
    }
}
