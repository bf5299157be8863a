//! Stretches of other documents of the same package that resemble a query: what a server finds in the open project.
//!
//! As `multicoder_grammars::similar` on texts, on tokens, of which training has millions to search. Likeness is the Jaccard index of the sets of tokens (Zhang et al. 2023, RepoCoder, arXiv 2303.12570, §3.2), of those with a word.

use std::ops::Range;

use multicoder_grammars::similar::{MIN_QUERY_WORDS, MIN_SIMILARITY, STRETCH_LINES};

use super::tokens::Tokens;
use super::vocabulary::Vocabulary;

/// Documents that a search looks at, the nearest of the package in the order of the shards: a large package costs no more.
const MAX_DOCUMENTS: usize = 64;
/// Tokens of a document that a search looks at, from its start.
const MAX_DOCUMENT_TOKENS: usize = 8192;
/// Whole lines of a document that resemble a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Number of the document in [`Tokens`].
    pub document: usize,
    /// Its tokens.
    pub tokens: Range<usize>,
    /// Jaccard index, above 0 and at most 1.
    pub similarity: f64,
}

/// The stretches of at most `max_chunk_tokens` most like `query`, of the neighbours of `document`; best first, at most `n`.
pub fn matches(
    tokens: &Tokens,
    vocabulary: &Vocabulary,
    document: usize,
    query: &[u32],
    max_chunk_tokens: usize,
    n: usize,
) -> Vec<Match> {
    let mut words = Words::of(vocabulary, query);
    if words.n_query < MIN_QUERY_WORDS {
        return Vec::new();
    }
    let mut found = Vec::new();
    for &neighbour in neighbours(tokens.package(document), document) {
        let neighbour = neighbour as usize;
        let Range { start, end } = tokens.document(neighbour);
        let ids = tokens.ids(start..end.min(start + MAX_DOCUMENT_TOKENS));
        for chunk in chunks(&ids, start + ids.len() == end, vocabulary, max_chunk_tokens) {
            let similarity = words.similarity(&ids[chunk.clone()]);
            if similarity >= MIN_SIMILARITY {
                found.push(Match { document: neighbour, tokens: start + chunk.start..start + chunk.end, similarity });
            }
        }
    }
    // Equally good ones stay in the order of the shards.
    found.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
    found.truncate(n);
    found
}

/// The documents of a package around one of them, without it.
fn neighbours(package: &[u32], document: usize) -> impl Iterator<Item = &u32> {
    let at = package.partition_point(|&other| (other as usize) < document);
    let end = (at.saturating_sub(MAX_DOCUMENTS / 2) + MAX_DOCUMENTS + 1).min(package.len());
    let start = end.saturating_sub(MAX_DOCUMENTS + 1);
    package[start..end].iter().filter(move |&&other| other as usize != document)
}

/// Runs of whole lines, one after the other, each of at most [`STRETCH_LINES`] and `max_tokens`. A longer line is in none, and neither is
/// the last line of a document that is not looked at to its end.
fn chunks(ids: &[u32], is_whole: bool, vocabulary: &Vocabulary, max_tokens: usize) -> Vec<Range<usize>> {
    let mut line_ends: Vec<usize> = (1..=ids.len()).filter(|&at| vocabulary.holds_line_end(ids[at - 1])).collect();
    if is_whole && line_ends.last() != Some(&ids.len()) {
        line_ends.push(ids.len());
    }
    let mut chunks = Vec::new();
    let (mut start, mut end, mut n_lines) = (0, 0, 0);
    for line_end in line_ends {
        if n_lines == STRETCH_LINES || line_end - start > max_tokens {
            chunks.push(start..end);
            (start, n_lines) = (end, 0);
        }
        if line_end - start > max_tokens {
            start = line_end;
        } else {
            n_lines += 1;
        }
        end = line_end;
    }
    chunks.push(start..end);
    chunks.retain(|chunk| !chunk.is_empty());
    chunks
}

/// The set of the words of a query, and room to count those of one stretch after the other.
struct Words<'a> {
    vocabulary: &'a Vocabulary,
    n_query: usize,
    is_in_query: Vec<bool>,
    /// The newest stretch that each word was seen in.
    seen_in: Vec<u32>,
    stretch: u32,
}

impl Words<'_> {
    fn of<'a>(vocabulary: &'a Vocabulary, query: &[u32]) -> Words<'a> {
        let mut is_in_query = vec![false; vocabulary.len()];
        let words = query.iter().filter(|&&id| !vocabulary.is_wordless(id));
        words.for_each(|&id| {
            if let Some(slot) = is_in_query.get_mut(id as usize) {
                *slot = true
            }
        });
        let n_query = is_in_query.iter().filter(|&&is_in| is_in).count();
        Words { vocabulary, n_query, is_in_query, seen_in: vec![0; vocabulary.len()], stretch: 0 }
    }

    fn similarity(&mut self, ids: &[u32]) -> f64 {
        self.stretch += 1;
        let (mut n_shared, mut n_words) = (0, 0);
        for &id in ids.iter().filter(|&&id| !self.vocabulary.is_wordless(id)) {
            let Some(seen_in) = self.seen_in.get_mut(id as usize).filter(|seen_in| **seen_in != self.stretch) else {
                continue;
            };
            *seen_in = self.stretch;
            n_words += 1;
            n_shared += usize::from(self.is_in_query[id as usize]);
        }
        f64::from(n_shared as u32) / f64::from((self.n_query + n_words - n_shared) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenize::tests::{Store, store_of};
    use super::*;

    fn lines(name: &str, n: usize) -> String {
        (0..n).map(|k| format!("local {name}_{k} = {name}(open, {k})\n")).collect()
    }

    /// A package of unlike documents and one of another package that is like the first.
    fn package() -> Store {
        let texts = [lines("alpha", 30), lines("beta", 45), lines("alpha", 45), lines("alpha", 30)];
        let document =
            |n: usize| (if n == 3 { "other" } else { "one" }.to_owned(), format!("{n}.lua"), texts[n].as_str());
        store_of(&[0, 1, 2, 3].map(document))
    }

    fn find(store: &Store, document: usize, max_chunk_tokens: usize, n: usize) -> Vec<Match> {
        let Range { start, .. } = store.tokens.document(document);
        let query = store.tokens.ids(start..start + 60);
        matches(&store.tokens, &store.vocabulary, document, &query, max_chunk_tokens, n)
    }

    #[test]
    fn the_most_alike_lines_of_other_documents_of_the_package_come_first() {
        let store = package();
        let found = find(&store, 0, 400, 3);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].document, 2);
        assert!(found[0].similarity >= found[1].similarity && found[1].similarity > MIN_SIMILARITY);
        assert!(found.iter().all(|found| found.document != 0 && found.document != 3));
        assert_eq!(found, find(&store, 0, 400, 3));
        assert_eq!(find(&store, 3, 400, 3), []);
    }

    #[test]
    fn matches_are_whole_lines_and_fit() {
        let store = package();
        for max_chunk_tokens in [12, 30, 60, 1000] {
            for found in find(&store, 0, max_chunk_tokens, 50) {
                let text = String::from_utf8(store.text_of(found.tokens.clone())).unwrap();
                assert!(text.starts_with("local ") && text.ends_with('\n'), "{text:?}");
                assert!(found.tokens.len() <= max_chunk_tokens && text.lines().count() <= STRETCH_LINES);
            }
        }
        assert!(!find(&store, 0, 30, 50).is_empty());
        assert_eq!(find(&store, 0, 2, 50), []);
    }

    #[test]
    fn chunks_leave_out_what_is_too_long() {
        let store = package();
        let ids = |text: &str| store.tokenizer.encode(text).unwrap();
        let text = [ids("a\n"), ids("b\n"), ids(&"zz,".repeat(40)), ids("\nc\nd")].concat();
        let spans = |is_whole| chunks(&text, is_whole, &store.vocabulary, 10);
        let long_end = text.len() - 3;
        assert_eq!(spans(true), [0..4, long_end..text.len()]);
        assert_eq!(spans(false), [0..4, long_end..text.len() - 1]);
    }

    #[test]
    fn a_large_package_is_looked_at_around_the_document() {
        let package: Vec<u32> = (0..1000).map(|n| n * 2).collect();
        let around = |document: usize| neighbours(&package, document).copied().collect::<Vec<u32>>();
        assert_eq!(around(0), (1..=64).map(|n| n * 2).collect::<Vec<u32>>());
        assert_eq!((around(1998).len(), around(1998)[0]), (64, 1870));
        let middle = around(1000);
        assert_eq!((middle.len(), middle[0], middle[63]), (64, 936, 1064));
        assert!(!middle.contains(&1000));
        assert_eq!(neighbours(&[3, 5], 5).count(), 1);
    }
}
