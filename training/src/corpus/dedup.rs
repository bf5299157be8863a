//! Which of several equal or nearly equal files stays. Clusters are the connected components of all pairs that share a band
//! and whose signatures agree in 0.7 of their places; they reach across splits: a copy in training of something in the test
//! split is what goes.

use std::collections::HashMap;

use super::filter::Drop;
use super::minhash::{Signature, THRESHOLD};

/// What is compared of a document. Smaller `rank` stays: split first (test, valid, train), then package and path.
pub struct Candidate {
    /// Position in the order of preference; unique.
    pub rank: usize,
    /// Hash of the whole text.
    pub text_hash: u128,
    /// MinHash of the text.
    pub signature: Signature,
}

/// Why a candidate goes, and what stays in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// [`Drop::ExactDuplicate`] or [`Drop::NearDuplicate`].
    pub reason: Drop,
    /// Index of the candidate that stays: the least rank of the cluster.
    pub kept: usize,
}

/// For each candidate, why it goes, or `None` when it stays. Exactly one of every cluster stays: the least rank.
pub fn duplicates(candidates: &[Candidate]) -> Vec<Option<Removal>> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|&idx| candidates[idx].rank);
    // `originals` is in order of rank, so the smaller position is the one that stays.
    let mut position_of = HashMap::new();
    let mut originals = Vec::new();
    for &idx in &order {
        position_of.entry(candidates[idx].text_hash).or_insert_with(|| {
            originals.push(idx);
            originals.len() - 1
        });
    }
    let mut clusters = Clusters::new(originals.len());
    for band_idx in 0..super::minhash::N_BANDS {
        join_band(&mut clusters, candidates, &originals, band_idx);
    }
    let mut removals = vec![None; candidates.len()];
    for idx in order {
        let position = position_of[&candidates[idx].text_hash];
        let kept = originals[clusters.root(position)];
        let reason = if originals[position] == idx { Drop::NearDuplicate } else { Drop::ExactDuplicate };
        removals[idx] = (kept != idx).then_some(Removal { reason, kept });
    }
    removals
}

/// Joins all pairs of a bucket that resemble each other; a pair that is of one cluster already is not compared.
fn join_band(clusters: &mut Clusters, candidates: &[Candidate], originals: &[usize], band_idx: usize) {
    let mut buckets: HashMap<u64, Vec<usize>> = HashMap::new();
    for (position, &idx) in originals.iter().enumerate() {
        let Some(band) = candidates[idx].signature.bands().nth(band_idx) else { continue };
        let bucket = buckets.entry(band).or_default();
        for &earlier in bucket.iter() {
            let other = &candidates[originals[earlier]].signature;
            let joined = clusters.root(earlier) == clusters.root(position);
            if !joined && candidates[idx].signature.similarity(other) >= THRESHOLD {
                clusters.join(earlier, position);
            }
        }
        bucket.push(position);
    }
}

/// Union-find whose root is the smallest member.
pub(super) struct Clusters {
    parent: Vec<usize>,
}

impl Clusters {
    /// `n` clusters of one member each.
    pub(super) fn new(n: usize) -> Self {
        Self { parent: (0..n).collect() }
    }

    /// The smallest member of the cluster.
    pub(super) fn root(&mut self, mut member: usize) -> usize {
        while self.parent[member] != member {
            self.parent[member] = self.parent[self.parent[member]];
            member = self.parent[member];
        }
        member
    }

    /// Makes one cluster of two.
    pub(super) fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(rank: usize, text: &str) -> Candidate {
        Candidate { rank, text_hash: xxhash_rust::xxh3::xxh3_128(text.as_bytes()), signature: Signature::of(text) }
    }

    fn words(range: std::ops::Range<usize>) -> String {
        range.map(|n| format!("w{n} ")).collect()
    }

    #[test]
    fn the_least_rank_of_a_cluster_stays() {
        // Training (rank 5, 6), valid (3), test (1): the copies go, whatever the order of input.
        let all = [
            candidate(5, &words(0..500)),
            candidate(1, &words(5..505)),
            candidate(6, &words(9000..9500)),
            candidate(3, &words(0..500)),
        ];
        let goes = |reason| Some(Removal { reason, kept: 1 });
        assert_eq!(duplicates(&all), [goes(Drop::ExactDuplicate), None, None, goes(Drop::NearDuplicate)]);
    }

    #[test]
    fn clusters_are_transitive() {
        let all = [candidate(0, &words(0..500)), candidate(1, &words(60..560)), candidate(2, &words(120..620))];
        let goes = Some(Removal { reason: Drop::NearDuplicate, kept: 0 });
        assert_eq!(duplicates(&all), [None, goes, goes]);
    }
}
