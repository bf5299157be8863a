//! The figures: bits per byte, token accuracy, CodeXGLUE's line exact match and edit similarity, bootstrap intervals. Pure.

use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// What one system scored on one file, or on several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextScore {
    /// UTF-8 bytes of the text.
    pub n_bytes: u64,
    /// Tokens of the text.
    pub n_tokens: u64,
    /// Sum of -log2 p over the tokens.
    pub bits: f64,
    /// Tokens whose likeliest prediction was right.
    pub n_correct: u64,
}

impl TextScore {
    /// Bits per byte of text; NaN for no text.
    pub fn bits_per_byte(&self) -> f64 {
        self.bits / self.n_bytes as f64
    }

    /// Share of tokens predicted right, 0 to 1; NaN for no text.
    pub fn token_accuracy(&self) -> f64 {
        self.n_correct as f64 / self.n_tokens as f64
    }

    /// The score of both texts together.
    pub fn plus(self, other: TextScore) -> TextScore {
        TextScore {
            n_bytes: self.n_bytes + other.n_bytes,
            n_tokens: self.n_tokens + other.n_tokens,
            bits: self.bits + other.bits,
            n_correct: self.n_correct + other.n_correct,
        }
    }
}

/// What one system scored on one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LineScore {
    /// Equal as whitespace-split tokens.
    pub exact_match: bool,
    /// 0 to 100.
    pub edit_similarity: f64,
}

/// Scores a predicted rest of a line against the true one.
pub fn line_score(predicted: &str, truth: &str) -> LineScore {
    LineScore { exact_match: exact_match(predicted, truth), edit_similarity: edit_similarity(predicted, truth) }
}

/// CodeXGLUE line completion: equality of the whitespace-split texts.
pub fn exact_match(predicted: &str, truth: &str) -> bool {
    predicted.split_whitespace().eq(truth.split_whitespace())
}

/// CodeXGLUE's `fuzz.ratio` of the stripped texts, not rounded: 100 * 2M / T, with M the characters of a longest common
/// subsequence and T those of both texts. Two empty texts are alike.
pub fn edit_similarity(predicted: &str, truth: &str) -> f64 {
    100.0 * rapidfuzz::fuzz::ratio(predicted.trim().chars(), truth.trim().chars())
}

/// A mean with the interval that holds 95 of 100 bootstrap resamples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// On the sample itself.
    pub value: f64,
    /// 2.5th percentile.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// Resamples the units (files, lines) of every language with replacement and takes the macro average of `statistic` each time.
///
/// `statistic` gets the indices of one language's resampled units. Languages without units are left out.
pub fn bootstrap_macro(
    n_units: &[usize],
    n_resamples: usize,
    seed: u64,
    statistic: impl Fn(usize, &[usize]) -> f64,
) -> Option<Interval> {
    let languages: Vec<usize> = (0..n_units.len()).filter(|&language| n_units[language] > 0).collect();
    if languages.is_empty() || n_resamples == 0 {
        return None;
    }
    let mut rng = Rng::keyed(seed, "bootstrap", &[]);
    let mean = |pick: &mut dyn FnMut(usize) -> Vec<usize>| {
        let sum: f64 = languages.iter().map(|&language| statistic(language, &pick(n_units[language]))).sum();
        sum / languages.len() as f64
    };
    let value = mean(&mut |n| (0..n).collect());
    let mut draws: Vec<f64> = (0..n_resamples).map(|_| mean(&mut |n| (0..n).map(|_| rng.below(n)).collect())).collect();
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| draws[((draws.len() - 1) as f64 * share).round() as usize];
    Some(Interval { value, low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_match_ignores_only_white_space_between_tokens() {
        assert!(exact_match("return  a + b ", "return a + b"));
        assert!(exact_match("\tx = 1\r", "x = 1"));
        assert!(!exact_match("return a+b", "return a + b"));
        assert!(!exact_match("return A", "return a"));
        assert!(exact_match("", "  "));
    }

    #[test]
    fn edit_similarity_is_the_indel_ratio() {
        assert_eq!(edit_similarity("abc", "abc"), 100.0);
        assert_eq!(edit_similarity("abc", "xyz"), 0.0);
        // Longest common subsequence of "kitten" and "sitting" is "ittn": 100 * 8 / 13.
        assert!((edit_similarity("kitten", "sitting") - 100.0 * 8.0 / 13.0).abs() < 1e-4);
        // fuzz.ratio("this is a test", "this is a test!") is 97.
        assert_eq!(edit_similarity("this is a test", "this is a test!").round(), 97.0);
        // A diff that is not the shortest one gave 52.6 here, and 42.6 below.
        assert!((edit_similarity("result.append(x)", "results.append(foo(x))") - 100.0 * 32.0 / 38.0).abs() < 1e-4);
        let strings = ("decode(input_ids, 'x')[0]", "decode(prompt_ids, \"of a string\")[0]");
        assert!((edit_similarity(strings.0, strings.1) - 100.0 * 38.0 / 61.0).abs() < 1e-4);
        assert_eq!(edit_similarity("", ""), 100.0);
        assert_eq!(edit_similarity("", "x"), 0.0);
        assert_eq!(edit_similarity("  größe ", "größe"), 100.0);
    }

    #[test]
    fn a_uniform_model_costs_log2_of_the_vocabulary_a_token() {
        let (vocab_size, n_tokens, n_bytes) = (16_384f64, 1000, 3700);
        let bits: f64 = (0..n_tokens).map(|_| -(1.0 / vocab_size).log2()).sum();
        let score = TextScore { n_bytes, n_tokens, bits, n_correct: 0 };
        assert!((score.bits_per_byte() - 14.0 * 1000.0 / 3700.0).abs() < 1e-9);
    }

    #[test]
    fn bootstrap_interval_holds_the_value_and_shrinks_with_the_sample() {
        let interval_of = |n: usize| {
            let statistic = |_: usize, units: &[usize]| {
                units.iter().map(|unit| (unit % 7) as f64).sum::<f64>() / units.len() as f64
            };
            bootstrap_macro(&[n, n, 0], 400, 1, statistic).unwrap()
        };
        let (small, large) = (interval_of(21), interval_of(700));
        assert!((small.value - 3.0).abs() < 1e-12 && small.low < 3.0 && small.high > 3.0);
        assert!(large.high - large.low < 0.4 * (small.high - small.low));
        assert!(bootstrap_macro(&[0], 10, 1, |_, _| 0.0).is_none());
    }
}
