//! The first half of a build, one input at a time: read, detect, filter, mask. What is kept lies in the stage folder as
//! `<input>.parquet`, with `<input>.minhash` (a signature a row) and `<input>.json` (written last) beside it, and is used again as
//! long as its key is the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

use super::budget::taking_order;
use super::dataset::{self, Columns, Record};
use super::filter::Drop;
use super::input::Input;
use super::judge::{Judged, Rules, judge, judge_record};
use super::spill::{HELD_BYTES, Spill, signatures_path};
use super::walk::SourceFile;
use super::{Error, Result, write_whole};

/// Change this when a rule of filtering changes: everything staged is then done again.
const RULES_VERSION: u32 = 6;
/// Files handled at once; between such blocks it is seen whether the input has given enough.
const BLOCK_FILES: usize = 128;

/// Number and bytes of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Files.
    pub files: u64,
    /// Bytes of text.
    pub bytes: u64,
}

impl Count {
    /// One more file.
    pub fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }

    /// All of another count.
    pub fn add_all(&mut self, other: Count) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// Drops by language (empty where it was not asked), then by reason.
pub type Drops = BTreeMap<String, BTreeMap<Drop, Count>>;

/// What is known of a kept file without its text; in the order of the Parquet rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StagedFile {
    /// Path inside the package.
    pub path: String,
    /// Name under which the language is kept.
    pub language: String,
    /// Bytes of text.
    pub bytes: u64,
    /// Hash of the text.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub text_hash: u128,
    /// Windows shared with a benchmark.
    #[serde(default, skip_serializing_if = "<[u64]>::is_empty")]
    pub hits: Box<[u64]>,
}

/// JSON has no integers of 128 bits.
fn to_hex<S: Serializer>(hash: &u128, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{hash:032x}"))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u128, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    u128::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
}

/// One staged input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Staged {
    key: String,
    /// Kept files.
    pub files: Vec<StagedFile>,
    /// Dropped files.
    pub drops: Drops,
    /// Files in which something was masked.
    pub n_masked: u64,
    /// Files in no language that is wanted.
    #[serde(default)]
    pub n_other: u64,
    /// Whether it was there already.
    #[serde(skip)]
    pub reused: bool,
}

impl Staged {
    /// Changes with everything on which the outcome depends.
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// How to stage.
pub struct StageOptions<'a> {
    /// The stage folder.
    pub folder: &'a Path,
    /// Most bytes of a language that one input may give, by the kept name.
    pub limits: &'a BTreeMap<String, u64>,
    /// Limit of languages that `limits` does not name.
    pub default_limit: u64,
    /// What every file is held against.
    pub rules: &'a Rules,
    /// Says what is being worked on.
    pub bar: &'a ProgressBar,
}

impl StageOptions<'_> {
    /// Most bytes of `language` from one input. It decides what is staged, hence (by [`super::budget::divide_by_module`])
    /// which module of a divided package is in which split: after a change of budgets, measure a model only on the
    /// corpus that it was trained on.
    fn limit(&self, language: &str) -> u64 {
        self.limits.get(language).copied().unwrap_or(self.default_limit)
    }
}

/// Path of the staged documents of an input.
pub fn parquet_path(folder: &Path, input: &Input) -> PathBuf {
    folder.join(format!("{}.parquet", input.key.replace('/', "+")))
}

/// Path of the signatures of an input: [`super::minhash::SIGNATURE_BYTES`] for each staged document.
pub fn minhash_path(folder: &Path, input: &Input) -> PathBuf {
    signatures_path(&parquet_path(folder, input))
}

/// Stages one input, or finds it staged. Holds 128 MiB of text in memory, and what one block of files takes.
///
/// # Errors
/// Unreadable tree, stage folder not writable.
pub fn stage(input: &Input, options: &StageOptions<'_>) -> Result<Staged> {
    let parquet = parquet_path(options.folder, input);
    let json = parquet.with_extension("json");
    let key = key_of(input, options)?;
    if let Some(staged) = read_staged(&json).filter(|staged| staged.key == key && parquet.exists()) {
        return Ok(Staged { reused: true, ..staged });
    }
    let tree = input.unpack(&parquet)?;
    let mut taken = Taken::new(&parquet);
    match &input.columns {
        Some(columns) => take_rows(input, columns, options, &mut taken)?,
        None => take_files(input, input.files(tree.as_deref().unwrap_or(&input.root))?, options, &mut taken)?,
    }
    if let Some(tree) = tree {
        fs::remove_dir_all(&tree).map_err(Error::io(&tree))?;
    }
    let files = taken.spill.finish()?;
    let Taken { drops, n_masked, n_other, .. } = taken;
    let staged = Staged { key, files, drops, n_masked, n_other, reused: false };
    let bytes = serde_json::to_vec(&staged).map_err(|e| Error::format(&json, e.to_string()))?;
    write_whole(&json, &bytes)?;
    Ok(staged)
}

fn read_staged(json: &Path) -> Option<Staged> {
    serde_json::from_slice(&fs::read(json).ok()?).ok()
}

/// Everything on which the outcome depends; one's own folders by names, sizes and times of their files.
fn key_of(input: &Input, options: &StageOptions<'_>) -> Result<String> {
    let mut text = format!("{RULES_VERSION} {input:?} {}", options.rules.fingerprint());
    for name in input.languages.values() {
        text += &format!(" {}", options.limit(name));
    }
    if input.content.is_empty() {
        for file in input.files(&input.root)? {
            let meta = file.path.metadata().ok();
            let time = meta.as_ref().and_then(|m| m.modified().ok());
            text += &format!(" {} {:?} {time:?}", file.inner, meta.map(|m| m.len()));
        }
    }
    Ok(format!("{:016x}", xxh3_64(text.as_bytes())))
}

/// What an input has given so far.
struct Taken {
    spill: Spill,
    bytes_by_language: BTreeMap<String, u64>,
    drops: Drops,
    n_masked: u64,
    n_other: u64,
    n_seen: usize,
}

/// Takes the rows of a data set in their order, until every language has given as much as it may.
fn take_rows(input: &Input, columns: &Columns, options: &StageOptions<'_>, taken: &mut Taken) -> Result<()> {
    let mut records = dataset::records(&input.root, columns)?.enumerate();
    while !taken.is_full(input, options) {
        let block = records.by_ref().take(BLOCK_FILES).map(|(row, record)| Ok((row, record?)));
        let block: Vec<(usize, Record)> = block.collect::<Result<_>>()?;
        if block.is_empty() {
            break;
        }
        taken.add_block(&block, |(row, record)| Ok(judge_record(input, *row, record, options.rules)), options)?;
        taken.tell(input, options.bar);
    }
    Ok(())
}

/// Takes files, code before tests, until every language has given as much as it may.
fn take_files(input: &Input, mut files: Vec<SourceFile>, options: &StageOptions<'_>, taken: &mut Taken) -> Result<()> {
    files.sort_by_cached_key(|file| (taking_order(&file.inner), file.inner.clone()));
    for block in files.chunks(BLOCK_FILES) {
        if taken.is_full(input, options) {
            break;
        }
        taken.add_block(block, |file| judge(input, file, options.rules), options)?;
        taken.tell(input, options.bar);
    }
    Ok(())
}

impl Taken {
    fn new(parquet: &Path) -> Self {
        let spill = Spill::new(parquet, HELD_BYTES);
        Self { spill, bytes_by_language: BTreeMap::new(), drops: Drops::new(), n_masked: 0, n_other: 0, n_seen: 0 }
    }

    fn is_full(&self, input: &Input, options: &StageOptions<'_>) -> bool {
        let full = |name: &String| self.bytes_by_language.get(name).is_some_and(|bytes| *bytes >= options.limit(name));
        input.languages.values().all(full)
    }

    /// Judges a block on all cores and adds what is kept, in order.
    fn add_block<T: Sync>(
        &mut self,
        block: &[T],
        judge: impl Fn(&T) -> Result<Judged> + Sync,
        options: &StageOptions<'_>,
    ) -> Result<()> {
        let judged: Vec<Judged> = block.par_iter().map(&judge).collect::<Result<_>>()?;
        self.n_seen += block.len();
        judged.into_iter().try_for_each(|judged| self.add(judged, options))
    }

    fn add(&mut self, judged: Judged, options: &StageOptions<'_>) -> Result<()> {
        match judged {
            Judged::OtherLanguage => self.n_other += 1,
            Judged::Dropped { language, reason, bytes } => self.count(language, reason, bytes),
            Judged::Kept(kept) => {
                let taken = self.bytes_by_language.entry(kept.file.language.clone()).or_default();
                if *taken >= options.limit(&kept.file.language) {
                    self.count(kept.file.language, Drop::OverPackageLimit, kept.file.bytes);
                    return Ok(());
                }
                *taken += kept.file.bytes;
                self.n_masked += u64::from(kept.masked);
                self.spill.push(*kept)?;
            }
        }
        Ok(())
    }

    fn tell(&self, input: &Input, bar: &ProgressBar) {
        bar.set_message(format!("{}: {} files", input.key, self.n_seen));
    }

    fn count(&mut self, language: String, reason: Drop, bytes: u64) {
        self.drops.entry(language).or_default().entry(reason).or_default().add(bytes);
    }
}
