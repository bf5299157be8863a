//! Archives of source trees, unpacked by the ordinary programs.

use std::fs;
use std::path::Path;

use super::command::output;
use super::{Error, Result};

const TAR: &[&str] = &[".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".crate"];
const ZIP: &[&str] = &[".zip", ".whl"];

/// Whether the name is that of an archive that [`unpack`] knows.
pub fn is_archive(path: &Path) -> bool {
    ends_with(path, TAR) || ends_with(path, ZIP)
}

fn ends_with(path: &Path, endings: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    endings.iter().any(|ending| name.ends_with(ending))
}

/// Unpacks `archive` into the folder `tree`: a zip file by its name, anything else by `tar`, which finds the packing itself.
/// Neither writes outside of `tree`.
///
/// # Errors
/// What is not a whole archive, with the end of what the program printed.
pub fn unpack(archive: &Path, tree: &Path) -> Result<()> {
    fs::create_dir_all(tree).map_err(Error::io(tree))?;
    let archive = archive.canonicalize().map_err(Error::io(archive))?;
    let tree = tree.canonicalize().map_err(Error::io(tree))?;
    let (from, to) = (archive.to_string_lossy(), tree.to_string_lossy());
    let unpacked = if ends_with(&archive, ZIP) {
        output("python3", &["-m", "zipfile", "-e", &from, &to], &tree)
    } else {
        output("tar", &["-xf", &from, "-C", &to, "--no-same-owner", "--no-same-permissions"], &tree)
    };
    let named = |error: Error| Error::format(&archive, format!("{error}; expected a whole archive"));
    unpacked.map(|_| ()).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_known_by_name() {
        assert!(["a.tar.gz", "b.TGZ", "c-1.0.zip", "d.tar.zst"].iter().all(|name| is_archive(Path::new(name))));
        assert!(!["a.gz", "tar", "b.jsonl.gz", "zip"].iter().any(|name| is_archive(Path::new(name))));
    }

    #[test]
    fn what_is_no_archive_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.tar.gz", "b.zip"] {
            let path = dir.path().join(name);
            fs::write(&path, "plain text").unwrap();
            let error = unpack(&path, &dir.path().join("tree")).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("expected a whole archive"), "{error}");
            // tar's own last line says nothing but that it ends.
            assert!(!name.contains("tar") || error.contains("not in gzip format"), "{error}");
        }
    }
}
