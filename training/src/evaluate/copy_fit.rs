//! Fits the weights of the model's copy component on held-out text, after training.
#![allow(non_snake_case)]

use anyhow::Result;
use indicatif::ProgressBar;
use multicoder_model::copy::{CopyConfig, Followers, MAX_MATCH, N_CONFIDENCES, confidence_bin, next_token_probs};
use multicoder_model::{CodeLm, Tokenizer};

use super::neural::each_token;
use super::sample::LanguageSample;
use crate::ngram::mixture::maximise;

/// Discounts that are tried.
const DISCOUNTS: [f32; 4] = [0.3, 0.5, 0.7, 0.9];

/// What the parts said about one held-out token after a match.
struct Case {
    bucket: [usize; 2],
    p_network: f64,
    /// Of the text's own followers with each of [`DISCOUNTS`], backed off to the network.
    p_copy: [f64; DISCOUNTS.len()],
}

/// The discount and the weights under which `samples` are likeliest: expectation maximisation for each discount. Every language counts
/// by its tokens.
///
/// # Errors
/// Errors of the tokenizer and the model.
pub fn fit(lm: &CodeLm, tokenizer: &Tokenizer, samples: &[LanguageSample], bar: &ProgressBar) -> Result<CopyConfig> {
    let mut cases = Vec::new();
    for (sample, text) in samples.iter().flat_map(|sample| sample.texts.iter().map(move |text| (sample, text))) {
        let ids = tokenizer.encode(text)?;
        each_token(lm, tokenizer, (&sample.language, true), &ids, &mut |at, logits_V| {
            cases.extend(case(logits_V, &ids[..at], ids[at]));
        })?;
        bar.inc(1);
    }
    let fits = (0..DISCOUNTS.len()).map(|nth| {
        let pairs = || cases.iter().map(move |case| (case.bucket, case.p_copy[nth], case.p_network));
        let mut weights = vec![vec![0.5; N_CONFIDENCES]; MAX_MATCH];
        maximise(pairs(), &mut weights);
        let likelihood = |(bucket, copy, network): ([usize; 2], f64, f64)| {
            let weight = weights[bucket[0]][bucket[1]];
            (weight * copy + (1.0 - weight) * network).ln()
        };
        (pairs().map(likelihood).sum::<f64>(), DISCOUNTS[nth], weights)
    });
    let best = fits.reduce(|a, b| if b.0 > a.0 { b } else { a });
    let (_, discount, weights) = best.unwrap_or_default();
    Ok(CopyConfig {
        discount,
        weights: weights.into_iter().map(|row| row.into_iter().map(|w| w as f32).collect()).collect(),
    })
}

fn case(logits_V: &[f32], history: &[u32], target: u32) -> Option<Case> {
    let probs_V = next_token_probs(logits_V, &[], None);
    let p_network = f64::from(probs_V[target as usize].max(f32::MIN_POSITIVE));
    let largest = probs_V.iter().copied().fold(0.0, f32::max);
    let mut p_copy = [0.0; DISCOUNTS.len()];
    let mut matched = 0;
    for (p_copy, discount) in p_copy.iter_mut().zip(DISCOUNTS) {
        let followers = Followers::find(history, discount)?;
        let seen = followers.seen.iter().find(|entry| entry.0 == target).map_or(0.0, |entry| f64::from(entry.1));
        *p_copy = seen + f64::from(followers.rest) * p_network;
        matched = followers.matched;
    }
    Some(Case { bucket: [matched - 1, confidence_bin(largest)], p_network, p_copy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use multicoder_model::ModelConfig;
    use multicoder_model::tokenizer::TokenizerOptions;

    #[test]
    fn a_network_that_knows_nothing_learns_to_trust_the_text() {
        let text: String = (0..40).map(|i| format!("alpha_{0} = beta(gamma_{0}, delta)\n", i % 4)).collect();
        let options = TokenizerOptions {
            vocab_size: 300,
            languages: vec!["lua".into()],
            min_frequency: 2,
            ..TokenizerOptions::default()
        };
        let tokenizer = Tokenizer::train(std::iter::repeat_n(text.as_str(), 4), &options).unwrap();
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": tokenizer.vocab_size(), "d_model": 32, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1,
            "d_head": 32, "d_ff": 32, "context_tokens": 64, "languages": ["lua"],
        }))
        .unwrap();
        let mut lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
        let sample = LanguageSample { language: "lua".into(), texts: vec![text.clone()], ..LanguageSample::default() };
        let copy = fit(&lm, &tokenizer, &[sample], &ProgressBar::hidden()).unwrap();
        assert!(copy.weights[MAX_MATCH - 1][0] > 0.9, "{copy:?}");

        let ids = tokenizer.encode(&text).unwrap();
        let bits = |lm: &CodeLm| {
            let mut bits = 0.0;
            each_token(lm, &tokenizer, ("lua", true), &ids, &mut |at, logits_V| {
                let probs_V = next_token_probs(logits_V, &ids[..at], lm.config().copy.as_ref());
                bits -= f64::from(probs_V[ids[at] as usize]).log2();
            })
            .unwrap();
            bits
        };
        let without = bits(&lm);
        lm.set_copy(Some(copy)).unwrap();
        assert!(bits(&lm) < 0.5 * without);
    }
}
