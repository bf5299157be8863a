//! One language's n-grams, all languages' n-grams and the file's cache, mixed; the weights are fitted on held-out text.
//!
//! behind = a p_language + (1 - a) p_all, with `a` by the context lengths that each matched; then
//! p = b p_cache + (1 - b) behind, with `b` by the lengths that the cache and the language's model matched.

use serde::{Deserialize, Serialize};

use super::cache::FileCache;
use super::kneser_ney::{KneserNey, State};
use super::trie::Documents;

/// Contexts of the cache, in tokens.
pub const CACHE_CONTEXT_TOKENS: usize = 8;
/// Discounts of the cache that are tried.
const CACHE_DISCOUNTS: [f64; 3] = [0.5, 0.7, 0.9];
/// Turns of expectation maximisation; the likelihood has one maximum and is flat long before.
const N_EM_TURNS: usize = 30;
/// Pseudo-tokens by which a bucket leans towards the weight of all buckets together.
const PRIOR_TOKENS: f64 = 20.0;
/// Followers looked at per context in the search for the likeliest token.
const N_CANDIDATES: usize = 5;

/// Mixture weights of one language.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Weights {
    /// Weight of the language's own model, by its matched length and that of the model of all languages.
    pub language: Vec<Vec<f64>>,
    /// Weight of the cache, by its matched length and that of the language's own model.
    pub cache: Vec<Vec<f64>>,
    /// Taken from every count in the cache.
    pub cache_discount: f64,
}

impl Weights {
    /// The same weights in every bucket: what is used where no held-out text exists.
    pub fn constant(order: usize, language: f64, cache: f64) -> Self {
        Self {
            language: vec![vec![language; order]; order],
            cache: vec![vec![cache; order]; CACHE_CONTEXT_TOKENS + 1],
            cache_discount: 0.7,
        }
    }

    /// The mean of several languages' weights, for one that has no held-out text; `None` of nothing.
    pub fn mean(fitted: &[Weights]) -> Option<Self> {
        let n = fitted.len() as f64;
        let mean = |part: fn(&Weights) -> &Vec<Vec<f64>>| {
            let mut sum = part(fitted.first()?).clone();
            for (row, values) in sum.iter_mut().enumerate() {
                for (column, value) in values.iter_mut().enumerate() {
                    *value = fitted.iter().map(|weights| part(weights)[row][column]).sum::<f64>() / n;
                }
            }
            Some(sum)
        };
        Some(Self {
            language: mean(|weights| &weights.language)?,
            cache: mean(|weights| &weights.cache)?,
            cache_discount: fitted.iter().map(|weights| weights.cache_discount).sum::<f64>() / n,
        })
    }
}

/// The two trained models and their weights.
#[derive(Clone, Copy, Debug)]
pub struct Mixture<'a> {
    /// Trained on one language.
    pub language: &'a KneserNey,
    /// Trained on all languages.
    pub all: &'a KneserNey,
    /// How they are mixed.
    pub weights: &'a Weights,
}

impl<'a> Mixture<'a> {
    /// Begins a file.
    pub fn start(self) -> Predictor<'a> {
        Predictor {
            mixture: self,
            language_state: self.language.start(),
            all_state: self.all.start(),
            cache: FileCache::new(CACHE_CONTEXT_TOKENS, self.weights.cache_discount),
        }
    }
}

/// The mixture at one place of one file.
#[derive(Debug)]
pub struct Predictor<'a> {
    mixture: Mixture<'a>,
    language_state: State,
    all_state: State,
    cache: FileCache,
}

impl Predictor<'_> {
    /// p(token | file so far); sums to 1 over the vocabulary.
    pub fn prob(&self, token: u32) -> f64 {
        let p_language = self.mixture.language.prob(&self.language_state, token);
        let p_all = self.mixture.all.prob(&self.all_state, token);
        self.mix(token, p_language, p_all)
    }

    /// p(token | file so far), and moves past the token.
    pub fn step(&mut self, token: u32) -> f64 {
        let p = self.prob(token);
        self.skip(token);
        p
    }

    /// Moves past the token without asking how likely it was.
    pub fn skip(&mut self, token: u32) {
        self.mixture.language.step(&mut self.language_state, token);
        self.mixture.all.step(&mut self.all_state, token);
        self.cache.push(token);
    }

    /// The likeliest token among the five commonest followers of every matched context of every part.
    pub fn best(&self) -> u32 {
        self.best_among(&self.candidates())
    }

    /// Tokens worth scoring, sorted, without repeats.
    pub fn candidates(&self) -> Vec<u32> {
        let mut candidates = Vec::with_capacity(96);
        self.mixture.language.candidates(&self.language_state, N_CANDIDATES, &mut candidates);
        self.mixture.all.candidates(&self.all_state, N_CANDIDATES, &mut candidates);
        self.cache.candidates(N_CANDIDATES, &mut candidates);
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }

    /// The likeliest of `tokens`, the lowest id among equals; 0 when there is none.
    pub fn best_among(&self, tokens: &[u32]) -> u32 {
        let mut best = (0.0, 0);
        for &token in tokens {
            let p = self.prob(token);
            if p > best.0 {
                best = (p, token);
            }
        }
        best.1
    }

    fn mix(&self, token: u32, p_language: f64, p_all: f64) -> f64 {
        let (language, all) = (self.language_state.matched(), self.all_state.matched());
        let weight = self.mixture.weights.language[language][all];
        let behind = weight * p_language + (1.0 - weight) * p_all;
        if self.cache.is_empty() {
            return behind;
        }
        let mass = self.cache.mass(token);
        let weight = self.mixture.weights.cache[self.cache.matched()][language];
        weight * (mass.seen + mass.rest * behind) + (1.0 - weight) * behind
    }
}

/// What the parts said about one held-out token.
struct Sample {
    p_language: f64,
    p_all: f64,
    cache_seen: f64,
    cache_rest: f64,
    language_bucket: [usize; 2],
    cache_bucket: Option<[usize; 2]>,
}

/// Fits the weights to held-out `documents` of the language.
pub fn fit(language: &KneserNey, all: &KneserNey, documents: &Documents) -> Weights {
    let mut best = (f64::INFINITY, Weights::constant(language.order().max(all.order()), 0.6, 0.4));
    for discount in CACHE_DISCOUNTS {
        let samples = samples_of(language, all, documents, discount);
        let mut weights = Weights { cache_discount: discount, ..best.1.clone() };
        fit_language(&samples, &mut weights);
        let nll = fit_cache(&samples, &mut weights);
        if nll < best.0 {
            best = (nll, weights);
        }
    }
    best.1
}

fn samples_of(language: &KneserNey, all: &KneserNey, documents: &Documents, discount: f64) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(documents.n_tokens());
    for document in documents.iter() {
        let (mut language_state, mut all_state) = (language.start(), all.start());
        let mut cache = FileCache::new(CACHE_CONTEXT_TOKENS, discount);
        for &token in document {
            let language_bucket = [language_state.matched(), all_state.matched()];
            let cache_bucket = (!cache.is_empty()).then(|| [cache.matched(), language_bucket[0]]);
            let mass = cache.mass(token);
            samples.push(Sample {
                p_language: language.step(&mut language_state, token),
                p_all: all.step(&mut all_state, token),
                cache_seen: mass.seen,
                cache_rest: mass.rest,
                language_bucket,
                cache_bucket,
            });
            cache.push(token);
        }
    }
    samples
}

fn fit_language(samples: &[Sample], weights: &mut Weights) {
    let pairs = samples.iter().map(|s| (s.language_bucket, s.p_language, s.p_all));
    maximise(pairs, &mut weights.language);
}

/// Fits the cache's weights, given those of the language; returns the negative log-likelihood, in nats.
fn fit_cache(samples: &[Sample], weights: &mut Weights) -> f64 {
    let behind_of = |s: &Sample| {
        let weight = weights.language[s.language_bucket[0]][s.language_bucket[1]];
        weight * s.p_language + (1.0 - weight) * s.p_all
    };
    let behind: Vec<f64> = samples.iter().map(behind_of).collect();
    let pairs = || {
        let both = samples.iter().zip(&behind);
        both.filter_map(|(s, &behind)| Some((s.cache_bucket?, s.cache_seen + s.cache_rest * behind, behind)))
    };
    maximise(pairs(), &mut weights.cache);
    let nll = |(bucket, with, behind): ([usize; 2], f64, f64)| {
        let weight = weights.cache[bucket[0]][bucket[1]];
        -(weight * with + (1.0 - weight) * behind).ln()
    };
    pairs().map(nll).sum()
}

/// Weights of the first of two probabilities, per bucket, by expectation maximisation: first one for all buckets, then each.
pub(crate) fn maximise(pairs: impl Iterator<Item = ([usize; 2], f64, f64)>, weights: &mut [Vec<f64>]) {
    let mut buckets: Vec<Vec<Vec<(f64, f64)>>> =
        weights.iter().map(|row| row.iter().map(|_| Vec::new()).collect()).collect();
    for (bucket, first, second) in pairs {
        buckets[bucket[0]][bucket[1]].push((first, second));
    }
    let all: Vec<(f64, f64)> = buckets.iter().flatten().flatten().copied().collect();
    let common = weight_of(&all, 0.5, 0.0);
    for (row, row_buckets) in weights.iter_mut().zip(&buckets) {
        for (weight, bucket) in row.iter_mut().zip(row_buckets) {
            *weight = weight_of(bucket, common, PRIOR_TOKENS);
        }
    }
}

fn weight_of(pairs: &[(f64, f64)], prior: f64, prior_tokens: f64) -> f64 {
    let mut weight = prior;
    if pairs.is_empty() {
        return weight;
    }
    for _ in 0..N_EM_TURNS {
        let share = |&(first, second): &(f64, f64)| weight * first / (weight * first + (1.0 - weight) * second);
        let expected: f64 = pairs.iter().map(share).sum();
        weight = (expected + prior * prior_tokens) / (pairs.len() as f64 + prior_tokens);
        weight = weight.clamp(1e-4, 1.0 - 1e-4);
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: usize = 12;
    const START: u32 = 11;

    fn train(documents: &[&[u32]]) -> KneserNey {
        let mut all = Documents::default();
        documents.iter().for_each(|document| all.push(document));
        KneserNey::train(&all, 4, VOCAB, START).unwrap()
    }

    fn held_out() -> Documents {
        let mut documents = Documents::default();
        documents.push(&[1, 2, 7, 8, 9, 7, 8, 9, 7, 8, 9, 3, 4, 7, 8, 9]);
        documents.push(&[3, 4, 5, 6, 8, 5, 6, 8, 5, 6, 8]);
        documents
    }

    #[test]
    fn mixture_sums_to_one() {
        let (language, all) = (train(&[&[1, 2, 3, 4, 1, 2]]), train(&[&[1, 2, 3, 4, 1, 2], &[3, 4, 5, 6]]));
        let weights = fit(&language, &all, &held_out());
        let mut predictor = Mixture { language: &language, all: &all, weights: &weights }.start();
        for next in [1, 2, 3, 1, 2, 3, 9, 1, 2] {
            let sum: f64 = (0..VOCAB as u32).map(|token| predictor.prob(token)).sum();
            assert!((sum - 1.0).abs() < 1e-6, "{sum}");
            predictor.step(next);
        }
    }

    #[test]
    fn cache_helps_on_repeated_text() {
        let (language, all) = (train(&[&[1, 2, 3, 4, 1, 2]]), train(&[&[1, 2, 3, 4, 1, 2], &[3, 4, 5, 6]]));
        let fitted = fit(&language, &all, &held_out());
        let without = Weights { cache: vec![vec![0.0; 4]; CACHE_CONTEXT_TOKENS + 1], ..fitted.clone() };
        let nll = |weights: &Weights| -> f64 {
            let mut predictor = Mixture { language: &language, all: &all, weights }.start();
            [7, 9, 8, 7, 9, 8, 7, 9, 8, 7, 9, 8].iter().map(|&token| -predictor.step(token).ln()).sum()
        };
        assert!(nll(&fitted) < 0.7 * nll(&without), "{} {}", nll(&fitted), nll(&without));
    }

    #[test]
    fn fitted_weights_choose_the_better_part() {
        let pairs = [(0.9, 0.1); 400];
        assert!(weight_of(&pairs, 0.5, PRIOR_TOKENS) > 0.95);
        // Two tokens of three by the first part, one by the second: the weight is two thirds.
        let pairs = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)].repeat(500);
        assert!((weight_of(&pairs, 0.5, 0.0) - 2.0 / 3.0).abs() < 1e-6);
        let mean = Weights::mean(&[Weights::constant(3, 0.2, 0.5), Weights::constant(3, 0.4, 0.1)]).unwrap();
        assert!((mean.language[2][0] - 0.3).abs() < 1e-12 && (mean.cache[8][2] - 0.3).abs() < 1e-12);
        assert!(Weights::mean(&[]).is_none());
    }
}
