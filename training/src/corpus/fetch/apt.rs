//! Debian source packages through a private set of `deb-src` lists, so that the machine's own lists stay as they are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::client::{Archive, Wanted, only_file};
use crate::corpus::command::output;
use crate::corpus::manifest::{Package, Source};
use crate::corpus::{Error, Result};

/// Suites that are tried when the manifest names none.
const DEFAULT_SUITES: [&str; 2] = ["bookworm", "trixie"];

/// The private lists.
pub(super) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Writes the configuration under `dir/apt` and loads the lists of every suite that `packages` need (about 10 MB
    /// each); `None` when there is no Debian source package among them.
    pub(super) fn set_up(dir: &Path, packages: &[&Package]) -> Result<Option<Self>> {
        let suites: BTreeSet<&str> =
            packages.iter().filter(|p| p.source == Source::Debsrc).flat_map(|p| suites_of(p)).collect();
        if suites.is_empty() {
            return Ok(None);
        }
        let root = dir.join("apt");
        for folder in ["lists/partial", "cache/archives/partial", "parts"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        }
        let root = root.canonicalize().map_err(Error::io(&root))?;
        let (address, key) = system_archive()?;
        let suites = suites.into_iter().collect::<Vec<_>>().join(" ");
        let stanza = format!("Types: deb-src\nURIs: {address}\nSuites: {suites}\nComponents: main\n{key}");
        let parts = root.join("parts/sources.sources");
        fs::write(&parts, stanza).map_err(Error::io(&parts))?;
        let root = root.display();
        let options = [
            "-oDir::Etc::sourcelist=/dev/null".to_owned(),
            format!("-oDir::Etc::sourceparts={root}/parts"),
            format!("-oDir::State::lists={root}/lists"),
            format!("-oDir::Cache={root}/cache"),
            "-oAPT::Sandbox::User=root".to_owned(),
        ];
        let apt = Self { options: options.to_vec() };
        apt.run(&["update", "--quiet=2"], dir)?;
        Ok(Some(apt))
    }

    fn run(&self, arguments: &[&str], folder: &Path) -> Result<String> {
        let mut all: Vec<&str> = self.options.iter().map(String::as_str).collect();
        all.extend(arguments);
        output("apt-get", &all, folder)
    }

    /// Tries the pinned version, else each suite in order.
    pub(super) fn download_source(&self, wanted: &Wanted<'_>, work: &Path) -> Result<Archive> {
        let name = &wanted.package.name;
        let mut reasons = Vec::new();
        let tries: Vec<(String, Option<String>)> = match &wanted.version {
            Some(version) => vec![(format!("{name}={version}"), wanted.suite.clone())],
            None => suites_of(wanted.package).map(|s| (format!("{name}/{s}"), Some(s.to_owned()))).collect(),
        };
        for (specification, suite) in tries {
            clear(work)?;
            match self.run(&["source", "--tar-only", "--download-only", &specification], work) {
                Ok(printed) => {
                    let version = printed.lines().find_map(|line| version_in(line, name));
                    let path = upstream_archive(work)?;
                    let version = version.or(wanted.version.clone()).unwrap_or_default();
                    return Ok(Archive { path, version, suite });
                }
                Err(error) => reasons.push(format!("{specification}: {error}")),
            }
        }
        Err(Error::Client(reasons.join("; ")))
    }
}

fn suites_of(package: &Package) -> impl Iterator<Item = &str> {
    let default = if package.suites.is_empty() { &DEFAULT_SUITES[..] } else { &[] };
    package.suites.iter().map(String::as_str).chain(default.iter().copied())
}

/// Version from a line like `Get:1 URI bookworm/main jansson 2.14-2 (tar) [142 kB]`.
fn version_in(line: &str, name: &str) -> Option<String> {
    let mut words = line.strip_prefix("Get:")?.split_whitespace().skip_while(|word| *word != name);
    words.next()?;
    words.next().map(str::to_owned)
}

/// The largest of the upstream archives (a package may have several parts).
fn upstream_archive(work: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(work).map_err(Error::io(work))?;
    let files = entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().ends_with(".asc"));
    let largest = files.max_by_key(|entry| entry.metadata().map_or(0, |m| m.len())).map(|entry| entry.path());
    largest.map_or_else(|| only_file(work), Ok)
}

fn clear(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))?.flatten() {
        fs::remove_file(entry.path()).map_err(Error::io(&entry.path()))?;
    }
    Ok(())
}

/// Address and `Signed-By:` line of the Debian archive that this machine uses.
fn system_archive() -> Result<(String, String)> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    for text in files.iter().filter_map(|path| fs::read_to_string(path).ok()) {
        for stanza in text.split("\n\n") {
            if let Some(found) = debian_stanza(stanza) {
                return Ok(found);
            }
        }
    }
    Err(Error::Client("no Debian archive in /etc/apt; Debian source packages need one".to_owned()))
}

fn debian_stanza(stanza: &str) -> Option<(String, String)> {
    let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if let Some(address) = field("URIs:").and_then(|addresses| addresses.split_whitespace().next()) {
        let key = field("Signed-By:").map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        return address.trim_end_matches('/').ends_with("/debian").then(|| (address.to_owned(), key));
    }
    let line = stanza.lines().find(|line| line.starts_with("deb "))?;
    let address = line.split_whitespace().find(|word| word.contains("://"))?;
    address.trim_end_matches('/').ends_with("/debian").then(|| (address.to_owned(), String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_the_progress_line() {
        let line = "Get:1 http://mirror/debian bookworm/main jansson 2.14-2 (tar) [142 kB]";
        assert_eq!(version_in(line, "jansson").as_deref(), Some("2.14-2"));
        assert_eq!(version_in("Fetched 142 kB in 0s", "jansson"), None);
    }

    #[test]
    fn both_forms_of_sources_are_read() {
        let deb822 = "Types: deb\n# note\nURIs: http://mirror/debian\nSuites: x\nSigned-By: /k.gpg";
        assert_eq!(debian_stanza(deb822), Some(("http://mirror/debian".into(), "Signed-By: /k.gpg\n".into())));
        assert_eq!(debian_stanza("deb [a=b] http://m/debian/ x main").unwrap().0, "http://m/debian/");
        assert_eq!(debian_stanza("Types: deb\nURIs: http://m/debian-security"), None);
    }
}
