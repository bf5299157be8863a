//! What the file itself has said so far: an n-gram cache with absolute discounting, started anew for every file.

use std::collections::HashMap;

use xxhash_rust::xxh3::Xxh3Builder;

/// Longest context that a key can hold, in tokens.
const KEY_TOKENS: usize = 16;

/// Followers of one context inside this file.
#[derive(Debug, Default)]
struct Followers {
    total: u32,
    counts: Vec<(u32, u32)>,
}

/// Mass that the cache gives to a token, and the mass that it leaves to whatever stands behind it.
#[derive(Clone, Copy, Debug)]
pub struct CacheMass {
    /// Probability from the file's own n-grams.
    pub seen: f64,
    /// Weight of the model behind the cache; `seen` summed over the vocabulary is 1 minus this.
    pub rest: f64,
}

/// An n-gram cache over the tokens of one file.
#[derive(Debug)]
pub struct FileCache {
    max_context_tokens: usize,
    discount: f64,
    contexts: HashMap<u128, Followers, Xxh3Builder>,
    unigrams: HashMap<u32, u32, Xxh3Builder>,
    history: Vec<u32>,
    /// Key of the current context of each length, longest match first found by [`Self::refresh`].
    matched: Vec<u128>,
}

impl FileCache {
    /// An empty cache that looks at up to `max_context_tokens` tokens and takes `discount` (0..1) from every seen count.
    pub fn new(max_context_tokens: usize, discount: f64) -> Self {
        Self {
            max_context_tokens: max_context_tokens.min(KEY_TOKENS),
            discount,
            contexts: HashMap::default(),
            unigrams: HashMap::default(),
            history: Vec::new(),
            matched: Vec::new(),
        }
    }

    /// Tokens of the longest current context that occurred before in this file.
    pub fn matched(&self) -> usize {
        self.matched.len()
    }

    /// Whether the file has had any token yet.
    pub fn is_empty(&self) -> bool {
        self.history.is_empty()
    }

    /// The mass of `token` after the file so far.
    pub fn mass(&self, token: u32) -> CacheMass {
        if self.history.is_empty() {
            return CacheMass { seen: 0.0, rest: 1.0 };
        }
        let total = self.history.len() as f64;
        let count = self.unigrams.get(&token).copied().unwrap_or(0);
        let mut mass = CacheMass {
            seen: (f64::from(count) - self.discount).max(0.0) / total,
            rest: self.discount * self.unigrams.len() as f64 / total,
        };
        for followers in self.matched.iter().filter_map(|key| self.contexts.get(key)) {
            let total = f64::from(followers.total);
            let lower = self.discount * followers.counts.len() as f64 / total;
            let count = followers.counts.iter().find(|entry| entry.0 == token).map_or(0, |entry| entry.1);
            mass.seen = (f64::from(count) - self.discount).max(0.0) / total + lower * mass.seen;
            mass.rest *= lower;
        }
        mass
    }

    /// Adds the token to the file.
    pub fn push(&mut self, token: u32) {
        for n in 1..=self.max_context_tokens.min(self.history.len()) {
            let followers = self.contexts.entry(self.key(n)).or_default();
            followers.total += 1;
            match followers.counts.iter_mut().find(|entry| entry.0 == token) {
                Some(entry) => entry.1 += 1,
                None => followers.counts.push((token, 1)),
            }
        }
        *self.unigrams.entry(token).or_default() += 1;
        self.history.push(token);
        self.refresh();
    }

    /// Adds up to `n_per_context` likeliest followers of each matched context, longest first; may repeat.
    pub fn candidates(&self, n_per_context: usize, out: &mut Vec<u32>) {
        let mut top: Vec<(u32, u32)> = Vec::new();
        for followers in self.matched.iter().rev().filter_map(|key| self.contexts.get(key)) {
            top.clear();
            for &(token, count) in &followers.counts {
                if top.len() == n_per_context && top.last().is_some_and(|last| last.1 >= count) {
                    continue;
                }
                let at = top.partition_point(|entry| entry.1 >= count);
                top.insert(at, (token, count));
                top.truncate(n_per_context);
            }
            out.extend(top.iter().map(|entry| entry.0));
        }
    }

    fn refresh(&mut self) {
        let longest = self.max_context_tokens.min(self.history.len());
        let mut matched = std::mem::take(&mut self.matched);
        matched.clear();
        matched.extend((1..=longest).map(|n| self.key(n)).take_while(|key| self.contexts.contains_key(key)));
        self.matched = matched;
    }

    /// Key of the last `n` tokens: their 128-bit hash, with `n` in it.
    fn key(&self, n: usize) -> u128 {
        let mut bytes = [0u8; 4 * KEY_TOKENS];
        let tail = &self.history[self.history.len() - n..];
        for (slot, token) in bytes.chunks_exact_mut(4).zip(tail) {
            slot.copy_from_slice(&token.to_le_bytes());
        }
        xxhash_rust::xxh3::xxh3_128_with_seed(&bytes[..4 * n], n as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masses_sum_to_one() {
        let mut cache = FileCache::new(4, 0.5);
        for token in [1, 2, 3, 1, 2, 3, 1, 2, 4, 5, 1] {
            let rest = cache.mass(0).rest;
            let seen: f64 = (0..8).map(|token| cache.mass(token).seen).sum();
            assert!((seen + rest - 1.0).abs() < 1e-12, "{seen} + {rest}");
            cache.push(token);
        }
    }

    #[test]
    fn repetition_is_foreseen() {
        let mut cache = FileCache::new(4, 0.5);
        for token in [1, 2, 3, 4, 5, 1, 2, 3, 4] {
            cache.push(token);
        }
        assert_eq!(cache.matched(), 4);
        assert!(cache.mass(5).seen > 0.9, "{:?}", cache.mass(5));
        let mut candidates = Vec::new();
        cache.candidates(2, &mut candidates);
        assert_eq!(candidates[0], 5);
    }
}
