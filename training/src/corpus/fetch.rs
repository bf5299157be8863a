//! Fetching: every package of a manifest through its ordinary client, several at a time, each one whole or absent.
//!
//! A package lies in `OUT/packages/<source>/<name>/` as `tree/` (unpacked) and `done.json` (written last). A package
//! without `done.json` is fetched again from nothing; one with it is skipped.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sha2::{Digest, Sha256};

use self::apt::Apt;
use self::client::Wanted;
use super::licence;
use super::lock::{Lock, Locked};
use super::manifest::{Manifest, Package, Source};
use super::{Error, Result, hold, write_whole};

mod apt;
mod client;

/// What a fetch is asked for.
pub struct FetchOptions {
    /// Folder for packages, private apt lists and the lock.
    pub out: PathBuf,
    /// Lock of the manifest, which goes before the one that `out` has.
    pub lock: Option<PathBuf>,
    /// Packages in flight at once.
    pub n_jobs: usize,
}

/// What became of the packages.
#[derive(Debug, Default, Serialize)]
pub struct FetchReport {
    /// Fetched now.
    pub n_fetched: usize,
    /// Were there already.
    pub n_present: usize,
    /// `source name` and the reason.
    pub failed: Vec<(String, String)>,
    /// Things the user should know: a locked version that is gone, a licence that was not found.
    pub warnings: Vec<String>,
}

impl FetchReport {
    /// What the user has to know, for the terminal.
    pub fn table(&self) -> String {
        let warnings = self.warnings.iter().map(|warning| format!("warning: {warning}\n"));
        let failed = self.failed.iter().map(|(package, reason)| format!("failed:  {package}: {reason}\n"));
        let (fetched, present, n_failed) = (self.n_fetched, self.n_present, self.failed.len());
        let counts = format!("{fetched} fetched, {present} there already, {n_failed} failed\n");
        warnings.chain(failed).chain([counts]).collect()
    }
}

/// Name of the lock in the output folder.
pub const LOCK_NAME: &str = "corpus.lock";

/// Folder of a package under the output folder; `/` of scoped npm names becomes `+`.
pub fn package_folder(out: &Path, source: Source, name: &str) -> PathBuf {
    out.join("packages").join(source.name()).join(name.replace('/', "+"))
}

/// What was fetched for a package, `None` when it is not there whole.
pub fn fetched(out: &Path, source: Source, name: &str) -> Option<Locked> {
    let text = fs::read_to_string(package_folder(out, source, name).join("done.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Fetches every package of `manifest` that is not there yet, and writes `OUT/corpus.lock`.
///
/// # Errors
/// Only when nothing can be done at all (folder not writable, lock malformed); a package that fails is in the report.
pub fn fetch(manifest: &Manifest, options: &FetchOptions) -> Result<FetchReport> {
    fs::create_dir_all(&options.out).map_err(Error::io(&options.out))?;
    let _held = hold(&options.out)?;
    let lock_path = options.out.join(LOCK_NAME);
    let old = versions(options)?;
    let packages: Vec<Package> = manifest.packages().into_iter().map(|listed| listed.package).collect();
    let mut report = FetchReport::default();
    let mut lock = Lock::default();
    let mut todo = VecDeque::new();
    for package in packages {
        match fetched(&options.out, package.source, &package.name).filter(|locked| is_wanted(locked, &package, &old)) {
            Some(locked) => {
                report.n_present += 1;
                lock.insert(locked);
            }
            None => {
                old.get(package.source, &package.name).into_iter().for_each(|locked| lock.insert(locked.clone()));
                todo.push_back(package);
            }
        }
    }
    let apt = set_up_apt(options, &todo, &mut report);
    let outcomes = fetch_all(todo, &old, options, apt.as_ref());
    for (package, outcome) in outcomes {
        match outcome {
            Ok((locked, warnings)) => {
                report.n_fetched += 1;
                report.warnings.extend(warnings);
                lock.insert(locked);
            }
            Err(error) => report.failed.push((label(&package), error.to_string())),
        }
    }
    lock.write(&lock_path)?;
    report.failed.sort();
    report.warnings.sort();
    Ok(report)
}

/// The versions to fetch: those of the manifest's lock, and of packages that it lacks those that were fetched before.
fn versions(options: &FetchOptions) -> Result<Lock> {
    let mut lock = Lock::read(&options.out.join(LOCK_NAME))?;
    if let Some(path) = &options.lock {
        lock.extend(Lock::read(path)?);
    }
    Ok(lock)
}

/// Whether the version that is there is the pinned one, else the one of the lock or what was taken instead, if either says anything.
fn is_wanted(present: &Locked, package: &Package, lock: &Lock) -> bool {
    let locked = || lock.get(package.source, &package.name).map(|locked| &locked.version);
    let wanted = package.version.as_ref().or_else(locked);
    wanted.is_none_or(|version| *version == present.version || present.instead_of.as_ref() == Some(version))
}

/// The private lists; without them the other kinds of package are fetched all the same.
fn set_up_apt(options: &FetchOptions, todo: &VecDeque<Package>, report: &mut FetchReport) -> Option<Apt> {
    match Apt::set_up(&options.out, &todo.iter().collect::<Vec<_>>()) {
        Ok(apt) => apt,
        Err(error) => {
            report.warnings.push(format!("Debian source packages cannot be fetched: {error}"));
            None
        }
    }
}

type Outcome = (Package, Result<(Locked, Vec<String>)>);

fn fetch_all(todo: VecDeque<Package>, lock: &Lock, options: &FetchOptions, apt: Option<&Apt>) -> Vec<Outcome> {
    let bar = ProgressBar::new(todo.len() as u64).with_style(
        ProgressStyle::with_template("fetch {bar:30} {pos}/{len} packages {elapsed} {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let todo = Mutex::new(todo);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.n_jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = todo.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(package) = next else { break };
                    bar.set_message(label(&package));
                    let outcome = fetch_one(&package, lock, options, apt);
                    bar.inc(1);
                    if let Ok(mut all) = outcomes.lock() {
                        all.push((package, outcome));
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    outcomes.into_inner().unwrap_or_default()
}

fn label(package: &Package) -> String {
    format!("{} {}", package.source.name(), package.name)
}

/// One package: the pinned version, else the locked one, else (with a warning) the newest.
fn fetch_one(
    package: &Package,
    lock: &Lock,
    options: &FetchOptions,
    apt: Option<&Apt>,
) -> Result<(Locked, Vec<String>)> {
    let mut warnings = Vec::new();
    let locked = lock
        .get(package.source, &package.name)
        .filter(|l| package.version.is_none() || package.version.as_ref() == Some(&l.version));
    let newest = Wanted { package, version: package.version.clone(), suite: None };
    let found = match locked {
        None => download_and_unpack(&newest, options, apt)?,
        Some(locked) => {
            let pinned = Wanted { package, version: Some(locked.version.clone()), suite: locked.suite.clone() };
            match download_and_unpack(&pinned, options, apt) {
                Ok(found) if found.sha256 != locked.sha256 => {
                    return Err(Error::Client(format!(
                        "checksum {} of version {}; expected {} (the lock)",
                        found.sha256, found.version, locked.sha256
                    )));
                }
                Ok(found) => found,
                Err(error) if package.version.is_some() => return Err(error),
                Err(_) => {
                    let mut found = download_and_unpack(&newest, options, apt)?;
                    found.instead_of = Some(locked.version.clone());
                    warnings.push(format!(
                        "{}: locked version {} is not to be had; took {}",
                        label(package),
                        locked.version,
                        found.version
                    ));
                    found
                }
            }
        }
    };
    if found.licence.is_empty() && package.licence.is_none() {
        warnings.push(format!("{}: no licence recognised; say `licence` in the manifest", label(package)));
    }
    let done = package_folder(&options.out, package.source, &package.name).join("done.json");
    let json = serde_json::to_vec_pretty(&found).map_err(|e| Error::format(&done, e.to_string()))?;
    write_whole(&done, &json)?;
    Ok((found, warnings))
}

fn download_and_unpack(wanted: &Wanted<'_>, options: &FetchOptions, apt: Option<&Apt>) -> Result<Locked> {
    let (source, name) = (wanted.package.source, wanted.package.name.as_str());
    let folder = package_folder(&options.out, source, name);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
    }
    let work = folder.join("archive");
    fs::create_dir_all(&work).map_err(Error::io(&work))?;
    let work = work.canonicalize().map_err(Error::io(&work))?;
    let archive = client::download(wanted, &work, apt)?;
    let bytes = fs::read(&archive.path).map_err(Error::io(&archive.path))?;
    let tree = folder.canonicalize().map_err(Error::io(&folder))?.join("tree");
    client::unpack(source, &archive.path, &tree)?;
    fs::remove_dir_all(&work).map_err(Error::io(&work))?;
    Ok(Locked {
        source,
        name: name.to_owned(),
        version: archive.version,
        sha256: crate::data::shard::hex(&Sha256::digest(&bytes)),
        licence: licence::of_package(source, &tree).unwrap_or_default(),
        suite: archive.suite,
        instead_of: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(version: &str) -> Locked {
        Locked {
            source: Source::Npm,
            name: "b".into(),
            version: version.into(),
            sha256: "00".into(),
            licence: "MIT".into(),
            suite: None,
            instead_of: None,
        }
    }

    #[test]
    fn only_a_finished_package_counts() {
        let dir = tempfile::tempdir().unwrap();
        let folder = package_folder(dir.path(), Source::Npm, "@a/b");
        assert!(folder.ends_with("packages/npm/@a+b"));
        fs::create_dir_all(folder.join("tree")).unwrap();
        assert!(fetched(dir.path(), Source::Npm, "@a/b").is_none());
        let locked = Locked { name: "@a/b".into(), ..locked("1") };
        fs::write(folder.join("done.json"), serde_json::to_vec(&locked).unwrap()).unwrap();
        assert_eq!(fetched(dir.path(), Source::Npm, "@a/b"), Some(locked));
    }

    #[test]
    fn a_present_package_of_another_version_is_not_taken() {
        let package = |version: &str| -> Package {
            toml::from_str(&format!("source = \"npm\"\nname = \"b\"\nsplit = \"train\"\n{version}")).unwrap()
        };
        let (free, pinned) = (package(""), package("version = \"2\""));
        let mut lock = Lock::default();
        assert!(is_wanted(&locked("1"), &free, &lock), "nothing says which");
        assert!(is_wanted(&locked("2"), &pinned, &lock) && !is_wanted(&locked("1"), &pinned, &lock));
        lock.insert(locked("3"));
        assert!(is_wanted(&locked("3"), &free, &lock) && !is_wanted(&locked("1"), &free, &lock));
        assert!(is_wanted(&locked("2"), &pinned, &lock), "the pin goes before the lock");
        let replacement = Locked { instead_of: Some("3".into()), ..locked("4") };
        assert!(is_wanted(&replacement, &free, &lock), "3 is not to be had any more");
        assert!(!is_wanted(&replacement, &pinned, &lock));
    }

    #[test]
    fn the_lock_of_the_manifest_goes_before_what_was_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, versions: &[(&str, &str)]| {
            let mut lock = Lock::default();
            versions.iter().for_each(|(name, version)| lock.insert(Locked { name: (*name).into(), ..locked(version) }));
            lock.write(&dir.path().join(name)).unwrap();
        };
        write(LOCK_NAME, &[("a", "1"), ("b", "1")]);
        write("manifest.lock", &[("b", "2"), ("c", "2")]);
        let versions = |lock: Option<&str>| {
            let options =
                FetchOptions { out: dir.path().into(), lock: lock.map(|name| dir.path().join(name)), n_jobs: 1 };
            let lock = versions(&options).unwrap();
            ["a", "b", "c"].map(|name| lock.get(Source::Npm, name).map(|locked| locked.version.clone()))
        };
        let version = |text: &str| Some(text.to_owned());
        assert_eq!(versions(Some("manifest.lock")), [version("1"), version("2"), version("2")]);
        assert_eq!(versions(None), [version("1"), version("1"), None]);
    }
}
