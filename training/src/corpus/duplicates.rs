//! Duplicates in finished shards: where they are, and the shards without them.
//!
//! Who stays is a matter of content alone ([`rank`]), so that any engine and any order of reading come to the same answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::dedup::{Candidate, Removal, duplicates};
use super::filter::Drop;
use super::manifest::Split;
use super::minhash::{Signature, THRESHOLD};
use super::stage::Count;
use super::{Error, Result, write_whole};
use crate::data::shard::{self, Document, INCOMPLETE_NAME, ShardReader, ShardWriter};

/// Name of the counts beside the shards.
pub const COUNTS_NAME: &str = "dedup.json";
/// Name of the list of what is gone: a JSON object a line.
pub const DROPPED_NAME: &str = "dropped.jsonl";
/// Documents whose signatures are made at once.
const BLOCK_DOCUMENTS: usize = 256;
/// Between the parts of a rank; sorts before every character of theirs.
const SEPARATOR: char = '\0';

/// Hash of a whole text: equal for exact duplicates.
pub fn text_hash(text: &str) -> String {
    format!("{:032x}", xxh3_128(text.as_bytes()))
}

/// Order of preference as text, the least stays: test before valid before train, then by package, path, language and hash.
pub fn rank(split: &str, package: &str, path: &str, language: &str, text_hash: &str) -> String {
    let order = Split::ALL.iter().position(|known| known.name() == split).unwrap_or(Split::ALL.len());
    format!("{order}{split}{SEPARATOR}{package}{SEPARATOR}{path}{SEPARATOR}{language}{SEPARATOR}{text_hash}")
}

/// The hash at the end of a rank.
pub fn hash_of(rank: &str) -> &str {
    rank.rsplit(SEPARATOR).next().unwrap_or_default()
}

fn rank_of(document: &Document, text_hash: &str) -> String {
    rank(&document.split, &document.package, &document.path, &document.language, text_hash)
}

/// What an engine finds, by the hash of the text; a text that is not named here has one row, which stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duplicates {
    /// Texts that several rows have: the rank of the first, the others are exact duplicates.
    pub first: BTreeMap<String, String>,
    /// Texts that nearly are another: the rank of the row that stays in their place.
    pub near: BTreeMap<String, String>,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Dropped {
    split: String,
    language: String,
    package: String,
    path: String,
    sha256: String,
    reason: Drop,
    /// Split, package and path of the row that stays in its place.
    kept: [String; 3],
}

/// Counts of one removal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// What stayed: split, then language.
    pub kept: BTreeMap<Split, BTreeMap<String, Count>>,
    /// What went: split, then language, then reason.
    pub dropped: BTreeMap<Split, BTreeMap<String, BTreeMap<Drop, Count>>>,
}

impl Counts {
    /// Everything that stayed.
    pub fn n_kept(&self) -> Count {
        sum(self.kept.values().flat_map(BTreeMap::values))
    }

    /// Everything that went for one reason.
    pub fn n_dropped(&self, reason: Drop) -> Count {
        sum(self.dropped.values().flat_map(BTreeMap::values).filter_map(|reasons| reasons.get(&reason)))
    }
}

fn sum<'a>(counts: impl Iterator<Item = &'a Count>) -> Count {
    counts.fold(Count::default(), |mut total, count| {
        total.add_all(*count);
        total
    })
}

/// The shards of `dirs` by split, in order of preference, in the order of the folders; a folder need not have every split. Each is
/// opened once, so that no engine begins with one that is broken.
///
/// # Errors
/// A folder without shards, or one whose build did not finish; a shard that is no Parquet or lacks a column.
pub fn shards_of(dirs: &[PathBuf]) -> Result<Vec<(Split, Vec<PathBuf>)>> {
    let mut shards = Split::ALL.map(|split| (split, Vec::new()));
    for dir in dirs {
        let has = |split: &Split| dir.join(split.name()).is_dir();
        if !Split::ALL.iter().any(has) {
            shard::shard_paths(dir, Split::Train.name())?;
        }
        for (split, paths) in shards.iter_mut().filter(|(split, _)| has(split)) {
            for path in shard::shard_paths(dir, split.name())? {
                ShardReader::open(&path)?;
                paths.push(path);
            }
        }
    }
    Ok(shards.into_iter().filter(|(_, paths)| !paths.is_empty()).collect())
}

/// Finds the duplicates in the shards of `dirs` in the memory of this machine: about 1.4 kB a document.
///
/// # Errors
/// Missing or broken shards.
pub fn find(dirs: &[PathBuf]) -> Result<Duplicates> {
    let mut rows: Vec<(String, u128, Signature)> = Vec::new();
    for path in shards_of(dirs)?.iter().flat_map(|(_, paths)| paths) {
        let mut documents = ShardReader::open(path)?;
        loop {
            let block: Vec<Document> = documents.by_ref().take(BLOCK_DOCUMENTS).collect::<shard::Result<_>>()?;
            if block.is_empty() {
                break;
            }
            rows.par_extend(block.par_iter().map(described));
        }
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let candidate = |(rank, (_, text_hash, signature)): (usize, &(String, u128, Signature))| {
        let bands = signature.bands();
        Candidate { rank, text_hash: *text_hash, bands }
    };
    let candidates: Vec<Candidate> = rows.iter().enumerate().map(candidate).collect();
    let removals = duplicates(&candidates, |a, b| Ok(rows[a].2.similarity(&rows[b].2) >= THRESHOLD))?;
    let ranks: Vec<String> = rows.into_iter().map(|(rank, ..)| rank).collect();
    Ok(found(&ranks, &candidates, removals))
}

/// The rank of a document as text, the hash of its text, and its signature.
fn described(document: &Document) -> (String, u128, Signature) {
    let text_hash = xxh3_128(document.text.as_bytes());
    (rank_of(document, &format!("{text_hash:032x}")), text_hash, Signature::of(&document.text))
}

/// The answer for candidates in the order of their ranks.
fn found(ranks: &[String], candidates: &[Candidate], removals: Vec<Option<Removal>>) -> Duplicates {
    let mut first_of = HashMap::new();
    let mut found = Duplicates::default();
    for (idx, removal) in removals.into_iter().enumerate() {
        let text_hash = candidates[idx].text_hash;
        let first = *first_of.entry(text_hash).or_insert(idx);
        let Some(removal) = removal else { continue };
        let (map, rank) = match removal.reason {
            Drop::ExactDuplicate => (&mut found.first, &ranks[first]),
            _ => (&mut found.near, &ranks[removal.kept]),
        };
        map.entry(format!("{text_hash:032x}")).or_insert_with(|| rank.clone());
    }
    found
}

/// Writes the shards of `dirs` without `duplicates` into `out`, rows in the order of the folders and of their shards, with the counts and
/// a list of what is gone. The same duplicates give the same bytes.
///
/// # Errors
/// Missing or broken shards; a row whose split or language is not that of its file; an `out` that has finished shards or cannot be
/// written.
pub fn write(dirs: &[PathBuf], out: &Path, duplicates: &Duplicates) -> Result<Counts> {
    let groups: Vec<Group> = shards_of(dirs)?.into_iter().flat_map(|(split, paths)| groups_of(split, paths)).collect();
    let marker = out.join(INCOMPLETE_NAME);
    for old in Split::ALL.map(|split| out.join(split.name())).iter().filter(|path| path.exists()) {
        if !marker.exists() {
            return Err(Error::format(old, "there are shards already; expected a folder without any"));
        }
        // Of a removal that did not finish.
        fs::remove_dir_all(old).map_err(Error::io(old))?;
    }
    fs::create_dir_all(out).map_err(Error::io(out))?;
    fs::write(&marker, "").map_err(Error::io(&marker))?;
    let written: Vec<Written> =
        groups.par_iter().with_max_len(1).map(|group| group.write(out, duplicates)).collect::<Result<_>>()?;
    let mut counts = Counts::default();
    let mut lines = String::new();
    for (group, written) in groups.iter().zip(written) {
        lines += &written.lines;
        counts.kept.entry(group.split).or_default().insert(group.language.clone(), written.kept);
        if !written.reasons.is_empty() {
            counts.dropped.entry(group.split).or_default().insert(group.language.clone(), written.reasons);
        }
    }
    write_whole(&out.join(DROPPED_NAME), lines.as_bytes())?;
    let path = out.join(COUNTS_NAME);
    write_whole(&path, &serde_json::to_vec_pretty(&counts).map_err(|error| Error::format(&path, error.to_string()))?)?;
    fs::remove_file(&marker).map_err(Error::io(&marker))?;
    Ok(counts)
}

/// The shards of one split and language, which are written by one thread.
struct Group {
    split: Split,
    language: String,
    paths: Vec<PathBuf>,
}

fn groups_of(split: Split, all: Vec<PathBuf>) -> impl Iterator<Item = Group> {
    let mut groups: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in all {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let language = stem.rsplit_once('-').map_or(&*stem, |(language, _)| language).to_owned();
        groups.entry(language).or_default().push(path);
    }
    groups.into_iter().map(move |(language, paths)| Group { split, language, paths })
}

/// What a group left behind.
#[derive(Default)]
struct Written {
    kept: Count,
    reasons: BTreeMap<Drop, Count>,
    lines: String,
}

impl Group {
    fn write(&self, out: &Path, duplicates: &Duplicates) -> Result<Written> {
        let mut writer = ShardWriter::create(out, self.split.name(), &self.language)?;
        let mut written = Written::default();
        let mut seen = HashSet::new();
        for path in &self.paths {
            for document in ShardReader::open(path)? {
                let document = document?;
                self.check(path, &document)?;
                let bytes = document.text.len() as u64;
                let Some(dropped) = judge(&document, duplicates, &mut seen) else {
                    written.kept.add(bytes);
                    writer.push(document)?;
                    continue;
                };
                written.reasons.entry(dropped.reason).or_default().add(bytes);
                let line = serde_json::to_string(&dropped).map_err(|error| Error::format(path, error.to_string()))?;
                written.lines += &format!("{line}\n");
            }
        }
        writer.finish()?;
        Ok(written)
    }

    /// A row elsewhere than it says would be ranked as what it is not.
    fn check(&self, path: &Path, document: &Document) -> Result<()> {
        let fields =
            [("split", &*document.split, self.split.name()), ("language", &*document.language, &*self.language)];
        match fields.into_iter().find(|(_, got, expected)| got != expected) {
            None => Ok(()),
            Some((field, got, expected)) => {
                let at = &document.path;
                Err(Error::format(path, format!("row of {at:?}: {field} {got:?}, expected {expected:?}, as the file")))
            }
        }
    }
}

/// Why a document goes, or `None`. Of rows that are equal in all that ranks them the first stays; `seen` has those that came.
fn judge(document: &Document, duplicates: &Duplicates, seen: &mut HashSet<String>) -> Option<Dropped> {
    let text_hash = text_hash(&document.text);
    let first = duplicates.first.get(&text_hash);
    let near = duplicates.near.get(&text_hash);
    let is_first = first.is_none_or(|first| *first == rank_of(document, &text_hash) && seen.insert(text_hash));
    let (reason, kept) = match (is_first, near) {
        (true, None) => return None,
        (true, Some(kept)) => (Drop::NearDuplicate, kept),
        (false, _) => (Drop::ExactDuplicate, near.or(first)?),
    };
    let mut parts = kept.split(SEPARATOR).map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let split = part().split_off(1);
    Some(Dropped {
        split: document.split.clone(),
        language: document.language.clone(),
        package: document.package.clone(),
        path: document.path.clone(),
        sha256: document.sha256(),
        reason,
        kept: [split, part(), part()],
    })
}

#[cfg(test)]
mod tests;
