//! Where a training piece is cut for fill in the middle: the place where the suffix begins.
//!
//! Prefix and middle are tokenized as one text (`multicoder_model::fim`), so the end of the middle is all there is to choose.

use std::time::Duration;

use multicoder_grammars::{LanguageId, SyntaxTree};

use crate::rng::Rng;

/// Far beyond what a piece takes: training data must not depend on the clock.
const PARSE_BUDGET: Duration = Duration::from_secs(3600);
/// Smaller nodes (single names, punctuation) are not worth a cut of their own.
const MIN_NODE_BYTES: usize = 4;

/// How the end of a middle is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CutKind {
    /// Where a syntax node ends: the middle completes a construct.
    Node,
    /// Where a line ends: what a caret that completes its line asks for.
    Line,
    /// Between any two characters, so that a caret in mid-word is nothing special.
    Character,
}

/// Byte offset at which the suffix of `text` begins, no suffix being longer than `max_suffix_frac` of the text. `None` when the text is
/// too short to be cut.
pub fn suffix_start(text: &str, language: Option<LanguageId>, max_suffix_frac: f64, rng: &mut Rng) -> Option<usize> {
    let from = text.len() - (text.len() as f64 * max_suffix_frac) as usize;
    if text.len() < 8 || from >= text.len() {
        return None;
    }
    let kind = match rng.below(4) {
        0 | 1 => CutKind::Node,
        2 => CutKind::Line,
        _ => CutKind::Character,
    };
    let candidates = match kind {
        CutKind::Node => node_ends(text, from, language),
        CutKind::Line => line_ends(text, from),
        CutKind::Character => Vec::new(),
    };
    if candidates.is_empty() {
        let at = from + rng.below(text.len() - from);
        return (at..text.len()).find(|&idx| idx > 0 && text.is_char_boundary(idx));
    }
    Some(candidates[rng.below(candidates.len())])
}

fn node_ends(text: &str, from: usize, language: Option<LanguageId>) -> Vec<usize> {
    let Some(tree) = language.and_then(|language| SyntaxTree::parse_within(language, text, PARSE_BUDGET)) else {
        return line_ends(text, from);
    };
    let mut ends: Vec<usize> = tree
        .node_spans(MIN_NODE_BYTES)
        .map(|span| span.end)
        .filter(|&end| end >= from.max(1) && end < text.len() && text.is_char_boundary(end))
        .collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

fn line_ends(text: &str, from: usize) -> Vec<usize> {
    let ends = text.match_indices('\n').map(|(idx, _)| idx);
    // The end of an empty line is no place to complete a line at.
    ends.filter(|&idx| idx >= from.max(1) && text.as_bytes()[idx - 1] != b'\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "def größe(a):\n    return a * 2\n\n\ndef f():\n    return größe(3)\n";

    #[test]
    fn cuts_are_character_boundaries_inside_the_text_and_within_the_share() {
        let python = LanguageId::by_name("python");
        for seed in 0..200 {
            let mut rng = Rng::keyed(seed, "cut", &[]);
            let at = suffix_start(TEXT, python, 0.5, &mut rng).unwrap();
            assert!(at > 0 && at < TEXT.len() && TEXT.is_char_boundary(at));
            assert!(TEXT.len() - at <= TEXT.len() / 2, "{at}");
        }
    }

    #[test]
    fn some_cuts_are_line_ends_and_some_are_inside_words() {
        let mut kinds = [0; 2];
        for seed in 0..200 {
            let mut rng = Rng::keyed(seed, "cut", &[]);
            let at = suffix_start(TEXT, None, 1.0, &mut rng).unwrap();
            let inside = |idx: usize| TEXT.as_bytes()[idx].is_ascii_alphanumeric();
            kinds[0] += usize::from(TEXT.as_bytes()[at] == b'\n');
            kinds[1] += usize::from(inside(at) && inside(at - 1));
        }
        assert!(kinds[0] > 50 && kinds[1] > 10, "{kinds:?}");
    }

    #[test]
    fn short_text_is_not_cut() {
        assert_eq!(suffix_start("a = 1", None, 0.5, &mut Rng::keyed(0, "cut", &[])), None);
    }
}
