//! One function a kind of package: the ordinary client downloads the archive into `work`, and it is unpacked into `tree`.

use std::fs;
use std::path::{Path, PathBuf};

use super::apt::Apt;
use crate::corpus::command::output;
use crate::corpus::manifest::{Package, Source};
use crate::corpus::{Error, Result, archive};

/// An archive that arrived.
pub(super) struct Archive {
    pub(super) path: PathBuf,
    pub(super) version: String,
    pub(super) suite: Option<String>,
}

/// What a client is asked for: a package and, where the manifest or the lock pins one, its version and suite.
#[derive(Clone)]
pub(super) struct Wanted<'a> {
    pub(super) package: &'a Package,
    pub(super) version: Option<String>,
    pub(super) suite: Option<String>,
}

impl Wanted<'_> {
    /// `name`, or name and version joined as the client writes it.
    fn specification(&self, joint: &str) -> String {
        match &self.version {
            Some(version) => format!("{}{joint}{version}", self.package.name),
            None => self.package.name.clone(),
        }
    }
}

/// Downloads the archive of `wanted` into the empty folder `work`.
pub(super) fn download(wanted: &Wanted<'_>, work: &Path, apt: Option<&Apt>) -> Result<Archive> {
    match wanted.package.source {
        Source::Crate => download_crate(wanted, work),
        Source::Npm => download_npm(wanted, work),
        Source::Pypi => download_pypi(wanted, work),
        Source::Deb => download_deb(wanted, work),
        Source::Debsrc => match apt {
            Some(apt) => apt.download_source(wanted, work),
            None => Err(Error::Client("no private apt lists for source packages".to_owned())),
        },
    }
}

/// `cargo info` loads the package into cargo's cache, without the packages that it depends on.
fn download_crate(wanted: &Wanted<'_>, work: &Path) -> Result<Archive> {
    let printed = output("cargo", &["info", "--color", "never", &wanted.specification("@")], work)?;
    let version = printed
        .lines()
        .find_map(|line| line.strip_prefix("version: "))
        .and_then(|rest| rest.split_whitespace().next())
        .ok_or_else(|| Error::Client(format!("cargo info {} printed no version", wanted.package.name)))?;
    let file_name = format!("{}-{version}.crate", wanted.package.name);
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let cache = home.unwrap_or_default().join("registry/cache");
    let registries = fs::read_dir(&cache).map_err(Error::io(&cache))?;
    let cached = registries.flatten().map(|entry| entry.path().join(&file_name)).find(|path| path.exists());
    let cached = cached.ok_or_else(|| Error::Client(format!("{file_name} is not in {}", cache.display())))?;
    let path = work.join(&file_name);
    fs::copy(&cached, &path).map_err(Error::io(&path))?;
    Ok(Archive { path, version: version.to_owned(), suite: None })
}

fn download_npm(wanted: &Wanted<'_>, work: &Path) -> Result<Archive> {
    let printed = output("npm", &["pack", "--json", "--ignore-scripts", &wanted.specification("@")], work)?;
    let bad = |what: &str| Error::Client(format!("npm pack {}: {what}", wanted.package.name));
    let json: serde_json::Value = serde_json::from_str(&printed).map_err(|e| bad(&e.to_string()))?;
    let version = json[0]["version"].as_str().ok_or_else(|| bad("no version in its answer"))?;
    Ok(Archive { path: only_file(work)?, version: version.to_owned(), suite: None })
}

/// A wheel of a Python package is its source; where there is none, the source distribution.
fn download_pypi(wanted: &Wanted<'_>, work: &Path) -> Result<Archive> {
    let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"];
    let specification = wanted.specification("==");
    let wheel = [&pip[..], &["--only-binary=:all:", &specification]].concat();
    if output("python3", &wheel, work).is_err() {
        let source = [&pip[..], &["--no-binary=:all:", &specification]].concat();
        output("python3", &source, work)?;
    }
    let path = only_file(work)?;
    let stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = stem.trim_end_matches(".tar.gz").trim_end_matches(".zip").to_owned();
    let version =
        if path.extension().is_some_and(|e| e == "whl") { stem.split('-').nth(1) } else { stem.rsplit('-').next() };
    let version = version.unwrap_or_default().to_owned();
    Ok(Archive { path, version, suite: None })
}

fn download_deb(wanted: &Wanted<'_>, work: &Path) -> Result<Archive> {
    output("apt-get", &["download", "--quiet=2", &wanted.specification("=")], work)?;
    let path = only_file(work)?;
    let path_text = path.to_string_lossy().into_owned();
    let version = output("dpkg-deb", &["--field", &path_text, "Version"], work)?;
    Ok(Archive { path, version: version.trim().to_owned(), suite: None })
}

/// The one plain file in `folder`.
pub(super) fn only_file(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    match files.len() {
        1 => Ok(files.remove(0)),
        n => Err(Error::Client(format!("the client left {n} files; expected one archive"))),
    }
}

/// Unpacks the archive of a package into `tree`.
pub(super) fn unpack(source: Source, archive: &Path, tree: &Path) -> Result<()> {
    if source != Source::Deb {
        return archive::unpack(archive, tree);
    }
    fs::create_dir_all(tree).map_err(Error::io(tree))?;
    output("dpkg-deb", &["--extract", &archive.to_string_lossy(), &tree.to_string_lossy()], tree)?;
    Ok(())
}
