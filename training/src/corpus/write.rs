//! The last stage: shards are written beside the old ones and take their place. A language of a split whose files are the same as
//! before keeps its shards.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::build::{BuildOptions, Row};
use super::input::Inputs;
use super::manifest::Split;
use super::report::{REPORT_NAME, Report};
use super::stage::{self, Staged};
use super::stages::Stage;
use super::{Error, Result, write_whole};
use crate::data::shard::{Document, INCOMPLETE_NAME, ShardReader, ShardWriter, shard_paths};

/// Name of the file that says of which texts the shards are.
const KEYS_NAME: &str = "shards.json";
/// Change this when the same documents would be written otherwise.
const WRITER_VERSION: u32 = 1;

/// By `split/language`, a hash of all that its shards hold.
type Keys = BTreeMap<String, String>;

/// What is to be written.
pub(super) struct Contents<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) staged: &'a [Staged],
    /// By input and row.
    split_of: Vec<Vec<Option<Split>>>,
}

impl<'a> Contents<'a> {
    pub(super) fn new(rows: &[Row], inputs: &'a Inputs, staged: &'a [Staged]) -> Self {
        let mut split_of: Vec<Vec<Option<Split>>> = staged.iter().map(|s| vec![None; s.files.len()]).collect();
        for row in rows.iter().filter(|row| row.drop.is_none()) {
            split_of[row.input_idx][row.row_idx] = Some(row.split);
        }
        Self { inputs, staged, split_of }
    }

    /// The rows of an input that go into one language.
    fn wanted(&self, input_idx: usize, language: &str) -> impl Iterator<Item = (usize, Split)> {
        let files = &self.staged[input_idx].files;
        let splits = self.split_of[input_idx].iter().enumerate();
        splits
            .filter_map(move |(idx, split)| split.filter(|_| files[idx].language == language).map(|split| (idx, split)))
    }

    fn languages(&self) -> Vec<&'a str> {
        let all: BTreeSet<&str> = self.staged.iter().flat_map(|s| &s.files).map(|f| f.language.as_str()).collect();
        all.into_iter().collect()
    }

    /// One hash a split that has files of `language`.
    fn keys(&self, language: &str) -> BTreeMap<Split, String> {
        let mut hashes: BTreeMap<Split, Xxh3> = BTreeMap::new();
        for (input_idx, input) in self.inputs.usable.iter().enumerate() {
            for (idx, split) in self.wanted(input_idx, language) {
                let hash = hashes.entry(split).or_default();
                let file = &self.staged[input_idx].files[idx];
                hash.update(&file.text_hash.to_le_bytes());
                // Rows of a data set have packages and licences of their own.
                let of_rows = input.columns.as_ref().map_or("", |_| self.staged[input_idx].key());
                let about =
                    format!("{WRITER_VERSION}\0{}\0{}\0{}\0{of_rows}\0", file.path, input.package, input.licence);
                hash.update(about.as_bytes());
            }
        }
        hashes.into_iter().map(|(split, hash)| (split, format!("{:032x}", hash.digest128()))).collect()
    }
}

/// Writes all shards and puts them, then `report`, in their place. Readers refuse the folder meanwhile, and for good if this is ended
/// on the way.
pub(super) fn write(contents: &Contents<'_>, options: &BuildOptions, report: &Report, log: &mut Stage) -> Result<()> {
    let part = options.out.join(".part");
    if part.exists() {
        fs::remove_dir_all(&part).map_err(Error::io(&part))?;
    }
    fs::create_dir_all(&part).map_err(Error::io(&part))?;
    let old = old_keys(&options.out);
    let languages = contents.languages();
    let bar = super::progress::bar(languages.len(), "write");
    let written = languages.par_iter().map(|language| {
        let keys = write_language(contents, language, options, &part, &old)?;
        bar.inc(1);
        Ok(keys)
    });
    let written: Vec<Keys> = written.collect::<Result<_>>()?;
    bar.finish_and_clear();
    let keys: Keys = written.into_iter().flatten().collect();
    log.n_reused = keys.iter().filter(|(name, key)| old.get(*name) == Some(key)).count();
    log.n_done = keys.len() - log.n_reused;
    take_place(&part, options, report, &keys)
}

/// The keys of the shards that lie in `out`; none where they are not to be trusted.
fn old_keys(out: &Path) -> Keys {
    let trusted = !out.join(INCOMPLETE_NAME).exists();
    let bytes = trusted.then(|| fs::read(out.join(KEYS_NAME)).ok()).flatten();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn write_language(
    contents: &Contents<'_>,
    language: &str,
    options: &BuildOptions,
    part: &Path,
    old: &Keys,
) -> Result<Keys> {
    let keys = contents.keys(language);
    let name = |split: Split| format!("{}/{language}", split.name());
    let mut fresh = BTreeMap::new();
    for (split, key) in &keys {
        let same = old.get(&name(*split)) == Some(key) && link_shards(&options.out, part, *split, language).is_ok();
        if !same {
            fresh.insert(*split, None);
        }
    }
    if !fresh.is_empty() {
        write_fresh(contents, language, options, part, fresh)?;
    }
    Ok(keys.into_iter().map(|(split, key)| (name(split), key)).collect())
}

/// Gives the old shards of a language a second name in `part`.
fn link_shards(out: &Path, part: &Path, split: Split, language: &str) -> Result<()> {
    let folder = part.join(split.name());
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let number = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        stem.rsplit_once('-').is_some_and(|(name, _)| name == language)
    };
    for path in shard_paths(out, split.name())?.into_iter().filter(number) {
        let to = folder.join(path.file_name().unwrap_or_default());
        fs::hard_link(&path, &to).or_else(|_| fs::copy(&path, &to).map(|_| ())).map_err(Error::io(&to))?;
    }
    Ok(())
}

/// Writes the shards of `language` in the splits that `writers` names.
fn write_fresh(
    contents: &Contents<'_>,
    language: &str,
    options: &BuildOptions,
    part: &Path,
    mut writers: BTreeMap<Split, Option<ShardWriter>>,
) -> Result<()> {
    for (input_idx, input) in contents.inputs.usable.iter().enumerate() {
        let mut wanted =
            contents.wanted(input_idx, language).filter(|(_, split)| writers.contains_key(split)).peekable();
        if wanted.peek().is_none() {
            continue;
        }
        let wanted: BTreeMap<usize, Split> = wanted.collect();
        let documents = ShardReader::open(&stage::parquet_path(&options.stage, input))?;
        for (idx, document) in documents.enumerate() {
            let Some(split) = wanted.get(&idx).copied() else { continue };
            let document = Document { split: split.name().to_owned(), ..document? };
            if let Entry::Occupied(mut slot) = writers.entry(split) {
                let writer = match slot.get_mut() {
                    Some(writer) => writer,
                    none => none.insert(ShardWriter::create(part, split.name(), language)?),
                };
                writer.push(document)?;
            }
        }
    }
    writers.into_values().flatten().try_for_each(|writer| writer.finish().map(|_| ()).map_err(Error::from))
}

fn take_place(part: &Path, options: &BuildOptions, report: &Report, keys: &Keys) -> Result<()> {
    let marker = options.out.join(INCOMPLETE_NAME);
    fs::write(&marker, "").map_err(Error::io(&marker))?;
    let old_report = options.out.join(REPORT_NAME);
    if old_report.exists() {
        fs::remove_file(&old_report).map_err(Error::io(&old_report))?;
    }
    for split in Split::ALL {
        let (new, old) = (part.join(split.name()), options.out.join(split.name()));
        if old.exists() {
            fs::remove_dir_all(&old).map_err(Error::io(&old))?;
        }
        if new.exists() {
            fs::rename(&new, &old).map_err(Error::io(&old))?;
        }
    }
    fs::remove_dir_all(part).map_err(Error::io(part))?;
    report.write(&options.out)?;
    let keys_path = options.out.join(KEYS_NAME);
    let json = serde_json::to_vec_pretty(keys).map_err(|e| Error::format(&keys_path, e.to_string()))?;
    write_whole(&keys_path, &json)?;
    fs::remove_file(&marker).map_err(Error::io(&marker))
}
