//! Texts beside a prompt as tokens, from which a model's next ones are guessed: other open documents, files of the project, and the
//! document itself, of which a prompt has only what is near the caret.

use multicoder_model::{Elsewhere, Error, Tokenizer};

use crate::documents::Snapshot;
use crate::prompt::with_newlines;

/// Of all texts, which in tokens and as an automaton need some 5 MiB.
pub const MAX_BYTES: usize = 128 << 10;
/// Of each text, from its beginning and up to a line's end.
pub const MAX_BYTES_EACH: usize = 32 << 10;

/// Bytes that are made tokens before it is asked whether to go on.
const PART_BYTES: usize = 1000;

/// Which document, and which state of it.
type Key = (String, u64);

/// What was read.
#[derive(Default)]
pub struct Reader {
    texts: Vec<(Key, Vec<u32>)>,
    /// What the guesses are made from now.
    made_of: Vec<Key>,
}

impl Reader {
    /// Of `others`, the most helpful first, as many as are enough; only what changed is read again, and there is nothing where none did.
    ///
    /// # Errors
    /// Those of the tokenizer; [`Error::Cancelled`] when `cancelled`: what was read until then is kept.
    pub fn read(
        &mut self,
        others: &[Snapshot],
        tokenizer: &Tokenizer,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Elsewhere>, Error> {
        let others = enough(others);
        let keys: Vec<Key> = others.iter().map(|other| (other.uri.clone(), other.revision)).collect();
        if keys == self.made_of {
            return Ok(None);
        }
        self.texts.retain(|(key, _)| keys.contains(key));
        for (key, other) in keys.iter().zip(others) {
            if !self.texts.iter().any(|(known, _)| known == key) {
                self.texts.push((key.clone(), encode(&start(other), tokenizer, cancelled)?));
            }
        }
        // Of equal matches the last one read counts: that of the most helpful.
        self.texts.sort_by_key(|(key, _)| std::cmp::Reverse(keys.iter().position(|other| other == key)));
        let texts = self.texts.iter().map(|(_, ids)| ids.as_slice());
        let elsewhere = Elsewhere::of(texts, tokenizer.special().end_of_text, cancelled).ok_or(Error::Cancelled)?;
        self.made_of = keys;
        Ok(Some(elsewhere))
    }
}

/// A few lines at a time, so that whoever asks for something does not wait for all of a text. Tokens end with lines.
fn encode(text: &str, tokenizer: &Tokenizer, cancelled: &dyn Fn() -> bool) -> Result<Vec<u32>, Error> {
    let (mut ids, mut from) = (Vec::new(), 0);
    for end in text.match_indices('\n').map(|(at, _)| at + 1).chain([text.len()]) {
        if end == from || end - from < PART_BYTES && end < text.len() {
            continue;
        }
        if cancelled() {
            return Err(Error::Cancelled);
        }
        ids.extend(tokenizer.encode(&text[from..end])?);
        from = end;
    }
    Ok(ids)
}

/// The first of them, up to [`MAX_BYTES`] together.
fn enough(others: &[Snapshot]) -> &[Snapshot] {
    let n_bytes = others.iter().scan(0, |sum, other| {
        *sum += other.text.len_bytes().min(MAX_BYTES_EACH);
        Some(*sum)
    });
    &others[..n_bytes.take_while(|&sum| sum <= MAX_BYTES).count()]
}

/// The beginning of a document, in whole lines.
fn start(document: &Snapshot) -> String {
    let text = &document.text;
    let last_line = text.byte_to_line(MAX_BYTES_EACH.min(text.len_bytes()));
    let end = if text.len_bytes() <= MAX_BYTES_EACH { text.len_chars() } else { text.line_to_char(last_line) };
    with_newlines(&text.slice(..end).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use multicoder_model::tokenizer::TokenizerOptions;
    use std::cell::Cell;

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
        let read = |reader: &mut Reader, others: &[Snapshot], n_free: usize| {
            let n_asked = Cell::new(0);
            let cancelled = || n_asked.replace(n_asked.get() + 1) >= n_free;
            let read = reader.read(others, &tokenizer, &cancelled);
            match read {
                Err(Error::Cancelled) => None,
                read => Some(read.unwrap().map(|of| of.n_tokens())),
            }
        };
        let both = [a.clone(), b.clone()];
        assert_eq!(read(&mut reader, &both, 0), None);
        assert_eq!(read(&mut reader, &both, 1), None);
        assert_eq!(reader.texts.len(), 1, "what was read before it was cancelled is kept");
        assert_eq!(read(&mut reader, &both, 2), None, "while guesses are prepared");
        assert_eq!(read(&mut reader, &both, 99), Some(Some(n_tokens("local a\n") + n_tokens("b = 2\n"))));
        assert_eq!(read(&mut reader, &both, 99), Some(None));
        let changed = document("b", 3, "b = 2, 3\n");
        let all = n_tokens("local a\n") + n_tokens("b = 2, 3\n");
        assert_eq!(read(&mut reader, &[changed.clone(), a.clone()], 99), Some(Some(all)));
        assert_eq!(reader.texts[0].0, ("a".to_owned(), 1), "the newest is read last");
        assert_eq!(read(&mut reader, &[changed, b], 1), None);
        assert_eq!(read(&mut reader, &[], 99), Some(Some(0)), "nothing is guessed from what is closed");
    }

    #[test]
    fn a_text_has_the_same_tokens_in_parts() {
        let text: String = (0..400).map(|i| format!("local v{i} = f({i})\n\n    x = 1\n")).collect();
        let options = TokenizerOptions { vocab_size: 400, min_frequency: 2, ..TokenizerOptions::default() };
        let tokenizer = Tokenizer::train(std::iter::once(&text), &options).unwrap();
        for text in [text.as_str(), &text[..text.len() - 1], "", "no end"] {
            assert_eq!(encode(text, &tokenizer, &|| false).unwrap(), tokenizer.encode(text).unwrap());
        }
        assert!(matches!(encode(&text, &tokenizer, &|| true), Err(Error::Cancelled)));
    }

    #[test]
    fn of_a_long_document_the_first_lines_are_read() {
        let text = "local \u{e9} = 1\n".repeat(MAX_BYTES_EACH / 10);
        let start = start(&document("a", 1, &text));
        let lengths = MAX_BYTES_EACH - 20..=MAX_BYTES_EACH;
        assert!(lengths.contains(&start.len()) && start.ends_with('\n'), "{}", start.len());
        assert_eq!(super::start(&document("a", 1, "no end")), "no end");
    }

    #[test]
    fn the_most_helpful_texts_are_read_as_far_as_there_is_room() {
        let of = |n_bytes: usize| document("a", 1, &"x".repeat(n_bytes));
        let many = [of(MAX_BYTES), of(10), of(MAX_BYTES_EACH), of(0)];
        assert_eq!(enough(&many).len(), 4, "of a long one only the beginning counts");
        let full: Vec<Snapshot> = (0..20).map(|_| of(MAX_BYTES_EACH)).collect();
        assert_eq!(enough(&full).len(), MAX_BYTES / MAX_BYTES_EACH);
        assert!(enough(&[]).is_empty());
    }
}
