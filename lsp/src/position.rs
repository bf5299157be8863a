//! Editor positions and offsets into a document: the only converter, in UTF-8, UTF-16 and UTF-32 columns.
//!
//! Every position is answered: a line beyond the document is its end, a column beyond its line is the line's end (before the line
//! break), a column inside a character is that character's start. `\n`, `\r\n` and `\r` end a line.

use ropey::{Rope, RopeSlice};
use tower_lsp::gen_lsp_types::{Position, PositionEncodingKind, Range};

/// What a column counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Encoding {
    /// Bytes of UTF-8.
    Utf8,
    /// UTF-16 code units, the protocol's default.
    #[default]
    Utf16,
    /// Unicode scalar values.
    Utf32,
}

impl Encoding {
    /// The encoding to use with a client that offers `offered`: UTF-8 where it may be, since that is how the text is kept; else the
    /// protocol's default, unless that is the one thing that is not offered.
    pub fn choose(offered: Option<&[PositionEncodingKind]>) -> Encoding {
        let offers = |kind| offered.unwrap_or_default().contains(&kind);
        if offers(PositionEncodingKind::UTF8) {
            Encoding::Utf8
        } else if offers(PositionEncodingKind::UTF32) && !offers(PositionEncodingKind::UTF16) {
            Encoding::Utf32
        } else {
            Encoding::Utf16
        }
    }

    /// The protocol's name for it.
    pub fn kind(self) -> PositionEncodingKind {
        match self {
            Encoding::Utf8 => PositionEncodingKind::UTF8,
            Encoding::Utf16 => PositionEncodingKind::UTF16,
            Encoding::Utf32 => PositionEncodingKind::UTF32,
        }
    }
}

/// The character index of `position`, clamped into the document.
pub fn char_at(text: &Rope, position: Position, encoding: Encoding) -> usize {
    let line_idx = position.line as usize;
    if line_idx >= text.len_lines() {
        return text.len_chars();
    }
    let line = text.line(line_idx);
    let line_end_char = line_len_chars(line);
    let column = position.character as usize;
    let column_char = match encoding {
        Encoding::Utf8 if column >= line.char_to_byte(line_end_char) => line_end_char,
        Encoding::Utf8 => line.byte_to_char(column),
        Encoding::Utf16 if column >= line.char_to_utf16_cu(line_end_char) => line_end_char,
        Encoding::Utf16 => line.utf16_cu_to_char(column),
        Encoding::Utf32 => column.min(line_end_char),
    };
    text.line_to_char(line_idx) + column_char
}

/// The byte offset of `position`, clamped into the document.
pub fn byte_at(text: &Rope, position: Position, encoding: Encoding) -> usize {
    text.char_to_byte(char_at(text, position, encoding))
}

/// The character range of `range`; one whose ends are swapped is read the right way round.
pub fn chars_at(text: &Rope, range: Range, encoding: Encoding) -> std::ops::Range<usize> {
    let start = char_at(text, range.start, encoding);
    let end = char_at(text, range.end, encoding);
    start.min(end)..start.max(end)
}

/// The position of the character `char_idx`, which is clamped into the document.
pub fn position_of(text: &Rope, char_idx: usize, encoding: Encoding) -> Position {
    let char_idx = char_idx.min(text.len_chars());
    let line_idx = text.char_to_line(char_idx);
    let line = text.line(line_idx);
    let column_char = char_idx - text.line_to_char(line_idx);
    let column = match encoding {
        Encoding::Utf8 => line.char_to_byte(column_char),
        Encoding::Utf16 => line.char_to_utf16_cu(column_char),
        Encoding::Utf32 => column_char,
    };
    Position { line: clamp_u32(line_idx), character: clamp_u32(column) }
}

/// Characters of `line` without its line break.
fn line_len_chars(line: RopeSlice<'_>) -> usize {
    let len = line.len_chars();
    let last = len.checked_sub(1).map(|i| line.char(i));
    let before_last = len.checked_sub(2).map(|i| line.char(i));
    match (before_last, last) {
        (Some('\r'), Some('\n')) => len - 2,
        (_, Some('\n' | '\r')) => len - 1,
        _ => len,
    }
}

fn clamp_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ENCODINGS: [Encoding; 3] = [Encoding::Utf8, Encoding::Utf16, Encoding::Utf32];

    fn width(c: char, encoding: Encoding) -> usize {
        match encoding {
            Encoding::Utf8 => c.len_utf8(),
            Encoding::Utf16 => c.len_utf16(),
            Encoding::Utf32 => 1,
        }
    }

    /// The reference: walks the text character by character.
    fn naive_char_at(text: &str, position: Position, encoding: Encoding) -> usize {
        let chars: Vec<char> = text.chars().collect();
        let (mut i, mut line) = (0, 0);
        while line < position.line {
            let Some(&c) = chars.get(i) else { return chars.len() };
            i += if c == '\r' && chars.get(i + 1) == Some(&'\n') { 2 } else { 1 };
            line += u32::from(c == '\n' || c == '\r');
        }
        let mut column = 0;
        while let Some(&c) = chars.get(i).filter(|&&c| c != '\n' && c != '\r') {
            column += width(c, encoding);
            if column > position.character as usize {
                break;
            }
            i += 1;
        }
        i
    }

    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\n"),
            Just("\r\n"),
            Just("\r"),
            Just("a"),
            Just("fn x()"),
            Just("\u{e9}"),
            Just("e\u{301}"),
            Just("\u{1f600}"),
            Just("\u{2028}"),
            Just("\u{85}"),
            Just("\t"),
            Just("\u{5b57}"),
            Just("\u{fffd}"),
            Just("\u{b}")
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn equals_the_reference(text in any_text(), line in 0u32..12, character in 0u32..30) {
            let rope = Rope::from_str(&text);
            for encoding in ENCODINGS {
                let position = Position { line, character };
                prop_assert_eq!(char_at(&rope, position, encoding), naive_char_at(&text, position, encoding), "{:?}", encoding);
            }
        }

        #[test]
        fn goes_there_and_back(text in any_text(), at in 0usize..60) {
            let rope = Rope::from_str(&text);
            let chars: Vec<char> = text.chars().collect();
            let at = at.min(chars.len());
            let inside_crlf = at > 0 && chars.get(at) == Some(&'\n') && chars[at - 1] == '\r';
            prop_assume!(!inside_crlf);
            for encoding in ENCODINGS {
                prop_assert_eq!(char_at(&rope, position_of(&rope, at, encoding), encoding), at);
            }
        }
    }

    #[test]
    fn clamps_beyond_the_end() {
        let rope = Rope::from_str("ab\r\ncd");
        for encoding in ENCODINGS {
            assert_eq!(char_at(&rope, Position { line: 0, character: 99 }, encoding), 2);
            assert_eq!(char_at(&rope, Position { line: 9, character: 9 }, encoding), 6);
            assert_eq!(char_at(&rope, Position { line: u32::MAX, character: u32::MAX }, encoding), 6);
        }
    }

    #[test]
    fn inside_a_surrogate_pair_is_its_start() {
        let rope = Rope::from_str("a\u{1f600}b");
        assert_eq!(char_at(&rope, Position { line: 0, character: 2 }, Encoding::Utf16), 1);
        assert_eq!(char_at(&rope, Position { line: 0, character: 3 }, Encoding::Utf16), 2);
        assert_eq!(char_at(&rope, Position { line: 0, character: 3 }, Encoding::Utf8), 1);
    }

    #[test]
    fn prefers_utf8_and_falls_back_to_the_default() {
        assert_eq!(Encoding::choose(Some(&[PositionEncodingKind::UTF32, PositionEncodingKind::UTF8])), Encoding::Utf8);
        assert_eq!(
            Encoding::choose(Some(&[PositionEncodingKind::UTF32, PositionEncodingKind::UTF16])),
            Encoding::Utf16
        );
        assert_eq!(Encoding::choose(Some(&[PositionEncodingKind::UTF32])), Encoding::Utf32);
        assert_eq!(Encoding::choose(None), Encoding::Utf16);
    }
}
