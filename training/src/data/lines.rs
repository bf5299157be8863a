//! Cutting text at characters and lines.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_cut_always_advances() {
        assert_eq!(line_cut("abc", 0), 3);
        assert_eq!(line_cut("abcdefgh", 1), 4);
        assert_eq!(line_cut("a\nb\nccccc", 5), 4);
    }
}
