//! Finds how little of the vocabulary each language can do with, after training.
#![allow(non_snake_case)]

use anyhow::Result;
use indicatif::ProgressBar;
use multicoder_model::{CodeLm, Tokenizer, VocabularyFilter};

use super::neural::each_token;
use super::sample::LanguageSample;

/// Shares of a language's training tokens that the entries it keeps cover; the first that suffices is taken.
const COVERED: [f64; 6] = [0.98, 0.99, 0.995, 0.998, 0.999, 0.9995];
/// Share of held-out tokens whose likeliest token has to stay the same.
const SAME: f64 = 0.999;

/// What was found of one language.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    pub language: String,
    /// Entries that are kept.
    pub n_kept: usize,
    /// Held-out tokens, and how many of them have another likeliest token.
    pub n_tokens: usize,
    pub n_other: usize,
}

/// What each language of `training` uses of the vocabulary: single bytes, special tokens, and the entries most frequent there, as few as
/// leave the network's likeliest token the same at 99.9 % of the tokens of `held_out`. An entry also stands in for itself where it is in the
/// text before, half a context back at most. Languages that need nearly all keep all, and are not told.
///
/// # Errors
/// Errors of the tokenizer and the model.
pub fn fit(
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    training: &[LanguageSample],
    held_out: &[LanguageSample],
    bar: &ProgressBar,
) -> Result<(VocabularyFilter, Vec<Fitted>)> {
    let (mut filter, mut all) = (VocabularyFilter::default(), Vec::new());
    for sample in training {
        let Some(held_out) = held_out.iter().find(|of| of.language == sample.language) else { continue };
        let ranked = ranked(tokenizer, sample)?;
        let needed = needed(lm, tokenizer, held_out, &ranked, bar)?;
        if let Some((n_kept, n_other)) = enough(ranked.covering, &needed) {
            filter.insert(&sample.language, ranked.ids[..n_kept].to_vec());
            all.push(Fitted { language: sample.language.clone(), n_kept, n_tokens: needed.len(), n_other });
        }
    }
    Ok((filter, all))
}

/// The first of `tries` that leaves out few enough of the `needed` ranks, and how many it does; none without any.
fn enough(tries: [usize; COVERED.len()], needed: &[usize]) -> Option<(usize, usize)> {
    let at_most = ((1.0 - SAME) * needed.len() as f64 + 1e-9) as usize;
    let n_other = |n_kept: usize| needed.iter().filter(|&&rank| rank >= n_kept).count();
    let mut tries = tries.into_iter().map(|n_kept| (n_kept, n_other(n_kept))).filter(|_| !needed.is_empty());
    tries.find(|(_, n_other)| *n_other <= at_most)
}

/// The vocabulary by how much a language needs it.
struct Ranked {
    ids: Vec<u32>,
    /// How many of `ids` cover each of [`COVERED`].
    covering: [usize; COVERED.len()],
}

fn ranked(tokenizer: &Tokenizer, sample: &LanguageSample) -> Result<Ranked> {
    let mut counts = vec![0u64; tokenizer.vocab_size()];
    for text in &sample.texts {
        tokenizer.encode(text)?.into_iter().for_each(|id| counts[id as usize] += 1);
    }
    let is_always_kept = |id: u32| tokenizer.bytes_of(id).len() <= 1;
    let mut ids: Vec<u32> = (0..counts.len() as u32).collect();
    ids.sort_by_key(|&id| (!is_always_kept(id), std::cmp::Reverse(counts[id as usize]), id));
    let n_always = ids.iter().filter(|&&id| is_always_kept(id)).count();
    let total = counts.iter().sum::<u64>() as f64;
    let covering = COVERED.map(|share| {
        let mut covered = 0;
        let enough = ids.iter().position(|&id| {
            covered += counts[id as usize];
            covered as f64 >= share * total
        });
        enough.map_or(ids.len(), |at| (at + 1).max(n_always))
    });
    Ok(Ranked { ids, covering })
}

/// Of each held-out token, the rank of what the network says there: 0 where that stands in the text.
fn needed(
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    held_out: &LanguageSample,
    ranked: &Ranked,
    bar: &ProgressBar,
) -> Result<Vec<usize>> {
    let mut rank_of = vec![0; ranked.ids.len()];
    ranked.ids.iter().enumerate().for_each(|(rank, &id)| rank_of[id as usize] = rank);
    let mut needed = Vec::new();
    for text in &held_out.texts {
        let ids = tokenizer.encode(text)?;
        each_token(lm, tokenizer, (&held_out.language, true), &ids, &mut |at, logits_V| {
            let best = (0..logits_V.len()).max_by(|&a, &b| logits_V[a].total_cmp(&logits_V[b])).unwrap_or(0);
            let before = &ids[at.saturating_sub(lm.config().context_tokens / 2)..at];
            // A row beyond the vocabulary is nobody's.
            let rank = rank_of.get(best).copied().unwrap_or(usize::MAX);
            needed.push(if before.contains(&(best as u32)) { 0 } else { rank });
        })?;
        bar.inc(1);
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use multicoder_model::ModelConfig;
    use multicoder_model::tokenizer::TokenizerOptions;

    #[test]
    fn as_little_is_kept_as_leaves_one_in_a_thousand_out() {
        let tries = [10, 20, 30, 40, 50, 60];
        let needed = |n_out: usize| [vec![5; 2000 - n_out], vec![35; n_out]].concat();
        assert_eq!(enough(tries, &needed(0)), Some((10, 0)));
        assert_eq!(enough(tries, &needed(2)), Some((10, 2)));
        assert_eq!(enough(tries, &needed(3)), Some((40, 0)));
        assert_eq!(enough(tries, &[usize::MAX; 9]), None);
        assert_eq!(enough(tries, &[]), None);
    }

    #[test]
    fn a_language_keeps_bytes_and_what_it_has_often_and_needs_what_the_network_says() {
        let (lua, go) = ("local alpha = beta(gamma)\n".repeat(40), "func delta(epsilon int) {}\n".repeat(40));
        let options = TokenizerOptions {
            vocab_size: 330,
            languages: vec!["lua".into(), "go".into()],
            min_frequency: 2,
            ..TokenizerOptions::default()
        };
        let tokenizer = Tokenizer::train([&lua, &go].into_iter().cycle().take(8), &options).unwrap();
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": tokenizer.vocab_size(), "d_model": 32, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1,
            "d_head": 32, "d_ff": 32, "context_tokens": 64, "languages": ["lua", "go"],
        }))
        .unwrap();
        let lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
        let sample = |language: &str, text: &String| LanguageSample {
            language: language.into(),
            texts: vec![text.clone()],
            ..LanguageSample::default()
        };
        let both = [sample("lua", &lua), sample("go", &go)];
        let ranked = ranked(&tokenizer, &both[0]).unwrap();
        let kept = |text: &str, n: usize| tokenizer.encode(text).unwrap().iter().all(|id| ranked.ids[..n].contains(id));
        let [most, .., all] = ranked.covering;
        assert!(most <= all && all < tokenizer.vocab_size(), "{:?}", ranked.covering);
        assert!(kept("local alpha = beta(gamma)\n", all) && kept("\u{7}\u{e9}", most));
        assert!(!kept("func delta", all));

        let needed = needed(&lm, &tokenizer, &both[0], &ranked, &ProgressBar::hidden()).unwrap();
        let ids = tokenizer.encode(&lua).unwrap();
        assert_eq!(needed.len(), ids.len());
        each_token(&lm, &tokenizer, ("lua", true), &ids, &mut |at, logits_V| {
            let stands = |id: u32| ids[at.saturating_sub(32)..at].contains(&id);
            let best = ranked.ids[needed[at]];
            let largest = logits_V.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert!(logits_V[best as usize] == largest || needed[at] == 0 && (0..330).any(stands));
        })
        .unwrap();
        let (filter, fitted) = fit(&lm, &tokenizer, &both, &both[..1], &ProgressBar::hidden()).unwrap();
        let of: Vec<(&str, usize)> = filter.languages().map(|(language, ids)| (language, ids.len())).collect();
        assert_eq!(of, fitted.iter().map(|of| (of.language.as_str(), of.n_kept)).collect::<Vec<_>>());
        assert!(of.iter().all(|(language, _)| *language == "lua"), "nothing is held out of the other");
    }
}
