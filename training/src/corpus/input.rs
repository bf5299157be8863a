//! What a build reads: fetched packages, plain folders, git checkouts, data sets, each with the languages that are taken from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use multicoder_grammars::LanguageId;

use super::dataset::{self, Columns};
use super::licence::Allowed;
use super::lock::Locked;
use super::manifest::{Manifest, PackageOfLanguages, PackageSplit};
use super::walk::{SourceFile, files_of_folder, files_of_git};
use super::{Error, Result, archive, fetch};

/// What stands for the licence of one's own code.
pub(super) const OWN_LICENCE: &str = "own";
/// What stands for the licence of a row that has none.
pub(super) const UNSTATED_LICENCE: &str = "not stated";

/// One tree of source files.
#[derive(Clone, Debug)]
pub struct Input {
    /// Unique: `pypi/flask`, `folder/ours`.
    pub key: String,
    /// With its version: `flask-3.1.0`.
    pub package: String,
    /// `pypi`, `npm`, `crate`, `deb`, `debsrc`, `folder`, `archive`, `git` or `dataset`.
    pub source: String,
    /// How the names of columns are to be read, where the root is a file of a data set.
    pub columns: Option<Columns>,
    /// SPDX expression, or `own`.
    pub licence: String,
    /// Its split, or divided by module.
    pub split: PackageSplit,
    /// Folder on disk, archive of one, or file of a data set.
    pub root: PathBuf,
    /// Only paths that contain one of these; all when empty.
    pub include: Vec<String>,
    /// What is taken: detected language to the name under which it is kept.
    pub languages: BTreeMap<LanguageId, String>,
    /// Changes whenever the content may have changed.
    pub content: String,
}

/// The inputs of a build and those that cannot be used.
#[derive(Default)]
pub struct Inputs {
    /// Sorted by key.
    pub usable: Vec<Input>,
    /// Packages of the manifest that were not fetched.
    pub missing: Vec<String>,
    /// Packages whose licence is not allowed or not known, with what was found.
    pub forbidden: Vec<(String, String)>,
}

impl Inputs {
    /// The packages of `manifest` that lie fetched under `dir` and whose licence is allowed.
    ///
    /// # Errors
    /// A section of the manifest whose language the table of languages does not know.
    pub fn of_manifest(manifest: &Manifest, dir: &Path, allowed: &Allowed) -> Result<Self> {
        let mut inputs = Self::default();
        for listed in manifest.packages() {
            let key = format!("{}/{}", listed.package.source.name(), listed.package.name);
            let Some(locked) = fetch::fetched(dir, listed.package.source, &listed.package.name) else {
                inputs.missing.push(key);
                continue;
            };
            let licence = listed.package.licence.clone().unwrap_or_else(|| locked.licence.clone());
            if allowed.permits(&licence) {
                inputs.usable.push(input_of(manifest, &listed, &locked, key, licence, dir)?);
            } else {
                inputs.forbidden.push((key, licence));
            }
        }
        Ok(inputs)
    }

    /// Adds one's own code: a plain folder, an archive of one, or a git checkout of which only tracked files count.
    ///
    /// # Errors
    /// An archive that cannot be read; a language that the table does not know; a name that is taken.
    pub fn add_own(
        &mut self,
        name: &str,
        root: &Path,
        is_git: bool,
        split: PackageSplit,
        names: &[String],
    ) -> Result<()> {
        let is_archive = !is_git && root.is_file();
        let source = if is_git { "git" } else { ["folder", "archive"][usize::from(is_archive)] };
        self.add(Input {
            key: format!("{source}/{name}"),
            package: name.to_owned(),
            source: source.to_owned(),
            columns: None,
            licence: OWN_LICENCE.to_owned(),
            split,
            root: root.to_owned(),
            include: Vec::new(),
            languages: languages(names)?,
            content: if is_archive { size_and_time(root)? } else { String::new() },
        })
    }

    /// Adds a data set, each of its files an input: they are staged side by side, and again only where they changed.
    ///
    /// # Errors
    /// A path that is no data set; a language that the table does not know.
    pub fn add_dataset(
        &mut self,
        name: &str,
        path: &Path,
        columns: &Columns,
        split: PackageSplit,
        names: &[String],
    ) -> Result<()> {
        for (idx, file) in dataset::files(path)?.into_iter().enumerate() {
            self.add(Input {
                key: format!("dataset/{name}-{idx:05}"),
                package: name.to_owned(),
                source: "dataset".to_owned(),
                columns: Some(columns.clone()),
                licence: UNSTATED_LICENCE.to_owned(),
                split,
                include: Vec::new(),
                languages: languages(names)?,
                content: size_and_time(&file)?,
                root: file,
            })?;
        }
        Ok(())
    }

    fn add(&mut self, input: Input) -> Result<()> {
        self.usable.push(input);
        self.usable.sort_by(|a, b| a.key.cmp(&b.key));
        if let Some(pair) = self.usable.windows(2).find(|pair| pair[0].key == pair[1].key) {
            return Err(Error::Client(format!("two inputs are called {}; give one another NAME=PATH", pair[0].key)));
        }
        Ok(())
    }
}

impl Input {
    /// The files to look at below `tree`, which is the root, or where [`Input::unpack`] put it.
    ///
    /// # Errors
    /// A folder that cannot be read, a checkout that git does not know.
    pub fn files(&self, tree: &Path) -> Result<Vec<SourceFile>> {
        let files = if self.source == "git" { files_of_git(tree)? } else { files_of_folder(tree)? };
        let wanted = |path: &str| {
            let anchored = format!("/{path}");
            self.include.is_empty() || self.include.iter().any(|part| anchored.contains(part))
        };
        Ok(files.into_iter().filter(|file| wanted(&file.inner)).collect())
    }

    /// Unpacks the root, if it is an archive, into a folder beside `beside`, which is returned.
    ///
    /// # Errors
    /// What is not a whole archive.
    pub fn unpack(&self, beside: &Path) -> Result<Option<PathBuf>> {
        if self.source != "archive" {
            return Ok(None);
        }
        let tree = beside.with_extension("tree");
        if tree.exists() {
            std::fs::remove_dir_all(&tree).map_err(Error::io(&tree))?;
        }
        archive::unpack(&self.root, &tree)?;
        Ok(Some(tree))
    }

    /// The language to assume where a file does not decide: the only or first one of the package.
    pub fn prior(&self) -> Option<LanguageId> {
        let cpp = self.languages.keys().find(|id| id.name() == "cpp");
        cpp.or_else(|| self.languages.keys().next()).copied()
    }
}

/// What tells that a file is still the same.
fn size_and_time(path: &Path) -> Result<String> {
    let meta = path.metadata().map_err(Error::io(path))?;
    Ok(format!("{} {:?}", meta.len(), meta.modified().ok()))
}

/// The languages of these names, or all that have a grammar.
fn languages(names: &[String]) -> Result<BTreeMap<LanguageId, String>> {
    if names.is_empty() {
        return Ok(LanguageId::all().filter(|id| id.has_grammar()).map(|id| (id, id.name().to_owned())).collect());
    }
    names.iter().map(|name| Ok((language(name)?, name.clone()))).collect()
}

fn language(name: &str) -> Result<LanguageId> {
    LanguageId::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = LanguageId::all().map(LanguageId::name).collect();
        Error::Client(format!("unknown language `{name}`; known are {}", known.join(", ")))
    })
}

fn input_of(
    manifest: &Manifest,
    listed: &PackageOfLanguages,
    locked: &Locked,
    key: String,
    licence: String,
    dir: &Path,
) -> Result<Input> {
    let mut languages = BTreeMap::new();
    for name in &listed.languages {
        let accepts = manifest.language.get(name).map(|section| section.accepts.as_slice()).unwrap_or_default();
        for accepted in std::iter::once(name).chain(accepts) {
            languages.entry(language(accepted)?).or_insert_with(|| name.clone());
        }
    }
    let package = &listed.package;
    Ok(Input {
        key,
        package: format!("{}-{}", package.name, locked.version),
        source: package.source.name().to_owned(),
        columns: None,
        licence,
        split: package.split,
        root: fetch::package_folder(dir, package.source, &package.name).join("tree"),
        include: package.include.clone(),
        languages,
        content: locked.sha256.clone(),
    })
}
