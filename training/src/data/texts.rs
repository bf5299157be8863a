//! The documents of one split in memory, cut at line ends into windows: the unit that is shuffled.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use multicoder_grammars::LanguageId;
use multicoder_model::Tokenizer;
use xxhash_rust::xxh3::Xxh3;

use super::shard;

/// Text tokenized per language to learn how many bytes a token has there.
const SAMPLE_BYTES: usize = 200_000;

/// A stretch of a document, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Index into [`LanguageTexts::documents`].
    pub document: u32,
    /// First byte, at a line start.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// The documents of one language.
#[derive(Clone, Debug)]
pub struct LanguageTexts {
    /// Name as in `multicoder_grammars::LANGUAGES`.
    pub name: String,
    /// Row of the language table, for parse trees.
    pub grammar: Option<LanguageId>,
    /// Whole files.
    pub documents: Vec<String>,
    /// All windows, in document order.
    pub windows: Vec<Window>,
    /// Bytes of all documents.
    pub n_bytes: usize,
    /// Mean bytes of a token, measured on a sample.
    pub bytes_per_token: f64,
}

impl LanguageTexts {
    /// The text of a window from `offset` bytes after its start.
    pub fn text(&self, window: Window, offset: usize) -> &str {
        let start = window.start as usize + offset;
        self.documents[window.document as usize].get(start..window.end as usize).unwrap_or("")
    }

    /// Whether a window reaches the end of its document.
    pub fn ends_document(&self, window: Window) -> bool {
        window.end as usize == self.documents[window.document as usize].len()
    }
}

/// One split of a corpus.
#[derive(Clone, Debug)]
pub struct Texts {
    /// In the order of the names given to [`Texts::load`]; a language without documents is there, empty.
    pub languages: Vec<LanguageTexts>,
    /// Hash of every text and of how it was cut: a cursor is valid for one fingerprint only.
    pub fingerprint: u64,
}

impl Texts {
    /// Reads the documents of `split` under `shards` whose language is in `languages`, and cuts windows of about `window_tokens`.
    ///
    /// # Errors
    /// Missing or broken shards; no document in any of the languages.
    pub fn load(
        shards: &Path,
        split: &str,
        languages: &[String],
        tokenizer: &Tokenizer,
        window_tokens: usize,
    ) -> Result<Texts> {
        let mut documents: Vec<Vec<String>> = vec![Vec::new(); languages.len()];
        for document in shard::read_split(shards, split)? {
            let document = document?;
            let slot = languages.iter().position(|name| *name == document.language);
            if let Some(slot) = slot.filter(|_| !document.text.is_empty()) {
                documents[slot].push(document.text);
            }
        }
        ensure!(
            documents.iter().any(|texts| !texts.is_empty()),
            "{}: split `{split}` holds no document in any of: {}",
            shards.display(),
            languages.join(", ")
        );
        let languages = languages.iter().zip(documents).map(|(name, documents)| {
            language_texts(name, documents, tokenizer, window_tokens).with_context(|| format!("language {name}"))
        });
        let languages: Vec<LanguageTexts> = languages.collect::<Result<_>>()?;
        let fingerprint = fingerprint(&languages);
        Ok(Texts { languages, fingerprint })
    }

    /// Number of documents in all languages.
    pub fn n_documents(&self) -> usize {
        self.languages.iter().map(|texts| texts.documents.len()).sum()
    }

    /// Bytes in all languages.
    pub fn n_bytes(&self) -> usize {
        self.languages.iter().map(|texts| texts.n_bytes).sum()
    }
}

fn language_texts(
    name: &str,
    documents: Vec<String>,
    tokenizer: &Tokenizer,
    window_tokens: usize,
) -> Result<LanguageTexts> {
    let n_bytes = documents.iter().map(String::len).sum();
    let bytes_per_token = bytes_per_token(&documents, tokenizer)?;
    let window_bytes = (window_tokens as f64 * bytes_per_token) as usize;
    let mut windows = Vec::new();
    for (idx, document) in documents.iter().enumerate() {
        cut_windows(document, idx as u32, window_bytes, &mut windows);
    }
    let grammar = LanguageId::by_name(name);
    Ok(LanguageTexts { name: name.to_owned(), grammar, documents, windows, n_bytes, bytes_per_token })
}

fn bytes_per_token(documents: &[String], tokenizer: &Tokenizer) -> Result<f64> {
    let (mut n_bytes, mut n_tokens) = (0, 0);
    let stride = (documents.len() / 64).max(1);
    for document in documents.iter().step_by(stride) {
        let text = &document[..floor_char(document, SAMPLE_BYTES / 16)];
        n_tokens += tokenizer.encode(text)?.len();
        n_bytes += text.len();
        if n_bytes >= SAMPLE_BYTES {
            break;
        }
    }
    Ok(if n_tokens == 0 { 3.0 } else { n_bytes as f64 / n_tokens as f64 })
}

fn cut_windows(text: &str, document: u32, window_bytes: usize, windows: &mut Vec<Window>) {
    let mut start = 0;
    while start < text.len() {
        // A tail shorter than a quarter of a window is not worth a window of its own.
        let length = if text.len() - start <= window_bytes + window_bytes / 4 {
            text.len() - start
        } else {
            line_cut(&text[start..], window_bytes)
        };
        windows.push(Window { document, start: start as u32, end: (start + length) as u32 });
        start += length;
    }
}

/// Length of the longest run of whole lines of at most `max_bytes` at the start of `text`; of a part of a line when the first line is
/// longer than that. At least one character, so that a caller that loops makes progress.
pub fn line_cut(text: &str, max_bytes: usize) -> usize {
    if text.len() <= max_bytes {
        return text.len();
    }
    let head = floor_char(text, max_bytes.max(4));
    text[..head].rfind('\n').map_or(head, |newline| newline + 1)
}

/// The largest character boundary of `text` that is at most `at`.
pub fn floor_char(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&idx| text.is_char_boundary(idx)).unwrap_or(0)
}

fn fingerprint(languages: &[LanguageTexts]) -> u64 {
    let mut hash = Xxh3::new();
    for texts in languages {
        hash.update(texts.name.as_bytes());
        for document in &texts.documents {
            hash.update(&(document.len() as u64).to_le_bytes());
            hash.update(document.as_bytes());
        }
        hash.update(&(texts.windows.len() as u64).to_le_bytes());
        hash.update(&texts.bytes_per_token.to_le_bytes());
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_a_document_and_end_at_lines() {
        let text: String = (0..500).map(|n| format!("let größe_{n} = {n};\n")).collect();
        let mut windows = Vec::new();
        cut_windows(&text, 3, 400, &mut windows);
        assert!(windows.len() > 10);
        let mut at = 0;
        for window in &windows {
            assert_eq!((window.document, window.start), (3, at));
            assert!(text[..window.end as usize].ends_with('\n'));
            assert!(window.end - window.start <= 500);
            at = window.end;
        }
        assert_eq!(at as usize, text.len());
    }

    #[test]
    fn a_line_longer_than_a_window_is_cut_at_characters() {
        let text = "ä".repeat(1000);
        let mut windows = Vec::new();
        cut_windows(&text, 0, 101, &mut windows);
        assert_eq!(windows.last().map(|w| w.end as usize), Some(text.len()));
        assert!(windows.iter().all(|w| text.is_char_boundary(w.start as usize)));
    }

    #[test]
    fn line_cut_always_advances() {
        assert_eq!(line_cut("abc", 0), 3);
        assert_eq!(line_cut("abcdefgh", 1), 4);
        assert_eq!(line_cut("a\nb\nccccc", 5), 4);
    }
}
