//! What the loader asks of each entry of a vocabulary, answered once.

use multicoder_model::Tokenizer;

const HOLDS_LINE_END: u8 = 1;
const BEGINS_INSIDE_CHARACTER: u8 = 2;
const IS_WORDLESS: u8 = 4;

/// Properties of tokens, by id. Of an id that is no entry none holds.
#[derive(Clone, Debug)]
pub struct Vocabulary(Vec<u8>);

impl Vocabulary {
    /// Looks at the bytes of every entry.
    pub fn of(tokenizer: &Tokenizer) -> Vocabulary {
        Vocabulary((0..tokenizer.vocab_size() as u32).map(|id| properties(tokenizer.bytes_of(id))).collect())
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a line ends in the token. In our tokenizers such a token is nothing else; another family's may hold more.
    pub fn holds_line_end(&self, id: u32) -> bool {
        self.has(id, HOLDS_LINE_END)
    }

    /// Whether the token's first byte continues a character: no text may begin with it.
    pub fn begins_inside_character(&self, id: u32) -> bool {
        self.has(id, BEGINS_INSIDE_CHARACTER)
    }

    /// Whether the token is blanks, line ends or punctuation alone, which say nothing of what a text is about.
    pub fn is_wordless(&self, id: u32) -> bool {
        self.has(id, IS_WORDLESS)
    }

    fn has(&self, id: u32, property: u8) -> bool {
        self.0.get(id as usize).is_some_and(|properties| properties & property != 0)
    }
}

fn properties(bytes: &[u8]) -> u8 {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
    let when = |property: u8, holds: bool| if holds { property } else { 0 };
    when(HOLDS_LINE_END, bytes.contains(&b'\n'))
        | when(BEGINS_INSIDE_CHARACTER, bytes.first().is_some_and(|byte| byte & 0xc0 == 0x80))
        | when(IS_WORDLESS, !bytes.iter().any(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_decide() {
        let vocabulary =
            Vocabulary(["\r\n", "    ", ") {", "x", "ä", "for i"].map(|s| properties(s.as_bytes())).to_vec());
        let which =
            |holds: fn(&Vocabulary, u32) -> bool| (0..6).filter(|&id| holds(&vocabulary, id)).collect::<Vec<_>>();
        assert_eq!(which(Vocabulary::holds_line_end), [0]);
        assert_eq!(which(Vocabulary::is_wordless), [0, 1, 2]);
        assert!(which(Vocabulary::begins_inside_character).is_empty());
        assert_eq!(properties(&[0xa4]), BEGINS_INSIDE_CHARACTER);
        assert!(!vocabulary.holds_line_end(6));
    }
}
