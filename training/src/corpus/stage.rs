//! The first half of a build, one input at a time: read, detect, filter, mask. What is kept lies in the stage folder as
//! `<input>.parquet` with `<input>.json` beside it (written last), and is used again as long as its key is the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use multicoder_grammars::LanguageId;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::budget::taking_order;
use super::dataset::{self, Record};
use super::filter::{self, Drop};
use super::input::Input;
use super::walk::SourceFile;
use super::{Error, Result, licence, mask, write_whole};
use crate::data::shard::{Document, write_file};

/// Change this when a rule of filtering changes: everything staged is then done again.
const RULES_VERSION: u32 = 1;
/// Files handled at once; between such blocks it is seen whether the input has given enough.
const BLOCK_FILES: usize = 256;

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
    pub text_hash: String,
}

/// One staged input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Staged {
    key: String,
    /// Kept files, sorted by path.
    pub files: Vec<StagedFile>,
    /// Dropped files.
    pub drops: Drops,
    /// Files in which something was masked.
    pub n_masked: u64,
}

/// How to stage.
pub struct StageOptions<'a> {
    /// The stage folder.
    pub folder: &'a Path,
    /// Most bytes of a language that one input may give, by the kept name.
    pub limits: &'a BTreeMap<String, u64>,
    /// Limit of languages that `limits` does not name.
    pub default_limit: u64,
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

/// Stages one input, or finds it staged.
///
/// # Errors
/// Unreadable tree, stage folder not writable.
pub fn stage(input: &Input, options: &StageOptions<'_>) -> Result<Staged> {
    let parquet = parquet_path(options.folder, input);
    let json = parquet.with_extension("json");
    let files = input.files()?;
    let key = key_of(input, &files, options);
    if let Some(staged) = read_staged(&json).filter(|staged| staged.key == key && parquet.exists()) {
        return Ok(staged);
    }
    let mut kept = take(input, files, options)?;
    kept.files.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    let (files, documents) = kept.files.into_iter().unzip();
    write_file(&parquet, documents)?;
    let staged = Staged { key, files, drops: kept.drops, n_masked: kept.n_masked };
    let bytes = serde_json::to_vec(&staged).map_err(|e| Error::format(&json, e.to_string()))?;
    write_whole(&json, &bytes)?;
    Ok(staged)
}

fn read_staged(json: &Path) -> Option<Staged> {
    serde_json::from_slice(&fs::read(json).ok()?).ok()
}

/// Everything on which the outcome depends; one's own folders by names, sizes and times of their files.
fn key_of(input: &Input, files: &[SourceFile], options: &StageOptions<'_>) -> String {
    let mut text = format!("{RULES_VERSION} {input:?}");
    for name in input.languages.values() {
        text += &format!(" {}", options.limit(name));
    }
    if input.content.is_empty() {
        for file in files {
            let meta = file.path.metadata().ok();
            let time = meta.as_ref().and_then(|m| m.modified().ok());
            text += &format!(" {} {:?} {time:?}", file.inner, meta.map(|m| m.len()));
        }
    }
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

#[derive(Default)]
struct Kept {
    files: Vec<(StagedFile, Document)>,
    bytes_by_language: BTreeMap<String, u64>,
    drops: Drops,
    n_masked: u64,
}

/// Takes files, code before tests, or the rows of a data set in their order, until every language has given as much as it may.
fn take(input: &Input, mut files: Vec<SourceFile>, options: &StageOptions<'_>) -> Result<Kept> {
    let mut kept = Kept::default();
    if let Some(columns) = &input.columns {
        let mut records = dataset::records(&input.root, columns)?.enumerate();
        while !kept.is_full(input, options) {
            let block = records.by_ref().take(BLOCK_FILES).map(|(row, record)| Ok((row, record?)));
            let block: Vec<(usize, Record)> = block.collect::<Result<_>>()?;
            if block.is_empty() {
                break;
            }
            kept.add_block(&block, |(row, record)| Ok(judge_record(input, *row, record)), options)?;
        }
        return Ok(kept);
    }
    files.sort_by_cached_key(|file| (taking_order(&file.inner), file.inner.clone()));
    for block in files.chunks(BLOCK_FILES) {
        if kept.is_full(input, options) {
            break;
        }
        kept.add_block(block, |file| judge(input, file), options)?;
    }
    Ok(kept)
}

impl Kept {
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
        judged.into_iter().for_each(|judged| self.add(judged, &|name| options.limit(name)));
        Ok(())
    }

    fn add(&mut self, judged: Judged, limit_of: &dyn Fn(&str) -> u64) {
        match judged {
            Judged::OtherLanguage => {}
            Judged::Dropped { language, reason, bytes } => self.count(language, reason, bytes),
            Judged::Kept(kept) => {
                let KeptFile { file, document, masked } = *kept;
                let taken = self.bytes_by_language.entry(file.language.clone()).or_default();
                if *taken >= limit_of(&file.language) {
                    return self.count(file.language, Drop::OverPackageLimit, file.bytes);
                }
                *taken += file.bytes;
                self.n_masked += u64::from(masked);
                self.files.push((file, document));
            }
        }
    }

    fn count(&mut self, language: String, reason: Drop, bytes: u64) {
        self.drops.entry(language).or_default().entry(reason).or_default().add(bytes);
    }
}

enum Judged {
    OtherLanguage,
    Dropped { language: String, reason: Drop, bytes: u64 },
    Kept(Box<KeptFile>),
}

struct KeptFile {
    file: StagedFile,
    document: Document,
    masked: bool,
}

fn judge(input: &Input, file: &SourceFile) -> Result<Judged> {
    let Ok(meta) = file.path.metadata() else { return Ok(Judged::OtherLanguage) };
    let bytes = meta.len();
    if bytes > filter::MAX_FILE_BYTES {
        let by_name = filter::language_of(&file.inner, "", input.prior());
        let language = by_name.and_then(|id| input.languages.get(&id));
        return Ok(language.map_or(Judged::OtherLanguage, |language| Judged::Dropped {
            language: language.clone(),
            reason: Drop::TooLarge,
            bytes,
        }));
    }
    let content = fs::read(&file.path).map_err(Error::io(&file.path))?;
    let lossy = String::from_utf8_lossy(&content[..content.len().min(1 << 16)]);
    let id = filter::language_of(&file.inner, &lossy, input.prior());
    let Some((id, language)) = id.and_then(|id| Some((id, input.languages.get(&id)?))) else {
        return Ok(Judged::OtherLanguage);
    };
    let origin = Origin { path: &file.inner, package: &input.package, licence: &input.licence };
    Ok(cleaned(input, &origin, &file.inner, (id, language), &content))
}

/// A row of a data set, with a licence of its own where the set states one.
fn judge_record(input: &Input, row: usize, record: &Record) -> Judged {
    let bytes = record.text.len() as u64;
    let named = LanguageId::by_linguist_name(&record.language).or_else(|| LanguageId::by_name(&record.language));
    let head = filter::head_bytes(&record.text, 1 << 16);
    let found = match record.path.is_empty() {
        true => named,
        false => filter::language_of(&record.path, head, named.or_else(|| input.prior())),
    };
    let Some((id, language)) = found.and_then(|id| Some((id, input.languages.get(&id)?))) else {
        return Judged::OtherLanguage;
    };
    let dropped = |reason| Judged::Dropped { language: language.clone(), reason, bytes };
    if bytes > filter::MAX_FILE_BYTES {
        return dropped(Drop::TooLarge);
    }
    if !record.licence.is_empty() && !licence::allowed(&record.licence) {
        return dropped(Drop::Licence);
    }
    let or = |value: &str, other: &str| if value.is_empty() { other.to_owned() } else { value.to_owned() };
    let path = or(&record.path, &format!("row-{row:08}"));
    let (package, licence) = (or(&record.package, &input.package), or(&record.licence, &input.licence));
    let origin = Origin { path: &path, package: &package, licence: &licence };
    // Repositories are the modules by which a data set is divided.
    cleaned(input, &origin, &format!("{package}/{path}"), (id, language), record.text.as_bytes())
}

/// Where a text comes from.
struct Origin<'a> {
    path: &'a str,
    package: &'a str,
    licence: &'a str,
}

/// What becomes of a text in `language`, staged under the path `inner`.
fn cleaned(
    input: &Input,
    origin: &Origin<'_>,
    inner: &str,
    (id, language): (LanguageId, &String),
    content: &[u8],
) -> Judged {
    match clean(origin.path, content, id) {
        Err(reason) => Judged::Dropped { language: language.clone(), reason, bytes: content.len() as u64 },
        Ok((text, masked)) => {
            let (file, document) = staged_file(input, origin, inner, language, text);
            Judged::Kept(Box::new(KeptFile { file, document, masked }))
        }
    }
}

/// Text that passes every filter, masked; and whether something was masked.
fn clean(path: &str, content: &[u8], language: LanguageId) -> std::result::Result<(String, bool), Drop> {
    filter::check_path(path, language)?;
    let text = filter::decode(content)?;
    filter::check_text(&text, language)?;
    Ok(match mask::mask(&text) {
        Some(masked) => (masked, true),
        None => (text, false),
    })
}

fn staged_file(
    input: &Input,
    origin: &Origin<'_>,
    inner: &str,
    language: &str,
    text: String,
) -> (StagedFile, Document) {
    let staged = StagedFile {
        path: inner.to_owned(),
        language: language.to_owned(),
        bytes: text.len() as u64,
        text_hash: format!("{:032x}", xxh3_128(text.as_bytes())),
    };
    let document = Document {
        text,
        language: language.to_owned(),
        path: origin.path.to_owned(),
        package: origin.package.to_owned(),
        source: input.source.clone(),
        licence: origin.licence.to_owned(),
        split: String::new(),
    };
    (staged, document)
}
