//! Stretches of texts that resemble a query: what to show of other files.
//!
//! Likeness is the Jaccard index of sets of words (Zhang et al. 2023, RepoCoder, arXiv 2303.12570, §3.2).

use std::collections::HashSet;
use std::ops::Range;

use crate::lexical;

/// Lines of a stretch.
pub const STRETCH_LINES: usize = 20;
/// Words below which a query says too little.
pub const MIN_QUERY_WORDS: usize = 4;
/// Likeness from which on a stretch is worth showing.
pub const MIN_SIMILARITY: f64 = 0.1;

/// Whole lines of one of the texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Index of the text.
    pub text: usize,
    /// Its bytes.
    pub bytes: Range<usize>,
    /// Jaccard index, above 0 and at most 1.
    pub similarity: f64,
}

/// The stretches of `texts` most like `query`, best first, at most `n`.
pub fn matches(query: &str, texts: &[&str], n: usize) -> Vec<Match> {
    let wanted: HashSet<&str> = words(query).collect();
    if wanted.len() < MIN_QUERY_WORDS {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        for bytes in stretches(text) {
            let have: HashSet<&str> = words(&text[bytes.clone()]).collect();
            let n_shared = have.intersection(&wanted).count();
            let similarity = n_shared as f64 / (have.len() + wanted.len() - n_shared) as f64;
            if similarity >= MIN_SIMILARITY {
                found.push(Match { text: at, bytes, similarity });
            }
        }
    }
    // Equally good ones stay in the order of the texts.
    found.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
    found.truncate(n);
    found
}

/// Runs of [`STRETCH_LINES`] whole lines, one after the other.
fn stretches(text: &str) -> Vec<Range<usize>> {
    let mut ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    if ends.last() != Some(&text.len()) {
        ends.push(text.len());
    }
    let mut start = 0;
    let mut stretches = Vec::new();
    for lines in ends.chunks(STRETCH_LINES) {
        let end = lines[lines.len() - 1];
        stretches.push(start..end);
        start = end;
    }
    stretches.retain(|stretch| !stretch.is_empty());
    stretches
}

/// The words with a letter in them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    lexical::words(text).filter(|word| word.contains(char::is_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(name: &str, n: usize) -> String {
        (0..n).map(|k| format!("local {name}_{k} = {name}(open, {k})\n")).collect()
    }

    #[test]
    fn the_most_alike_lines_come_first_and_unlike_ones_not_at_all() {
        let (alpha, beta) = (lines("alpha", 45), lines("beta", 45));
        let texts = [beta.as_str(), "print(1)\n", alpha.as_str()];
        let found = matches(&lines("alpha", 10), &texts, 9);
        assert_eq!((found[0].text, &found[0].bytes.start), (2, &0));
        assert!(found.is_sorted_by(|a, b| a.similarity >= b.similarity));
        assert!(found.iter().all(|found| found.similarity >= MIN_SIMILARITY && found.text != 1));
        assert_eq!(matches("x = 1", &texts, 9), []);
    }

    #[test]
    fn stretches_are_whole_lines_and_all_of_the_text() {
        for text in ["", "a", "a\n", &"ab\n".repeat(45), &("ab\n".repeat(40) + "end")] {
            let joined: String = stretches(text).into_iter().map(|bytes| &text[bytes]).collect();
            assert_eq!(joined, text);
            let n_lines = |bytes: &Range<usize>| text[bytes.clone()].lines().count();
            assert!(stretches(text).iter().all(|bytes| n_lines(bytes) <= STRETCH_LINES));
        }
    }
}
