//! Which of several equal or nearly equal files stays. Clusters are the connected components of all pairs that share a band
//! and whose signatures agree in 0.7 of their places; they reach across splits: a copy in training of something in the test
//! split is what goes.

use std::collections::HashMap;

use super::Result;
use super::filter::Drop;
use super::minhash::N_BANDS;

/// What is compared of a document. Smaller `rank` stays: split first (test, valid, train), then package and path.
pub struct Candidate {
    /// Position in the order of preference; unique.
    pub rank: usize,
    /// Hash of the whole text.
    pub text_hash: u128,
    /// One hash a band of the text's MinHash signature.
    pub bands: [u64; N_BANDS],
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
/// `similar` says whether the signatures of two candidates, by their indices, agree as far as near-duplicates do.
///
/// # Errors
/// Those of `similar`.
pub fn duplicates(
    candidates: &[Candidate],
    mut similar: impl FnMut(usize, usize) -> Result<bool>,
) -> Result<Vec<Option<Removal>>> {
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
    for band_idx in 0..N_BANDS {
        let mut band: Vec<(u64, usize)> =
            originals.iter().map(|&idx| candidates[idx].bands[band_idx]).zip(0..).collect();
        band.sort_unstable();
        for bucket in band.chunk_by(|a, b| a.0 == b.0) {
            join_bucket(&mut clusters, bucket, |a, b| similar(originals[a], originals[b]))?;
        }
    }
    let mut removals = vec![None; candidates.len()];
    for idx in order {
        let position = position_of[&candidates[idx].text_hash];
        let kept = originals[clusters.root(position)];
        let reason = if originals[position] == idx { Drop::NearDuplicate } else { Drop::ExactDuplicate };
        removals[idx] = (kept != idx).then_some(Removal { reason, kept });
    }
    Ok(removals)
}

/// Joins all pairs of a bucket that resemble each other; a pair that is of one cluster already is not compared.
fn join_bucket(
    clusters: &mut Clusters,
    bucket: &[(u64, usize)],
    mut similar: impl FnMut(usize, usize) -> Result<bool>,
) -> Result<()> {
    for (idx, &(_, position)) in bucket.iter().enumerate() {
        for &(_, earlier) in &bucket[..idx] {
            if clusters.root(earlier) != clusters.root(position) && similar(earlier, position)? {
                clusters.join(earlier, position);
            }
        }
    }
    Ok(())
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
    use crate::corpus::minhash::{Signature, THRESHOLD};

    /// The decisions on texts with their ranks.
    fn decide(texts: &[(usize, String)]) -> Vec<Option<Removal>> {
        let signatures: Vec<Signature> = texts.iter().map(|(_, text)| Signature::of(text)).collect();
        let candidate = |((rank, text), signature): (&(usize, String), &Signature)| Candidate {
            rank: *rank,
            text_hash: xxhash_rust::xxh3::xxh3_128(text.as_bytes()),
            bands: signature.bands(),
        };
        let candidates: Vec<Candidate> = texts.iter().zip(&signatures).map(candidate).collect();
        duplicates(&candidates, |a, b| Ok(signatures[a].similarity(&signatures[b]) >= THRESHOLD)).unwrap()
    }

    fn words(range: std::ops::Range<usize>) -> String {
        range.map(|n| format!("w{n} ")).collect()
    }

    #[test]
    fn the_least_rank_of_a_cluster_stays() {
        // Training (rank 5, 6), valid (3), test (1): the copies go, whatever the order of input.
        let all = [(5, words(0..500)), (1, words(5..505)), (6, words(9000..9500)), (3, words(0..500))];
        let goes = |reason| Some(Removal { reason, kept: 1 });
        assert_eq!(decide(&all), [goes(Drop::ExactDuplicate), None, None, goes(Drop::NearDuplicate)]);
    }

    #[test]
    fn clusters_are_transitive() {
        let all = [(0, words(0..500)), (1, words(60..560)), (2, words(120..620))];
        let goes = Some(Removal { reason: Drop::NearDuplicate, kept: 0 });
        assert_eq!(decide(&all), [None, goes, goes]);
    }
}
