//! The other open documents as tokens, from which a model's next ones are guessed.

use multicoder_model::{Elsewhere, Error, Tokenizer};

use crate::documents::Snapshot;
use crate::prompt::with_newlines;

/// Documents that are read.
pub const MAX_DOCUMENTS: usize = 8;
/// Of each document, from its beginning, in bytes and up to a line's end.
const MAX_BYTES: usize = 16_000;

/// What was read.
#[derive(Default)]
pub struct Reader {
    texts: Vec<Text>,
}

/// A document as it was read.
struct Text {
    uri: String,
    revision: u64,
    ids: Vec<u32>,
}

impl Reader {
    /// All of `others`, of which only what changed is read again; nothing where none did, or when `cancelled`.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn read(
        &mut self,
        others: &[Snapshot],
        tokenizer: &Tokenizer,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Elsewhere>, Error> {
        let is_same = |(text, other): (&Text, &Snapshot)| text.uri == other.uri && text.revision == other.revision;
        if self.texts.len() == others.len() && self.texts.iter().zip(others).all(is_same) {
            return Ok(None);
        }
        let mut texts = Vec::with_capacity(others.len());
        for other in others {
            if cancelled() {
                return Ok(None);
            }
            let known = self.texts.iter().position(|text| is_same((text, other)));
            let text = match known {
                Some(at) => self.texts.swap_remove(at),
                None => {
                    Text { uri: other.uri.clone(), revision: other.revision, ids: tokenizer.encode(&start(other))? }
                }
            };
            texts.push(text);
        }
        self.texts = texts;
        // Of equal matches the last one read counts: that of the document changed last.
        let newest_last = self.texts.iter().rev().map(|text| text.ids.as_slice());
        Ok(Some(Elsewhere::of(newest_last, tokenizer.special().end_of_text)))
    }
}

/// The beginning of a document, in whole lines.
fn start(document: &Snapshot) -> String {
    let text = &document.text;
    let last_line = text.byte_to_line(MAX_BYTES.min(text.len_bytes()));
    let end = if text.len_bytes() <= MAX_BYTES { text.len_chars() } else { text.line_to_char(last_line) };
    with_newlines(&text.slice(..end).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use multicoder_model::tokenizer::TokenizerOptions;

    fn document(uri: &str, revision: u64, text: &str) -> Snapshot {
        Snapshot { uri: uri.to_owned(), revision, ..Snapshot::from_file(uri.into(), text) }
    }

    #[test]
    fn what_changed_is_read_again_and_nothing_else() {
        let options = TokenizerOptions { vocab_size: 270, min_frequency: 2, ..TokenizerOptions::default() };
        let tokenizer = Tokenizer::train(std::iter::repeat_n("x = 1\n", 8), &options).unwrap();
        let n_tokens = |text: &str| tokenizer.encode(text).unwrap().len() + 1;
        let (a, b) = (document("a", 1, "local a\r\n"), document("b", 2, "b = 2\n"));
        let mut reader = Reader::default();
        let mut read = |others: &[Snapshot], is_cancelled: bool| {
            reader.read(others, &tokenizer, &|| is_cancelled).unwrap().map(|of| of.n_tokens())
        };
        assert_eq!(read(&[a.clone(), b.clone()], true), None);
        assert_eq!(read(&[a.clone(), b.clone()], false), Some(n_tokens("local a\n") + n_tokens("b = 2\n")));
        assert_eq!(read(&[a.clone(), b.clone()], false), None);
        let changed = document("b", 3, "b = 2, 3\n");
        assert_eq!(read(&[changed.clone(), a.clone()], false), Some(n_tokens("local a\n") + n_tokens("b = 2, 3\n")));
        assert_eq!(read(&[changed], false), Some(n_tokens("b = 2, 3\n")));
        assert_eq!(read(&[], false), Some(0));
    }

    #[test]
    fn of_a_long_document_the_first_lines_are_read() {
        let text = "local \u{e9} = 1\n".repeat(2000);
        let start = start(&document("a", 1, &text));
        assert!(start.len() <= MAX_BYTES && start.len() > MAX_BYTES - 20 && start.ends_with('\n'), "{}", start.len());
        assert_eq!(super::start(&document("a", 1, "no end")), "no end");
    }
}
