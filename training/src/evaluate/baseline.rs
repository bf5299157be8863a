//! The n-gram column: trains on the training split, fits its weights on the valid split, scores the samples.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, anyhow};
use multicoder_model::{PromptBudget, Tokenizer, fim};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::metric::{LineScore, TextScore, line_score};
use super::sample::LanguageSample;
use super::token_store::TokenStore;
use super::{EvalOptions, SystemOutput, progress_bar};
use crate::data::shard;
use crate::ngram::{Documents, KneserNey, Mixture, Weights, complete_line, mixture, vocabulary_by_bytes};

/// Valid text from which the mixture weights of a language are fitted, in tokens.
const FIT_TOKENS: usize = 150_000;
/// Text before a caret that a line completion looks at, in tokens.
const LINE_PREFIX_TOKENS: usize = 16_384;
/// Changed whenever the same corpus would give other figures, so that kept results are not used again.
const VERSION: u32 = 3;

/// What the baseline was made of; stands in the report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BaselineInfo {
    /// Longest n-gram, in tokens.
    pub order: usize,
    /// How it predicts, in words.
    pub method: String,
    /// Tokens of the training split, all languages.
    pub n_train_tokens: usize,
    /// Distinct n-grams of the model of all languages.
    pub n_ngrams_all: usize,
}

/// What the baseline scored, by language.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BaselineOutput {
    /// What it was made of.
    pub info: BaselineInfo,
    /// By language name.
    pub languages: BTreeMap<String, SystemOutput>,
}

/// Trains, fits and scores; or returns what an earlier call with the same corpus, tokenizer and options kept.
///
/// # Errors
/// Missing or broken shards; an order that does not fit the vocabulary.
pub fn evaluate(tokenizer: &Tokenizer, samples: &[LanguageSample], options: &EvalOptions) -> Result<BaselineOutput> {
    let store = TokenStore::open(&options.ngram_cache, &options.shards, tokenizer)?;
    let kept = store.path(&format!("{:016x}.scores.json", identity(samples, options)));
    if let Ok(text) = fs::read_to_string(&kept) {
        return serde_json::from_str(&text).with_context(|| format!("{}: delete it and try again", kept.display()));
    }
    let bar = progress_bar(0, "tokenizing for the n-gram baseline, bytes");
    let tell = |n_bytes| bar.inc(n_bytes);
    let train = store.load(&options.shards, "train", tokenizer, &tell)?;
    let valid = if_there(store.load(&options.shards, "valid", tokenizer, &tell))?;
    bar.finish_and_clear();
    let output = train_and_score(tokenizer, samples, &train, &valid, options)?;
    let part = kept.with_extension("part");
    fs::write(&part, serde_json::to_string(&output)?).with_context(|| part.display().to_string())?;
    fs::rename(&part, &kept).with_context(|| kept.display().to_string())?;
    Ok(output)
}

/// Nothing for a corpus without such a split; an error for shards that cannot be read.
fn if_there(loaded: Result<BTreeMap<String, Documents>>) -> Result<BTreeMap<String, Documents>> {
    let absent = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(shard::Error::NoShards { .. }));
    match loaded {
        Err(error) if absent(&error) => Ok(BTreeMap::new()),
        loaded => loaded,
    }
}

/// Hash of all that the scores depend on besides tokenizer and shards.
fn identity(samples: &[LanguageSample], options: &EvalOptions) -> u64 {
    let (order, line_tokens) = (options.ngram_order, options.max_line_tokens);
    let mut identity = format!("{VERSION} {order} {FIT_TOKENS} {LINE_PREFIX_TOKENS} {line_tokens}");
    for sample in samples {
        identity += &format!(" {} {:?}", sample.language, sample.lines);
        sample.texts.iter().for_each(|text| identity += &format!(" {:x}", xxh3_64(text.as_bytes())));
    }
    xxh3_64(identity.as_bytes())
}

fn train_and_score(
    tokenizer: &Tokenizer,
    samples: &[LanguageSample],
    train: &BTreeMap<String, Documents>,
    valid: &BTreeMap<String, Documents>,
    options: &EvalOptions,
) -> Result<BaselineOutput> {
    let order = options.ngram_order;
    let start = tokenizer.special().end_of_text;
    let fit = |documents: &Documents| {
        KneserNey::train(documents, order, tokenizer.vocab_size(), start).map_err(|reason| anyhow!(reason))
    };
    let bar = progress_bar(samples.len() as u64, "n-grams");
    bar.set_message("n-grams of all languages");
    let mut together = Documents::default();
    train.values().for_each(|documents| together.extend(documents));
    let all = fit(&together)?;
    let info = BaselineInfo {
        order,
        method: method(samples, valid),
        n_train_tokens: together.n_tokens(),
        n_ngrams_all: all.n_ngrams(),
    };
    drop(together);
    let mut output = BaselineOutput { info, languages: BTreeMap::new() };
    let mut fitted: Vec<Weights> = Vec::new();
    // Languages without held-out text come last: they get the mean of the others' weights.
    let (with, without): (Vec<_>, Vec<_>) = samples.iter().partition(|sample| valid.contains_key(&sample.language));
    for sample in with.into_iter().chain(without) {
        bar.set_message(format!("n-grams: {}", sample.language));
        let language = fit(train.get(&sample.language).unwrap_or(&Documents::default()))?;
        let weights = match valid.get(&sample.language) {
            Some(held_out) => mixture::fit(&language, &all, &head(held_out, FIT_TOKENS)),
            None => Weights::mean(&fitted).unwrap_or_else(|| Weights::constant(order, 0.6, 0.4)),
        };
        fitted.extend(valid.contains_key(&sample.language).then(|| weights.clone()));
        let scorer = Scorer { tokenizer, language: &language, all: &all, weights: &weights };
        output.languages.insert(sample.language.clone(), scorer.score(sample, options)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(output)
}

/// How the baseline predicts, in words, with the languages whose weights could not be fitted.
fn method(samples: &[LanguageSample], valid: &BTreeMap<String, Documents>) -> String {
    let names = samples.iter().map(|sample| sample.language.as_str());
    let unfitted: Vec<&str> = names.filter(|name| !valid.contains_key(*name)).collect();
    let weights = if unfitted.is_empty() {
        "weights fitted by EM on the valid split".to_owned()
    } else if unfitted.len() == samples.len() {
        "weights not fitted, for want of valid text: constants".to_owned()
    } else {
        let names = unfitted.join(", ");
        format!("weights fitted by EM on the valid split, but not for want of valid text: {names} (mean of the others)")
    };
    format!(
        "interpolated modified Kneser-Ney without cut-offs, one model per language mixed with one over all languages, \
         and an in-file cache of contexts up to 8 tokens; {weights}"
    )
}

/// Every k-th document, so that about `n_tokens` are taken from all over.
fn head(documents: &Documents, n_tokens: usize) -> Documents {
    let stride = documents.n_tokens().div_ceil(n_tokens).max(1);
    let mut taken = Documents::default();
    for document in documents.iter().step_by(stride) {
        let room = n_tokens - taken.n_tokens();
        taken.push(&document[..document.len().min(room).min(n_tokens / 8)]);
        if taken.n_tokens() >= n_tokens {
            break;
        }
    }
    taken
}

struct Scorer<'a> {
    tokenizer: &'a Tokenizer,
    language: &'a KneserNey,
    all: &'a KneserNey,
    weights: &'a Weights,
}

impl Scorer<'_> {
    fn mixture(&self) -> Mixture<'_> {
        Mixture { language: self.language, all: self.all, weights: self.weights }
    }

    fn score(&self, sample: &LanguageSample, options: &EvalOptions) -> Result<SystemOutput> {
        let texts = sample.texts.iter().map(|text| self.text_score(text)).collect::<Result<_>>()?;
        let vocabulary = vocabulary_by_bytes(self.tokenizer);
        let lines = sample.lines.iter().map(|case| {
            let (before, truth, _) = sample.parts(case);
            self.line(before, truth, &vocabulary, options.max_line_tokens)
        });
        Ok(SystemOutput {
            texts,
            lines: lines.collect::<Result<_>>()?,
            lines_with_suffix: Vec::new(),
            expert_load: Vec::new(),
        })
    }

    fn text_score(&self, text: &str) -> Result<TextScore> {
        let mut predictor = self.mixture().start();
        let mut score = TextScore { n_bytes: text.len() as u64, ..TextScore::default() };
        for token in self.tokenizer.encode(text)? {
            score.n_correct += u64::from(predictor.best() == token);
            score.bits -= predictor.step(token).log2();
            score.n_tokens += 1;
        }
        Ok(score)
    }

    fn line(&self, before: &str, truth: &str, vocabulary: &[u32], max_new_tokens: usize) -> Result<LineScore> {
        let budget = PromptBudget { max_tokens: LINE_PREFIX_TOKENS, suffix_tokens: 0, snippet_tokens: 0 };
        let prompt = fim::prompt(self.tokenizer, None, &[], before, "", &budget)?;
        let mut predictor = self.mixture().start();
        let special = self.tokenizer.special().end_of_text;
        prompt.ids.iter().filter(|&&id| id != special).for_each(|&id| {
            predictor.skip(id);
        });
        let bytes = complete_line(&mut predictor, self.tokenizer, vocabulary, &prompt.heal, max_new_tokens);
        Ok(line_score(&String::from_utf8_lossy(&bytes), truth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tests::options;

    #[test]
    fn every_option_that_moves_a_score_is_in_the_identity() {
        let samples = [LanguageSample { language: "lua".to_owned(), ..LanguageSample::default() }];
        let first = identity(&samples, &options());
        assert_eq!(first, identity(&samples, &EvalOptions { n_resamples: 7, suffix_tokens: 7, ..options() }));
        assert_ne!(first, identity(&samples, &EvalOptions { max_line_tokens: 7, ..options() }));
        assert_ne!(first, identity(&samples, &EvalOptions { ngram_order: 7, ..options() }));
    }

    #[test]
    fn only_an_absent_valid_split_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let split = || if_there(shard::read_split(dir.path(), "valid").map(|_| BTreeMap::new()).map_err(Into::into));
        assert!(split().unwrap().is_empty());
        fs::write(dir.path().join("valid"), "no folder").unwrap();
        assert!(split().is_err());
    }

    #[test]
    fn the_report_says_whose_weights_were_not_fitted() {
        let sample = |name: &str| LanguageSample { language: name.to_owned(), ..LanguageSample::default() };
        let samples = [sample("lua"), sample("perl")];
        let valid = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Documents::default())).collect();
        assert!(method(&samples, &valid(&["lua", "perl"])).ends_with("on the valid split"));
        assert!(method(&samples, &valid(&["lua"])).contains("valid text: perl"));
        assert!(method(&samples, &valid(&[])).contains("weights not fitted"));
    }
}
