//! The lock: which version of each package was fetched, with the checksum of its archive and the licence found in it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::manifest::Source;
use super::{Error, Result};

/// What was fetched for one package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// The client.
    pub source: Source,
    /// Name in that registry.
    pub name: String,
    /// Exact version.
    pub version: String,
    /// Hex SHA-256 of the archive as it came.
    pub sha256: String,
    /// Licence found in the package, empty when none was recognised.
    pub licence: String,
    /// Suite in which a Debian source package was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// Version that was wanted and not to be had any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
}

/// All locked packages, by source and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    packages: BTreeMap<(Source, String), Locked>,
}

#[derive(Serialize, Deserialize)]
struct LockFile {
    package: Vec<Locked>,
}

impl Lock {
    /// Reads a lock; an absent file is an empty lock.
    ///
    /// # Errors
    /// Unreadable or malformed file.
    pub fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let file: LockFile = toml::from_str(&text).map_err(|e| Error::format(path, e.to_string()))?;
        let mut lock = Self::default();
        file.package.into_iter().for_each(|locked| lock.insert(locked));
        Ok(lock)
    }

    /// Writes the lock, sorted by source and name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = LockFile { package: self.packages.values().cloned().collect() };
        let text = toml::to_string(&file).map_err(|e| Error::format(path, e.to_string()))?;
        let head = "# Made by `multicoder corpus fetch`: versions and checksums of the packages of a manifest.\n";
        super::write_whole(path, format!("{head}{text}").as_bytes())
    }

    /// The entry of a package.
    pub fn get(&self, source: Source, name: &str) -> Option<&Locked> {
        self.packages.get(&(source, name.to_owned()))
    }

    /// Adds or replaces an entry.
    pub fn insert(&mut self, locked: Locked) {
        self.packages.insert((locked.source, locked.name.clone()), locked);
    }

    /// Adds or replaces the entries of another lock.
    pub fn extend(&mut self, other: Lock) {
        self.packages.extend(other.packages);
    }

    /// Number of packages.
    pub fn len(&self) -> usize {
        self.packages.len()
    }

    /// Whether nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_keeps_every_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corpus.lock");
        assert!(Lock::read(&path).unwrap().is_empty());
        let mut lock = Lock::default();
        for (source, name, suite) in
            [(Source::Npm, "@scope/name", None), (Source::Debsrc, "guava", Some("trixie".to_owned()))]
        {
            lock.insert(Locked {
                source,
                name: name.into(),
                version: "1.2~rc+dfsg".into(),
                sha256: "ab".repeat(32),
                licence: "MIT OR Apache-2.0".into(),
                suite,
                instead_of: Some("1.1".to_owned()),
            });
        }
        lock.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
        std::fs::write(&path, "package = 3").unwrap();
        assert!(Lock::read(&path).unwrap_err().to_string().contains("corpus.lock"));
    }
}
