//! All n-grams of a token corpus up to one order, as a trie in flat arrays, with Kneser-Ney's adjusted counts.
//!
//! A node is an n-gram; its children are the tokens that followed it, sorted. Built by sorting every position's next `order`
//! tokens packed into one `u128`, then one scan.

use rayon::slice::ParallelSliceMut;

/// "No such node."
pub const NONE: u32 = u32::MAX;

/// Token documents laid end to end.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    tokens: Vec<u32>,
    ends: Vec<usize>,
}

impl Documents {
    /// Appends one document.
    pub fn push(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.ends.push(self.tokens.len());
    }

    /// Appends all documents of `other`.
    pub fn extend(&mut self, other: &Documents) {
        let offset = self.tokens.len();
        self.tokens.extend_from_slice(&other.tokens);
        self.ends.extend(other.ends.iter().map(|end| end + offset));
    }

    /// Tokens in all documents.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The documents in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.tokens[start..end])
    }
}

/// The n-grams of one length. Parallel arrays, one entry a node, in lexicographic order.
#[derive(Debug, Default)]
pub struct Level {
    /// Last token of the n-gram.
    pub token: Vec<u32>,
    /// Occurrences at the highest order and after the start of a document, distinct left neighbours elsewhere.
    pub count: Vec<u32>,
    /// Index of the first child in the next level; one entry more than nodes. Empty at the highest order.
    pub first_child: Vec<u32>,
}

/// Every n-gram up to `order` tokens. Level 0 is the empty n-gram (the root).
#[derive(Debug)]
pub struct Trie {
    levels: Vec<Level>,
    unigram_of_token: Vec<u32>,
}

impl Trie {
    /// Counts the n-grams of `documents`, each preceded by `start` (a token that occurs in none of them).
    ///
    /// # Errors
    /// A sentence when `order` tokens of this vocabulary do not fit 128 bits, a token is outside the vocabulary, or there
    /// are 2^32 n-grams or more.
    pub fn build(documents: &Documents, order: usize, vocab_size: usize, start: u32) -> Result<Self, String> {
        let bits = usize::BITS - vocab_size.leading_zeros();
        if order < 2 || order * bits as usize > 128 {
            return Err(format!(
                "n-gram order {order}: expected 2..={} for {vocab_size} tokens",
                128 / bits.max(1) as usize
            ));
        }
        if let Some(&token) = documents.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(format!("token {token}: expected an id below the vocabulary size {vocab_size}"));
        }
        if documents.n_tokens() + documents.len() >= NONE as usize {
            return Err(format!("{} tokens: expected fewer than 2^32", documents.n_tokens()));
        }
        let mut keys = sort_keys(documents, order, bits, start);
        let mut levels = levels_of(&keys, order, bits);
        keys.clear();
        keys.shrink_to_fit();
        let mut unigram_of_token = vec![NONE; vocab_size];
        for (node, &token) in levels[1].token.iter().enumerate() {
            unigram_of_token[token as usize] = node as u32;
        }
        adjust_counts(&mut levels, &unigram_of_token);
        if let Some(&node) = unigram_of_token.get(start as usize).filter(|&&node| node != NONE) {
            levels[1].count[node as usize] = 0; // The start is given, never predicted.
        }
        Ok(Self { levels, unigram_of_token })
    }

    /// Longest n-gram, in tokens.
    pub fn order(&self) -> usize {
        self.levels.len() - 1
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.unigram_of_token.len()
    }

    /// The n-grams of `n` tokens.
    pub fn level(&self, n: usize) -> &Level {
        &self.levels[n]
    }

    /// Index range, in level `n + 1`, of the children of `node` in level `n`.
    pub fn children(&self, n: usize, node: u32) -> std::ops::Range<usize> {
        let first = &self.levels[n].first_child;
        first[node as usize] as usize..first[node as usize + 1] as usize
    }

    /// The child of `node` (level `n`) by `token`, in level `n + 1`; [`NONE`] when that n-gram never occurred.
    pub fn child(&self, n: usize, node: u32, token: u32) -> u32 {
        find_child(&self.levels, &self.unigram_of_token, n, node, token)
    }
}

fn find_child(levels: &[Level], unigram_of_token: &[u32], n: usize, node: u32, token: u32) -> u32 {
    if n == 0 {
        return unigram_of_token.get(token as usize).copied().unwrap_or(NONE);
    }
    let first = &levels[n].first_child;
    let (from, to) = (first[node as usize] as usize, first[node as usize + 1] as usize);
    let found = levels[n + 1].token[from..to].binary_search(&token);
    found.map_or(NONE, |idx| (from + idx) as u32)
}

/// Every position's next `order` tokens, first token in the highest bits, each plus one so that zero means "past the end".
fn sort_keys(documents: &Documents, order: usize, bits: u32, start: u32) -> Vec<u128> {
    let mut keys = Vec::with_capacity(documents.n_tokens() + documents.len());
    let mut padded = Vec::new();
    for document in documents.iter() {
        padded.clear();
        padded.push(start);
        padded.extend_from_slice(document);
        for from in 0..padded.len() {
            let mut key = 0u128;
            for at in from..from + order {
                let token = padded.get(at).map_or(0, |&token| u128::from(token) + 1);
                // At the very width of 128 the first shift moves nothing: key is still zero.
                key = (key << (bits - 1) << 1) | token;
            }
            keys.push(key);
        }
    }
    keys.par_sort_unstable();
    keys
}

/// One scan over sorted keys: a node begins wherever a key leaves the previous one.
fn levels_of(keys: &[u128], order: usize, bits: u32) -> Vec<Level> {
    let mut levels: Vec<Level> = (0..=order).map(|_| Level::default()).collect();
    levels[0].token.push(NONE);
    levels[0].count.push(u32::try_from(keys.len()).unwrap_or(u32::MAX));
    levels[0].first_child.push(0);
    let mask = (1u128 << bits) - 1;
    let mut previous: Option<u128> = None;
    for &key in keys {
        let differs_at = previous.map_or(0, |p| first_difference(p ^ key, order, bits));
        for n in 1..=order {
            let token = (key >> ((order - n) as u32 * bits)) & mask;
            if token == 0 {
                break;
            }
            if n > differs_at {
                let first_child = levels.get(n + 1).map(|next| next.token.len() as u32);
                let level = &mut levels[n];
                level.token.push((token - 1) as u32);
                level.count.push(0);
                level.first_child.extend(first_child);
            }
            if let Some(count) = levels[n].count.last_mut() {
                *count += 1;
            }
        }
        previous = Some(key);
    }
    for n in 0..order {
        let end = levels[n + 1].token.len() as u32;
        levels[n].first_child.push(end);
    }
    levels.iter_mut().for_each(|level| {
        level.token.shrink_to_fit();
        level.count.shrink_to_fit();
        level.first_child.shrink_to_fit();
    });
    levels
}

/// How many leading tokens two keys share, from the exclusive or of both.
fn first_difference(xor: u128, order: usize, bits: u32) -> usize {
    if xor == 0 {
        return order;
    }
    let highest_bit = 127 - xor.leading_zeros();
    order - 1 - (highest_bit / bits) as usize
}

/// Replaces occurrences by distinct left neighbours below the highest order; an n-gram at a document's start has none and keeps them.
fn adjust_counts(levels: &mut [Level], unigram_of_token: &[u32]) {
    let order = levels.len() - 1;
    let mut suffix_of = vec![0u32; levels[1].token.len()]; // The suffix of a unigram is the root.
    for n in 1..order {
        let mut suffix_of_child = vec![NONE; levels[n + 1].token.len()];
        let mut n_left = vec![0u32; levels[n].token.len()];
        for (node, &suffix) in suffix_of.iter().enumerate() {
            let first = &levels[n].first_child;
            let children = first[node] as usize..first[node + 1] as usize;
            let tokens = &levels[n + 1].token[children.clone()];
            for (child, &token) in suffix_of_child[children].iter_mut().zip(tokens) {
                *child = find_child(levels, unigram_of_token, n - 1, suffix, token);
                n_left[*child as usize] += 1;
            }
        }
        for (count, &left) in levels[n].count.iter_mut().zip(&n_left) {
            if left > 0 {
                *count = left;
            }
        }
        suffix_of = suffix_of_child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Documents {
        let mut documents = Documents::default();
        documents.push(&[1, 2, 1, 2, 3]);
        documents.push(&[2, 1, 2]);
        documents
    }

    #[test]
    fn counts_are_occurrences_at_the_top_and_left_neighbours_below() {
        let trie = Trie::build(&documents(), 3, 5, 4).unwrap();
        let count = |tokens: &[u32]| {
            let mut node = 0;
            for (n, &token) in tokens.iter().enumerate() {
                node = trie.child(n, node, token);
                if node == NONE {
                    return 0;
                }
            }
            trie.level(tokens.len()).count[node as usize]
        };
        // <s>1212 3, <s>212 : trigrams.
        assert_eq!([count(&[1, 2, 1]), count(&[2, 1, 2]), count(&[4, 2, 1]), count(&[3, 1, 2])], [1, 2, 1, 0]);
        // Bigrams: 1 2 after {<s>, 2}; 2 1 after {1, <s>}; at the start: occurrences.
        assert_eq!([count(&[1, 2]), count(&[2, 1]), count(&[4, 1]), count(&[2, 3])], [2, 2, 1, 1]);
        // Unigrams: 1 after {<s>, 2}; 2 after {1, <s>}; 3 after {2}; the start is never predicted.
        assert_eq!([count(&[1]), count(&[2]), count(&[3]), count(&[4])], [2, 2, 1, 0]);
    }

    #[test]
    fn full_width_keys_and_bad_input() {
        let trie = Trie::build(&documents(), 8, 65_535, 60_000).unwrap();
        assert_eq!(trie.level(8).token.len(), 0);
        assert_eq!(trie.level(6).token.len(), 1);
        assert!(Trie::build(&documents(), 9, 65_535, 60_000).unwrap_err().contains("expected 2..=8"));
        assert!(Trie::build(&documents(), 3, 3, 2).unwrap_err().contains("token 3"));
    }
}
