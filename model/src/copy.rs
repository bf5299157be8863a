//! The copy component: what the text so far says about its next token, mixed with what the network says.
//!
//! Names and phrases of a file come back in it, also those that no training text had: a cache of the file's own n-grams (Kuhn and De Mori
//! 1990; for code Hellendoorn and Devanbu 2017, "Are deep neural networks the best choice for modeling source code?"). No table is
//! kept: the end of the text is looked for in the text, which costs microseconds, needs no update at an edit, and sees beyond the context.
#![allow(non_snake_case)]

use serde::{Deserialize, Serialize};

use crate::config::check;
use crate::error::Result;
use crate::ops::softmax_row;

/// Longest match that makes a difference, in tokens: rows of [`CopyConfig::weights`].
pub const MAX_MATCH: usize = 8;
/// Upper ends of the bins of the network's largest probability, but the last, which is 1: columns of [`CopyConfig::weights`].
const CONFIDENCES: [f32; 5] = [0.1, 0.25, 0.5, 0.75, 0.9];
/// The bins.
pub const N_CONFIDENCES: usize = CONFIDENCES.len() + 1;

/// How the two are mixed; fitted on held-out text after training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyConfig {
    /// Taken from every count (absolute discounting), between 0 and 1.
    pub discount: f32,
    /// Weight of the cache, [`MAX_MATCH`] rows by the tokens that matched (1, 2, ...), [`N_CONFIDENCES`] columns by the network's largest
    /// probability.
    pub weights: Vec<Vec<f32>>,
}

impl CopyConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        let is_share = |x: f32| (0.0..=1.0).contains(&x);
        check(is_share(self.discount), "copy.discount", self.discount, "a number from 0 to 1")?;
        let is_table = self.weights.len() == MAX_MATCH && self.weights.iter().all(|row| row.len() == N_CONFIDENCES);
        let shape = format!("{:?}", self.weights.iter().map(Vec::len).collect::<Vec<_>>());
        check(is_table, "copy.weights", shape, &format!("{MAX_MATCH} rows of {N_CONFIDENCES}"))?;
        let stray = self.weights.iter().flatten().copied().find(|&weight| !is_share(weight));
        stray.map_or(Ok(()), |weight| check(false, "copy.weights", weight, "numbers from 0 to 1"))
    }
}

/// What followed the earlier occurrences of the end of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Followers {
    /// Tokens of the longest match, 1 to [`MAX_MATCH`].
    pub matched: usize,
    /// Probability of each token that followed, by token.
    pub seen: Vec<(u32, f32)>,
    /// What is left for the network; with the sum of `seen` it is 1.
    pub rest: f32,
}

impl Followers {
    /// Looks for the end of `history` in `history`: counts of what followed the longest match, backed off to shorter ones with absolute
    /// discounting. `None` when the last token is new.
    pub fn find(history: &[u32], discount: f32) -> Option<Followers> {
        let (&last, before) = history.split_last()?;
        let ends = before.iter().enumerate().filter(|&(_, &id)| id == last).map(|(end, _)| end);
        // The follower and the length of the match that precedes it.
        let mut found: Vec<(u32, usize)> = ends.map(|end| (history[end + 1], matching(history, end))).collect();
        found.sort_unstable();
        let matched = found.iter().map(|&(_, len)| len).max()?;
        let mut seen: Vec<(u32, f32)> = found.chunk_by(|a, b| a.0 == b.0).map(|group| (group[0].0, 0.0)).collect();
        let mut rest = 1.0;
        for len in 1..=matched {
            let count = |group: &[(u32, usize)]| group.iter().filter(|entry| entry.1 >= len).count() as f32;
            let counts: Vec<f32> = found.chunk_by(|a, b| a.0 == b.0).map(count).collect();
            let total: f32 = counts.iter().sum();
            let lower = discount * counts.iter().filter(|&&count| count > 0.0).count() as f32 / total;
            for ((_, p), count) in seen.iter_mut().zip(counts) {
                *p = (count - discount).max(0.0) / total + lower * *p;
            }
            rest *= lower;
        }
        Some(Followers { matched, seen, rest })
    }
}

/// Tokens up to position `end` that equal those up to the end of `history`; at most [`MAX_MATCH`].
fn matching(history: &[u32], end: usize) -> usize {
    let pairs = history[..=end].iter().rev().zip(history.iter().rev());
    pairs.take(MAX_MATCH).take_while(|(a, b)| a == b).count()
}

/// The bin of the network's largest probability.
pub fn confidence_bin(largest: f32) -> usize {
    CONFIDENCES.iter().filter(|&&end| largest >= end).count()
}

/// The probabilities of the token after `history`: the softmax of the network's logits, mixed with the text's own [`Followers`]. Shape: `V`.
pub fn next_token_probs(logits_V: &[f32], history: &[u32], config: Option<&CopyConfig>) -> Vec<f32> {
    let mut probs_V = logits_V.to_vec();
    softmax_row(&mut probs_V);
    let Some(config) = config else { return probs_V };
    let Some(followers) = Followers::find(history, config.discount) else { return probs_V };
    let largest = probs_V.iter().copied().fold(0.0, f32::max);
    let weight = config.weights[followers.matched - 1][confidence_bin(largest)];
    let kept = 1.0 - weight + weight * followers.rest;
    probs_V.iter_mut().for_each(|p| *p *= kept);
    for (id, p) in followers.seen {
        if let Some(prob) = probs_V.get_mut(id as usize) {
            *prob += weight * p;
        }
    }
    probs_V
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(weight: f32) -> CopyConfig {
        CopyConfig { discount: 0.5, weights: vec![vec![weight; N_CONFIDENCES]; MAX_MATCH] }
    }

    #[test]
    fn the_longest_match_is_found_and_counted() {
        assert_eq!(Followers::find(&[], 0.5), None);
        assert_eq!(Followers::find(&[1, 2, 3], 0.5), None);
        // 1 2 was followed by 3 twice, 2 alone by 3 twice and by 4 once.
        let followers = Followers::find(&[1, 2, 3, 1, 2, 3, 9, 2, 4, 1, 2], 0.5).unwrap();
        assert_eq!(followers.matched, 2);
        let of_one = [1.5 / 3.0, 0.5 / 3.0];
        let lower = 0.5 / 2.0;
        let expected = [1.5 / 2.0 + lower * of_one[0], lower * of_one[1]];
        for ((id, p), (wanted, expected)) in followers.seen.iter().zip([3, 4].into_iter().zip(expected)) {
            assert!(*id == wanted && (p - expected).abs() < 1e-6, "{followers:?}");
        }
        assert!((followers.rest - lower * (0.5 * 2.0 / 3.0)).abs() < 1e-6);
    }

    #[test]
    fn a_match_is_no_longer_than_the_longest() {
        let history: Vec<u32> = (0..20).chain(0..20).collect();
        let followers = Followers::find(&history, 0.5).unwrap();
        assert_eq!((followers.matched, followers.seen.len(), followers.seen[0].0), (MAX_MATCH, 1, 0));
    }

    #[test]
    fn probabilities_sum_to_one_and_the_texts_own_phrase_rises() {
        let logits_V: Vec<f32> = (0..32).map(|i| (i as f32 * 1.3).sin()).collect();
        let history = [4u32, 5, 6, 7, 4, 5, 6];
        let alone = next_token_probs(&logits_V, &history, None);
        let mixed = next_token_probs(&logits_V, &history, Some(&config(0.6)));
        for probs_V in [&alone, &mixed] {
            assert!((probs_V.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        assert!(mixed[7] > 0.5 && alone[7] < 0.2, "{} {}", mixed[7], alone[7]);
        assert_eq!(next_token_probs(&logits_V, &history, Some(&config(0.0))), alone);
    }

    #[test]
    fn a_wrong_table_is_named() {
        let message = |edit: fn(&mut CopyConfig)| {
            let mut config = config(0.5);
            edit(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(message(|c| c.discount = 2.0).contains("copy.discount = 2"));
        assert!(message(|c| c.weights[3].truncate(2)).contains("copy.weights"));
        assert!(message(|c| c.weights[7][0] = f32::NAN).contains("copy.weights = NaN"));
        config(1.0).validate().unwrap();
    }
}
