//! Where a training piece is cut for fill in the middle: the place where the suffix begins.
//!
//! Prefix and middle are tokenized as one text (`multicoder_model::fim`), so the end of the middle is all there is to choose.

use std::ops::Range;

use multicoder_grammars::syntax::UNHURRIED;
use multicoder_grammars::{LanguageId, SyntaxTree};

use crate::rng::Rng;

/// Smaller nodes (single names, punctuation) are not worth a cut of their own.
const MIN_NODE_BYTES: usize = 4;

/// How the end of a middle is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CutKind {
    /// Where a syntax node ends: the middle completes a construct.
    Node,
    /// Where a line ends: what a caret that completes its line asks for.
    Line,
    /// Inside a token, so that a caret in mid-word is nothing special.
    Character,
    /// Where the text ends: what a caret at the end of a file asks for.
    End,
}

/// Of ten cuts, how many are of each kind. Syntax nodes are half (AST-FIM, Gong et al. 2025, arXiv 2506.00204).
const SHARES: [(CutKind, usize); 4] =
    [(CutKind::Node, 5), (CutKind::Line, 3), (CutKind::Character, 1), (CutKind::End, 1)];

/// Byte offset at which the suffix of `text` begins, no suffix being longer than `max_suffix_frac` of the text; `token_starts` are the
/// offsets at which tokens begin. `None` when there shall be no suffix, or the text is too short to be cut. A suffix is never blank:
/// `multicoder_model::fim` has none then.
pub fn suffix_start(
    text: &str,
    token_starts: &[usize],
    language: Option<LanguageId>,
    max_suffix_frac: f64,
    rng: &mut Rng,
) -> Option<usize> {
    let from = (text.len() - (text.len() as f64 * max_suffix_frac) as usize).max(1);
    let places = from..text.trim_end().len();
    let kind = draw_kind(rng);
    if text.len() < 8 || places.is_empty() || kind == CutKind::End {
        return None;
    }
    let candidates = match kind {
        CutKind::Node => node_ends(text, &places, language),
        CutKind::Line => line_ends(text, &places),
        CutKind::Character | CutKind::End => Vec::new(),
    };
    if candidates.is_empty() {
        let at = places.start + rng.below(places.len());
        let is_inside = |idx: &usize| token_starts.binary_search(idx).is_err();
        let characters = || (at..places.end).filter(|&idx| text.is_char_boundary(idx));
        return characters().find(is_inside).or_else(|| characters().next());
    }
    Some(candidates[rng.below(candidates.len())])
}

fn draw_kind(rng: &mut Rng) -> CutKind {
    let mut left = rng.below(SHARES.iter().map(|(_, share)| share).sum());
    for (kind, share) in SHARES {
        if left < share {
            return kind;
        }
        left -= share;
    }
    CutKind::End
}

fn node_ends(text: &str, places: &Range<usize>, language: Option<LanguageId>) -> Vec<usize> {
    let Some(tree) = language.and_then(|language| SyntaxTree::parse_within(language, text, UNHURRIED)) else {
        return line_ends(text, places);
    };
    let ends = tree.node_spans(MIN_NODE_BYTES).map(|span| span.end);
    let mut ends: Vec<usize> = ends.filter(|end| places.contains(end) && text.is_char_boundary(*end)).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// Ends of lines, before their `\n` or `\r\n`. The end of an empty line is no place to complete a line at.
fn line_ends(text: &str, places: &Range<usize>) -> Vec<usize> {
    let before = |newline: usize| newline - usize::from(text[..newline].ends_with('\r'));
    let ends = text.match_indices('\n').map(|(newline, _)| before(newline));
    ends.filter(|end| places.contains(end) && text.as_bytes()[end - 1] != b'\n').collect()
}

#[cfg(test)]
mod tests {
    use multicoder_model::fim;

    use super::*;

    const TEXT: &str = "def größe(a):\n    return a * 2\n\n\ndef f():\r\n    return größe(3)\n\n";

    /// As if every word and everything between two words were a token.
    fn token_starts(text: &str) -> Vec<usize> {
        let is_word = |idx: usize| text[idx..].starts_with(|c: char| c.is_alphanumeric());
        let starts = text.char_indices().map(|(idx, _)| idx).collect::<Vec<_>>();
        let begins = |n: &usize| *n == 0 || is_word(starts[*n]) != is_word(starts[n - 1]);
        (0..starts.len()).filter(begins).map(|n| starts[n]).collect()
    }

    fn cuts(language: Option<LanguageId>, max_suffix_frac: f64) -> Vec<Option<usize>> {
        let cut = |seed: u64| {
            let mut rng = Rng::keyed(seed, "cut", &[]);
            suffix_start(TEXT, &token_starts(TEXT), language, max_suffix_frac, &mut rng)
        };
        (0..2000).map(cut).collect()
    }

    #[test]
    fn cuts_are_character_boundaries_inside_the_text_and_within_the_share() {
        for at in cuts(LanguageId::by_name("python"), 0.5).into_iter().flatten() {
            assert!(at > 0 && TEXT.is_char_boundary(at) && fim::has_suffix(&TEXT[at..]), "{at}");
            assert!(TEXT.len() - at <= TEXT.len() / 2, "{at}");
        }
    }

    #[test]
    fn cuts_are_of_all_kinds_in_their_shares() {
        let python = LanguageId::by_name("python");
        let starts = token_starts(TEXT);
        let nodes = node_ends(TEXT, &(1..TEXT.trim_end().len()), python);
        let lines = line_ends(TEXT, &(1..TEXT.trim_end().len()));
        assert_eq!(lines.iter().map(|&end| &TEXT[..end]).filter(|before| before.ends_with(['\r', '\n'])).count(), 0);
        assert_eq!(lines.len(), 3);
        let cuts = cuts(python, 1.0);
        let share = |holds: &dyn Fn(usize) -> bool| {
            cuts.iter().flatten().filter(|&&at| holds(at)).count() as f64 / cuts.len() as f64
        };
        let none = 1.0 - share(&|_| true);
        // Some nodes end where lines do.
        let at_line = share(&|at| lines.contains(&at));
        let at_node = share(&|at| nodes.contains(&at) && !lines.contains(&at));
        let inside = share(&|at| !nodes.contains(&at) && !lines.contains(&at) && starts.binary_search(&at).is_err());
        assert!((none - 0.1).abs() < 0.02 && (inside - 0.1).abs() < 0.03, "{none} {inside}");
        assert!(at_line > 0.3 && at_node > 0.3 && (at_line + at_node - 0.8).abs() < 0.04, "{at_line} {at_node}");
    }

    #[test]
    fn short_and_blank_texts_are_not_cut() {
        for text in ["a = 1", "          \n\n   ", ""] {
            let cut = |seed| suffix_start(text, &[0], None, 1.0, &mut Rng::keyed(seed, "cut", &[]));
            assert!((0..20).all(|seed| cut(seed).is_none()), "{text:?}");
        }
    }
}
