//! The text around the caret that the model gets to see.
//!
//! Its start moves in large steps at line starts, so that from one keystroke to the next the prompt only grows at its end and the
//! model's cache stays valid. The cost does not depend on the size of the document.

use ropey::Rope;

/// Most bytes before the caret.
const PREFIX_BYTES: usize = 24 * 1024;
/// Steps by which the start of the prefix moves, in bytes.
const STEP_BYTES: usize = 8 * 1024;
/// Most bytes after the caret.
const SUFFIX_BYTES: usize = 4 * 1024;

/// Text on both sides of the caret, with `\n` as line end.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Window {
    pub prefix: String,
    pub suffix: String,
}

/// The window of `text` at the caret, a byte offset on a character boundary.
pub fn window(text: &Rope, caret_byte: usize) -> Window {
    let start = window_start(text, caret_byte);
    let end = window_end(text, caret_byte);
    let cut = |range: std::ops::Range<usize>| with_newlines(&text.byte_slice(range).to_string());
    Window { prefix: cut(start..caret_byte), suffix: cut(caret_byte..end) }
}

/// `text` with `\n` at the end of each line, whatever of `\r\n`, `\r` and `\n` it had.
pub fn with_newlines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fn window_start(text: &Rope, caret_byte: usize) -> usize {
    let Some(excess) = caret_byte.checked_sub(PREFIX_BYTES) else { return 0 };
    let at_least = excess.div_ceil(STEP_BYTES) * STEP_BYTES;
    let line = text.byte_to_line(at_least);
    let next_line_byte = if line + 1 < text.len_lines() { text.line_to_byte(line + 1) } else { text.len_bytes() };
    // A line longer than a step: cut inside it.
    if next_line_byte <= caret_byte && next_line_byte < at_least + STEP_BYTES {
        next_line_byte
    } else {
        char_start(text, at_least)
    }
}

fn window_end(text: &Rope, caret_byte: usize) -> usize {
    let at_most = (caret_byte + SUFFIX_BYTES).min(text.len_bytes());
    if at_most == text.len_bytes() {
        return at_most;
    }
    let line_byte = text.line_to_byte(text.byte_to_line(at_most));
    if line_byte > caret_byte { line_byte } else { char_start(text, at_most) }
}

/// The start of the character that `byte` lies in.
fn char_start(text: &Rope, byte: usize) -> usize {
    text.char_to_byte(text.byte_to_char(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_documents_are_seen_whole() {
        let rope = Rope::from_str("a\r\nb\u{e9}|c\r\n");
        let seen = window(&rope, "a\r\nb\u{e9}".len());
        assert_eq!(seen, Window { prefix: "a\nb\u{e9}".to_string(), suffix: "|c\n".to_string() });
    }

    #[test]
    fn every_line_end_becomes_a_newline() {
        let rope = Rope::from_str("a\rb\r\nc\nd|e\rf");
        let seen = window(&rope, "a\rb\r\nc\nd".len());
        assert_eq!(seen, Window { prefix: "a\nb\nc\nd".to_string(), suffix: "|e\nf".to_string() });
    }

    #[test]
    fn the_start_moves_in_steps_at_line_starts() {
        let text = "    let x = call(1, 2);\n".repeat(4000);
        let rope = Rope::from_str(&text);
        let mut starts: Vec<usize> = (40_000..60_000).map(|caret| window_start(&rope, caret)).collect();
        assert!(starts.iter().all(|&start| text[..start].ends_with('\n')));
        assert!((40_000..60_000).zip(&starts).all(|(caret, start)| caret - start <= PREFIX_BYTES));
        starts.dedup();
        assert!(starts.len() <= 4, "{starts:?}");
    }

    #[test]
    fn one_endless_line_is_cut_on_a_character() {
        let text = "\u{1f600}\u{e9}x".repeat(20_000);
        let rope = Rope::from_str(&text);
        for caret in (0..text.len()).filter(|&i| text.is_char_boundary(i)).step_by(997) {
            let seen = window(&rope, caret);
            assert!(text[..caret].ends_with(&seen.prefix) && text[caret..].starts_with(&seen.suffix));
            assert!(seen.prefix.len() <= PREFIX_BYTES + 4 && seen.suffix.len() <= SUFFIX_BYTES);
        }
    }
}
