//! One split of a corpus as tokens, cut at line ends into windows: the unit that is shuffled.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use multicoder_grammars::LanguageId;
use multicoder_model::Tokenizer;
use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::tokenize::{self, TokenFolder};
use super::tokens::Tokens;
use super::vocabulary::Vocabulary;
use crate::config::DataConfig;

/// A stretch of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Number of the document in [`Tokens`].
    pub document: u32,
    /// Number of tokens.
    pub n_tokens: u32,
    /// First token, at a line start.
    pub start: u64,
}

impl Window {
    /// Its tokens from `offset` after its start.
    pub fn rest(&self, offset: u64) -> Range<usize> {
        let n_tokens = u64::from(self.n_tokens);
        (self.start + offset.min(n_tokens)) as usize..(self.start + n_tokens) as usize
    }
}

/// The documents of one language.
#[derive(Debug)]
pub struct LanguageTexts {
    /// Name as in `multicoder_grammars::LANGUAGES`.
    pub name: String,
    /// Row of the language table, for parse trees.
    pub grammar: Option<LanguageId>,
    /// Whole files.
    pub tokens: Tokens,
    /// All windows, in document order.
    pub windows: Vec<Window>,
}

impl LanguageTexts {
    /// Whether a window reaches the end of its document.
    pub fn ends_document(&self, window: Window) -> bool {
        window.rest(0).end == self.tokens.document(window.document as usize).end
    }

    /// Bytes of all documents.
    pub fn n_bytes(&self) -> usize {
        self.tokens.text_bytes()
    }

    /// Mean bytes of a token.
    pub fn bytes_per_token(&self) -> f64 {
        self.n_bytes() as f64 / self.tokens.n_tokens().max(1) as f64
    }
}

/// One split of a corpus.
#[derive(Debug)]
pub struct Texts {
    /// In the order of `data.languages`; a language without documents is there, empty.
    pub languages: Vec<LanguageTexts>,
    /// Of the tokenizer that made the tokens.
    pub vocabulary: Vocabulary,
    /// Hash of every text and of how it was cut: a cursor is valid for one fingerprint only.
    pub fingerprint: u64,
}

impl Texts {
    /// Opens the tokens of `split`, made where they are not there yet, and cuts windows of about `data.window_tokens`.
    ///
    /// # Errors
    /// Missing or broken shards; a folder of tokens that cannot be written; no document in any of the languages.
    pub fn open(data: &DataConfig, split: &str, tokenizer: &Tokenizer) -> Result<Texts> {
        let shards = Path::new(&data.shards);
        let folder = if data.tokens.is_empty() { shards.join("tokens") } else { PathBuf::from(&data.tokens) };
        let tokens = tokenize::open(TokenFolder { shards, tokens: &folder, split }, &data.languages, tokenizer)?;
        ensure!(
            tokens.iter().any(|tokens| tokens.n_documents() > 0),
            "{}: split `{split}` holds no document in any of: {}",
            shards.display(),
            data.languages.join(", ")
        );
        let vocabulary = Vocabulary::of(tokenizer);
        let language = |(name, tokens): (&String, Tokens)| LanguageTexts {
            windows: windows(&tokens, &vocabulary, data.window_tokens),
            grammar: LanguageId::by_name(name),
            name: name.clone(),
            tokens,
        };
        let languages: Vec<LanguageTexts> = data.languages.iter().zip(tokens).map(language).collect();
        let fingerprint = fingerprint(&languages, data.window_tokens);
        Ok(Texts { languages, vocabulary, fingerprint })
    }

    /// Number of documents in all languages.
    pub fn n_documents(&self) -> usize {
        self.languages.iter().map(|texts| texts.tokens.n_documents()).sum()
    }

    /// Bytes in all languages.
    pub fn n_bytes(&self) -> usize {
        self.languages.iter().map(LanguageTexts::n_bytes).sum()
    }
}

/// Each cut looks at the tokens before it alone, so that opening does not read the whole text.
fn windows(tokens: &Tokens, vocabulary: &Vocabulary, window_tokens: usize) -> Vec<Window> {
    let cut = |document: usize| cut_windows(tokens, document, vocabulary, window_tokens);
    (0..tokens.n_documents()).into_par_iter().with_min_len(64).flat_map_iter(cut).collect()
}

fn cut_windows(tokens: &Tokens, document: usize, vocabulary: &Vocabulary, window_tokens: usize) -> Vec<Window> {
    let Range { mut start, end } = tokens.document(document);
    let mut windows = Vec::new();
    while start < end {
        // A tail shorter than a quarter of a window is not worth a window of its own.
        let n_tokens = if end - start <= window_tokens + window_tokens / 4 {
            end - start
        } else {
            tokens.line_cut(vocabulary, start..end, window_tokens)
        };
        windows.push(Window { document: document as u32, n_tokens: n_tokens as u32, start: start as u64 });
        start += n_tokens;
    }
    windows
}

fn fingerprint(languages: &[LanguageTexts], window_tokens: usize) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(window_tokens as u64).to_le_bytes());
    for texts in languages {
        hash.update(&(texts.name.len() as u64).to_le_bytes());
        hash.update(texts.name.as_bytes());
        hash.update(&texts.tokens.content().to_le_bytes());
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::super::tokenize::tests::store;
    use super::*;

    #[test]
    fn windows_cover_a_document_and_end_at_lines() {
        let text: String = (0..500).map(|n| format!("let größe_{n} = {n};\n")).collect();
        let store = store(&["local a = 1\n", &text]);
        let windows = windows(&store.tokens, &store.vocabulary, 100);
        assert!(windows.len() > 10 && windows[0].document == 0);
        let mut at = store.tokens.document(1).start;
        for window in &windows[1..] {
            assert_eq!((window.document, window.rest(0).start), (1, at));
            at = window.rest(0).end;
            assert!(store.vocabulary.holds_line_end(store.tokens.ids(at - 1..at)[0]));
            assert!(window.n_tokens <= 125);
        }
        assert_eq!(at, store.tokens.n_tokens());
    }

    #[test]
    fn a_line_longer_than_a_window_is_cut_at_characters() {
        let store = store(&["ä".repeat(1000).as_str()]);
        let windows = windows(&store.tokens, &store.vocabulary, 17);
        assert_eq!(windows.last().map(|window| window.rest(0).end), Some(store.tokens.n_tokens()));
        assert!(windows.len() > 3);
        for window in windows {
            let text: Vec<u8> = store.text_of(window.rest(0));
            assert!(String::from_utf8(text).is_ok(), "{window:?}");
        }
    }
}
