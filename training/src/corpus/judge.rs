//! What becomes of one file: its language, whether it passes the filters, its text with secrets masked, and what the later
//! comparisons need of that text.

use std::fs;

use multicoder_grammars::LanguageId;
use xxhash_rust::xxh3::xxh3_128;

use super::dataset::Record;
use super::decontaminate::Benchmarks;
use super::filter::{self, Drop};
use super::input::{Input, OWN_LICENCE, UNSTATED_LICENCE};
use super::licence::Allowed;
use super::minhash::Signature;
use super::stage::StagedFile;
use super::walk::SourceFile;
use super::{Error, Result, mask};
use crate::data::shard::Document;

/// What every file is held against.
#[derive(Default)]
pub struct Rules {
    /// Licences that a file may be under.
    pub allowed: Allowed,
    /// What must not be in the corpus.
    pub benchmarks: Benchmarks,
}

impl Rules {
    /// Changes when the rules do.
    pub fn fingerprint(&self) -> String {
        format!("{:?} {:016x}", self.allowed, self.benchmarks.fingerprint())
    }
}

/// The verdict on one file.
pub(super) enum Judged {
    /// In a language that is not wanted, or in none.
    OtherLanguage,
    /// Not kept.
    Dropped { language: String, reason: Drop, bytes: u64 },
    /// Kept.
    Kept(Box<KeptFile>),
}

/// A file that is kept.
pub(super) struct KeptFile {
    pub(super) file: StagedFile,
    pub(super) document: Document,
    pub(super) signature: Signature,
    /// Whether something was masked.
    pub(super) masked: bool,
}

/// Judges a file of a tree.
pub(super) fn judge(input: &Input, file: &SourceFile, rules: &Rules) -> Result<Judged> {
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
    Ok(cleaned(input, &origin, &file.inner, (id, language), &content, rules))
}

/// A row of a data set, with a licence of its own where the set states one.
pub(super) fn judge_record(input: &Input, row: usize, record: &Record, rules: &Rules) -> Judged {
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
    // Shards of one's own code may be read again.
    if !["", OWN_LICENCE, UNSTATED_LICENCE].contains(&&*record.licence) && !rules.allowed.permits(&record.licence) {
        return dropped(Drop::Licence);
    }
    let or = |value: &str, other: &str| if value.is_empty() { other.to_owned() } else { value.to_owned() };
    let path = or(&record.path, &format!("row-{row:08}"));
    let (package, licence) = (or(&record.package, &input.package), or(&record.licence, &input.licence));
    let origin = Origin { path: &path, package: &package, licence: &licence };
    // Repositories are the modules by which a data set is divided.
    cleaned(input, &origin, &format!("{package}/{path}"), (id, language), record.text.as_bytes(), rules)
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
    rules: &Rules,
) -> Judged {
    match clean(origin.path, content, id, rules) {
        Err(reason) => Judged::Dropped { language: language.clone(), reason, bytes: content.len() as u64 },
        Ok((text, masked)) => {
            let signature = Signature::of(&text);
            let (file, document) = staged_file(input, origin, inner, language, text, rules);
            Judged::Kept(Box::new(KeptFile { file, document, signature, masked }))
        }
    }
}

/// Text that passes every filter, masked; and whether something was masked.
fn clean(path: &str, content: &[u8], language: LanguageId, rules: &Rules) -> std::result::Result<(String, bool), Drop> {
    filter::check_path(path, language)?;
    let text = filter::decode(content)?;
    filter::check_text(&text, language, &rules.allowed)?;
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
    rules: &Rules,
) -> (StagedFile, Document) {
    let staged = StagedFile {
        path: inner.to_owned(),
        language: language.to_owned(),
        bytes: text.len() as u64,
        text_hash: xxh3_128(text.as_bytes()),
        hits: rules.benchmarks.hits(&text).into(),
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
