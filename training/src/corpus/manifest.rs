//! The manifest: which packages of which language go into which split, and how much text a language may have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// Which part of the corpus a document belongs to. The order is the priority of near-duplicates: a copy in a later
/// split is dropped in favour of one in an earlier split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Never trained on; measured at the end.
    Test,
    /// Never trained on; watched during training.
    Valid,
    /// Trained on.
    Train,
}

impl Split {
    /// All, in order of priority.
    pub const ALL: [Split; 3] = [Split::Test, Split::Valid, Split::Train];

    /// `test`, `valid` or `train`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Test => "test",
            Split::Valid => "valid",
            Split::Train => "train",
        }
    }
}

/// What the manifest says about the split of a package: one split, or divided by top-level module directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackageSplit {
    /// The whole package is test material.
    Test,
    /// The whole package is validation material.
    Valid,
    /// The whole package is training material.
    Train,
    /// Divided by top-level module directory, for languages that have one large package.
    Modules,
}

impl PackageSplit {
    /// The one split of the package, `None` when it is divided by module.
    pub fn whole(self) -> Option<Split> {
        match self {
            PackageSplit::Test => Some(Split::Test),
            PackageSplit::Valid => Some(Split::Valid),
            PackageSplit::Train => Some(Split::Train),
            PackageSplit::Modules => None,
        }
    }
}

/// The client through which a package is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `cargo`
    Crate,
    /// `npm pack`
    Npm,
    /// `pip download`
    Pypi,
    /// `apt-get download`
    Deb,
    /// `apt-get source --tar-only`
    Debsrc,
}

impl Source {
    /// Name as in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Source::Crate => "crate",
            Source::Npm => "npm",
            Source::Pypi => "pypi",
            Source::Deb => "deb",
            Source::Debsrc => "debsrc",
        }
    }
}

/// One package of one language.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// The client.
    pub source: Source,
    /// Name in that registry.
    pub name: String,
    /// Where its files go.
    pub split: PackageSplit,
    /// Debian suites to try in order (`debsrc` only); bookworm, then trixie by default.
    #[serde(default)]
    pub suites: Vec<String>,
    /// Licence, where the package itself does not say it in a form that is recognised; SPDX expression.
    #[serde(default)]
    pub licence: Option<String>,
    /// Exact version; otherwise the newest, then what the lock says.
    #[serde(default)]
    pub version: Option<String>,
    /// Only paths that contain one of these (after unpacking, `/` at both ends); all when empty.
    #[serde(default)]
    pub include: Vec<String>,
}

/// The packages of one language.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageSection {
    /// Cap on the training text, MB of 10^6 bytes, shared out evenly among the packages.
    pub budget_mb: f64,
    /// Further languages whose files count as this one (`tsx` for `typescript`).
    #[serde(default)]
    pub accepts: Vec<String>,
    /// The packages.
    pub packages: Vec<Package>,
}

/// A whole manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// By language name, as in `multicoder_grammars::LANGUAGES`.
    pub language: BTreeMap<String, LanguageSection>,
}

/// A package with the languages that are taken from it.
#[derive(Clone, Debug)]
pub struct PackageOfLanguages {
    /// The package (the first mention of it).
    pub package: Package,
    /// The languages under which the manifest lists it, sorted.
    pub languages: BTreeSet<String>,
}

impl Manifest {
    /// Reads and validates a manifest.
    ///
    /// # Errors
    /// Unreadable file, unknown field, impossible name, one package in two splits: the message names it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let manifest: Manifest = toml::from_str(&text).map_err(|e| Error::format(path, e.to_string()))?;
        manifest.validate().map_err(|message| Error::format(path, message))?;
        Ok(manifest)
    }

    fn validate(&self) -> std::result::Result<(), String> {
        if self.language.is_empty() {
            return Err("no [language.NAME] section; expected at least one".to_owned());
        }
        for (language, section) in &self.language {
            if !(section.budget_mb > 0.0 && section.budget_mb.is_finite()) {
                return Err(format!("language.{language}.budget_mb = {}; expected a number > 0", section.budget_mb));
            }
            for package in &section.packages {
                validate_name(language, package)?;
            }
        }
        let mut splits = BTreeMap::new();
        for (language, section) in &self.language {
            for package in &section.packages {
                let key = (package.source, package.name.as_str());
                let (first, split) = *splits.entry(key).or_insert((language, package.split));
                if split != package.split {
                    return Err(format!(
                        "package {} {} has split {:?} under {first} and {:?} under {language}; expected one split",
                        package.source.name(),
                        package.name,
                        split,
                        package.split
                    ));
                }
            }
        }
        Ok(())
    }

    /// Every package once, sorted by source and name, with all languages that list it.
    pub fn packages(&self) -> Vec<PackageOfLanguages> {
        let mut all: BTreeMap<(Source, String), PackageOfLanguages> = BTreeMap::new();
        for (language, section) in &self.language {
            for package in &section.packages {
                let entry = all
                    .entry((package.source, package.name.clone()))
                    .or_insert_with(|| PackageOfLanguages { package: package.clone(), languages: BTreeSet::new() });
                entry.languages.insert(language.clone());
            }
        }
        all.into_values().collect()
    }
}

fn validate_name(language: &str, package: &Package) -> std::result::Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "@/._+~:-".contains(c);
    let words = std::iter::once(&package.name).chain(&package.version).chain(&package.suites);
    for word in words {
        if word.is_empty() || word.starts_with(['-', '.', '/']) || word.contains("..") || !word.chars().all(good) {
            return Err(format!(
                "language.{language}: package name, version or suite {word:?}; expected letters, digits and @/._+~:-"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::lock::Lock;

    fn parse(text: &str) -> std::result::Result<Manifest, String> {
        let manifest: Manifest = toml::from_str(text).map_err(|e| e.to_string())?;
        manifest.validate().map(|()| manifest)
    }

    #[test]
    fn one_package_under_two_languages_is_listed_once() {
        let manifest = parse(
            r#"
            [language.c]
            budget_mb = 1
            packages = [{ source = "crate", name = "zstd-sys", split = "train" }]
            [language.cpp]
            budget_mb = 1
            packages = [{ source = "crate", name = "zstd-sys", split = "train" }]"#,
        )
        .unwrap();
        let packages = manifest.packages();
        assert_eq!(packages.len(), 1);
        assert_eq!(packages[0].languages.iter().collect::<Vec<_>>(), ["c", "cpp"]);
    }

    #[test]
    fn contradictions_are_named() {
        let two = r#"
            [language.c]
            budget_mb = 1
            packages = [{ source = "crate", name = "x", split = "train" }]
            [language.cpp]
            budget_mb = 1
            packages = [{ source = "crate", name = "x", split = "test" }]"#;
        assert!(parse(two).unwrap_err().contains("expected one split"));
        let option = r#"
            [language.c]
            budget_mb = 1
            packages = [{ source = "crate", name = "--config", split = "train" }]"#;
        assert!(parse(option).unwrap_err().contains("--config"));
        assert!(parse("[language.c]\nbudget_mb = 0\npackages = []").unwrap_err().contains("budget_mb"));
        assert!(parse("[language.c]\nbudget = 1\npackages = []").unwrap_err().contains("budget"));
    }

    #[test]
    fn shipped_manifests_are_valid_and_locked() {
        for name in ["multicoder.toml", "starter.toml", "smoke.toml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(name);
            let manifest = Manifest::read(&path).unwrap();
            let lock = Lock::read(&path.with_extension("lock")).unwrap();
            for PackageOfLanguages { package, .. } in manifest.packages() {
                assert!(lock.get(package.source, &package.name).is_some(), "{name}: {} is not locked", package.name);
            }
            // The unseen language, on which models are measured that never saw it.
            assert!(!manifest.language.contains_key("julia"), "{name}");
        }
    }

    #[test]
    fn the_corpus_of_the_project_has_many_languages_in_every_split() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/multicoder.toml");
        let manifest = Manifest::read(&path).unwrap();
        assert!(manifest.language.len() >= 28, "{}", manifest.language.len());
        let budgets: f64 = manifest.language.values().map(|section| section.budget_mb).sum();
        assert!(budgets >= 600.0, "{budgets} MB");
        for (language, section) in &manifest.language {
            let has = |split| section.packages.iter().any(|package| package.split == split);
            let divided = has(PackageSplit::Modules);
            assert!(divided || (has(PackageSplit::Train) && has(PackageSplit::Test)), "{language}");
        }
    }
}
