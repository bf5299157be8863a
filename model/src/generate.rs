//! The next-token loop: ids only, greedy, asks `stop` at every token and `cancelled` between layers; keeps its cache for the next call.
#![allow(non_snake_case)]

use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::copy::next_token_probs;
use crate::error::{Error, Result};
use crate::fim::Prompt;
use crate::lm::CodeLm;
use crate::speculate::{Elsewhere, Lookahead, Pace};
use crate::tokenizer::Tokenizer;

/// Prompt tokens that are computed together; a cancelled request keeps the chunks that it finished.
const PREFILL_TOKENS: usize = 128;

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct GenerateOptions {
    pub max_new_tokens: usize,
    /// Whether tokens are guessed from the text itself and others, where the sequence verifies several at once.
    pub guesses: bool,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The caller's `stop` said so.
    Stop,
    /// The model ended the text.
    EndOfText,
    MaxTokens,
    /// The model's context is full.
    ContextFull,
}

/// A continuation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The text after the caret.
    pub bytes: Vec<u8>,
    pub ids: Vec<u32>,
    /// Logarithm of each token's probability among the tokens that were allowed.
    pub logprobs: Vec<f32>,
    /// Prompt tokens that were computed, and those that the cache held.
    pub prefilled_tokens: usize,
    pub cached_tokens: usize,
    /// Tokens that were guessed, and how many of the guesses were right.
    pub guessed_tokens: usize,
    pub accepted_tokens: usize,
    pub finish: Finish,
}

/// A model and the sequence that it has computed so far.
pub trait Sequence {
    fn config(&self) -> &ModelConfig;

    /// The ids that are computed.
    fn ids(&self) -> &[u32];

    /// Positions that fit.
    fn capacity(&self) -> usize;

    /// Keeps what `ids` begins with, under the same language, and returns how many tokens that is.
    fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize;

    /// Forgets all positions from `n_tokens` on.
    fn truncate(&mut self, n_tokens: usize);

    /// Computes `ids` too, and returns the logits after the last of them.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancelled` says so; [`Error::Input`] for ids that do not fit.
    fn next(&mut self, ids: &[u32], language: u32, cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>>;

    /// Guesses that are verified in one pass, at most: 0 where tokens that are computed together cost as much as one after the other, or have
    /// other bits.
    fn max_guesses(&self) -> usize {
        0
    }

    /// What guesses cost and are worth.
    fn pace(&mut self) -> &mut Pace;

    /// Says which ids are wanted besides those that stand in the text, where not all of the vocabulary is computed.
    fn want(&mut self, _ids: Vec<u32>) {}

    /// Other texts, from which tokens are guessed too.
    fn elsewhere(&self) -> Option<&Elsewhere> {
        None
    }

    /// Computes `ids` too, and returns the logits after each of them.
    ///
    /// # Errors
    /// As of [`Sequence::next`].
    fn next_each(&mut self, ids: &[u32], language: u32, cancelled: &dyn Fn() -> bool) -> Result<Vec<Vec<f32>>> {
        ids.iter().map(|id| self.next(&[*id], language, cancelled)).collect()
    }
}

/// A model of tensors.
pub struct TensorSequence<'a> {
    pub lm: &'a CodeLm,
    pub cache: &'a mut KvCache,
}

impl Sequence for TensorSequence<'_> {
    fn config(&self) -> &ModelConfig {
        self.lm.config()
    }

    fn ids(&self) -> &[u32] {
        self.cache.ids()
    }

    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize {
        self.cache.keep_common_prefix(ids, language)
    }

    fn truncate(&mut self, n_tokens: usize) {
        self.cache.truncate(n_tokens);
    }

    fn next(&mut self, ids: &[u32], language: u32, cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>> {
        self.lm.decode(ids, language, self.cache, cancelled)
    }

    fn pace(&mut self) -> &mut Pace {
        &mut self.cache.pace
    }
}

/// Continues `prompt` greedily. `stop` sees all bytes so far, the healed ones included.
///
/// # Errors
/// [`Error::Cancelled`] when `cancelled` says so; [`Error::Input`] for a prompt that fills the context.
pub fn generate(
    sequence: &mut dyn Sequence,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    language: Option<&str>,
    options: &GenerateOptions,
    stop: &mut dyn FnMut(&[u8]) -> bool,
    cancelled: &dyn Fn() -> bool,
) -> Result<Generated> {
    let language = sequence.config().language_index(language);
    sequence.want(withdrawn(tokenizer, &prompt.heal));
    let (cached_tokens, mut logits) = prefill(sequence, &prompt.ids, language, cancelled)?;
    let mut out = Generated {
        bytes: Vec::new(),
        ids: Vec::new(),
        logprobs: Vec::new(),
        prefilled_tokens: prompt.ids.len() - cached_tokens,
        cached_tokens,
        guessed_tokens: 0,
        accepted_tokens: 0,
        finish: Finish::MaxTokens,
    };
    let max_guesses = if options.guesses { sequence.max_guesses() } else { 0 };
    let mut ahead = Lookahead::new(&prompt.ids, max_guesses, sequence.elsewhere());
    while out.ids.len() < options.max_new_tokens {
        let to_heal = prompt.heal.get(out.bytes.len()..).unwrap_or_default();
        let history = &sequence.ids()[..ahead.n_known()];
        let probs_V = next_token_probs(&logits, history, sequence.config().copy.as_ref());
        let Some((id, logprob)) = likeliest(&probs_V, tokenizer, to_heal) else {
            out.finish = Finish::EndOfText;
            break;
        };
        if id == tokenizer.special().end_of_text {
            out.finish = Finish::EndOfText;
            out.logprobs.push(logprob);
            break;
        }
        out.ids.push(id);
        out.logprobs.push(logprob);
        out.bytes.extend(tokenizer.bytes_of(id));
        if stop(&out.bytes) {
            out.finish = Finish::Stop;
            break;
        }
        if out.ids.len() == options.max_new_tokens {
            break;
        }
        if ahead.n_known() == sequence.capacity() {
            out.finish = Finish::ContextFull;
            break;
        }
        let n_left = options.max_new_tokens - out.ids.len();
        logits = ahead.after((id, &logits), sequence, (language, n_left), cancelled)?;
    }
    ahead.drop_guesses(sequence);
    (out.guessed_tokens, out.accepted_tokens) = (ahead.guessed, ahead.accepted);
    let healed = prompt.heal.len().min(out.bytes.len());
    out.bytes.drain(..healed);
    Ok(out)
}

/// Reads a prompt: keeps what is computed of it, at least one token short of it, and computes the rest in chunks. Returns how many tokens
/// were kept, and the logits after the last one. Shape of the logits: `V`.
///
/// # Errors
/// [`Error::Input`] for an empty prompt or one that does not fit; [`Error::Cancelled`] when `cancelled` says so.
pub fn prefill(
    sequence: &mut dyn Sequence,
    ids: &[u32],
    language: u32,
    cancelled: &dyn Fn() -> bool,
) -> Result<(usize, Vec<f32>)> {
    let Some(last) = ids.len().checked_sub(1) else {
        return Err(Error::Input("an empty prompt".to_string()));
    };
    let kept = sequence.keep_common_prefix(ids, language).min(last);
    sequence.truncate(kept);
    let mut logits = Vec::new();
    for chunk in ids[kept..].chunks(PREFILL_TOKENS) {
        logits = sequence.next(chunk, language, cancelled)?;
    }
    Ok((kept, logits))
}

/// The token that was taken from the end of a text, to be written again: it stands there although the sequence does not have it.
fn withdrawn(tokenizer: &Tokenizer, heal: &[u8]) -> Vec<u32> {
    let ids = if heal.is_empty() { 0..0 } else { 0..tokenizer.vocab_size() as u32 };
    ids.filter(|&id| tokenizer.bytes_of(id) == heal).collect()
}

/// The likeliest allowed token and the logarithm of its probability among the allowed.
///
/// Allowed are tokens with bytes and the end of the text; while bytes are to be healed, only tokens that agree with them.
fn likeliest(probs_V: &[f32], tokenizer: &Tokenizer, to_heal: &[u8]) -> Option<(u32, f32)> {
    let end_of_text = tokenizer.special().end_of_text;
    let allowed = |id: u32| {
        let bytes = tokenizer.bytes_of(id);
        if to_heal.is_empty() {
            return !bytes.is_empty() || id == end_of_text;
        }
        !bytes.is_empty() && (bytes.starts_with(to_heal) || to_heal.starts_with(bytes))
    };
    let candidates = || (0..probs_V.len() as u32).filter(|&id| allowed(id)).map(|id| (id, probs_V[id as usize]));
    let (best, max) = candidates().reduce(|a, b| if b.1 > a.1 { b } else { a })?;
    let total: f32 = candidates().map(|(_, p)| p).sum();
    Some((best, (max / total).ln()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::fim::{PromptBudget, prompt};
    use crate::router::RouterConfig;
    use crate::tokenizer::tests::toy;
    use candle_core::Device;
    use std::cell::Cell;

    fn model(tokenizer: &Tokenizer) -> CodeLm {
        let mut config = tiny(Some(RouterConfig::all().remove(0)));
        config.vocab_size = tokenizer.vocab_size();
        CodeLm::init(&config, 3, &Device::Cpu).unwrap()
    }

    fn empty(lm: &CodeLm) -> KvCache {
        KvCache::new(lm.config(), lm.device()).unwrap()
    }

    fn run(lm: &CodeLm, cache: &mut KvCache, text: &str, cancelled: &dyn Fn() -> bool) -> Result<Generated> {
        let tokenizer = toy();
        let budget = PromptBudget { max_tokens: 40, suffix_tokens: 10, snippet_tokens: 0 };
        let prompt = prompt(&tokenizer, Some("lua"), &[], text, "\nend", &budget)?;
        let options = GenerateOptions { max_new_tokens: 8, guesses: false };
        generate(
            &mut TensorSequence { lm, cache },
            &tokenizer,
            &prompt,
            Some("lua"),
            &options,
            &mut |_| false,
            cancelled,
        )
    }

    #[test]
    fn a_kept_cache_changes_nothing_but_the_work() {
        let lm = model(&toy());
        let mut kept = empty(&lm);
        for text in ["def add(", "def add(a", "def add(a, b", "def add(a", "for i"] {
            let warm = run(&lm, &mut kept, text, &|| false).unwrap();
            let cold = run(&lm, &mut empty(&lm), text, &|| false).unwrap();
            assert_eq!((&warm.bytes, &warm.ids), (&cold.bytes, &cold.ids), "{text}");
            assert_eq!(cold.cached_tokens, 0);
        }
        assert!(run(&lm, &mut kept, "for i", &|| false).unwrap().prefilled_tokens == 1);
    }

    #[test]
    fn greedy_equals_the_model_without_a_cache() {
        let tokenizer = toy();
        let lm = model(&tokenizer);
        let ids = tokenizer.encode("for i in range(10):\n").unwrap();
        let mut expected = ids.clone();
        for _ in 0..6 {
            let logits = lm.forward_logits(&expected, 1).unwrap();
            let row = logits.get(expected.len() - 1).unwrap().to_vec1::<f32>().unwrap();
            let probs_V = next_token_probs(&row, &expected, None);
            expected.push(likeliest(&probs_V, &tokenizer, &[]).unwrap().0);
        }
        let prompt = Prompt { ids: ids.clone(), heal: Vec::new() };
        let mut cache = empty(&lm);
        let options = GenerateOptions { max_new_tokens: 6, guesses: false };
        let out = generate(
            &mut TensorSequence { lm: &lm, cache: &mut cache },
            &tokenizer,
            &prompt,
            Some("lua"),
            &options,
            &mut |_| false,
            &|| false,
        )
        .unwrap();
        assert_eq!(out.ids, expected[ids.len()..]);
    }

    #[test]
    fn healing_spells_the_withdrawn_bytes() {
        let lm = model(&toy());
        let tokenizer = toy();
        let prompt = Prompt { ids: tokenizer.encode("x").unwrap(), heal: b"pri".to_vec() };
        let mut seen = Vec::new();
        let options = GenerateOptions { max_new_tokens: 12, guesses: false };
        let mut stop = |bytes: &[u8]| {
            seen = bytes.to_vec();
            bytes.len() > 3
        };
        let mut cache = empty(&lm);
        let out = generate(
            &mut TensorSequence { lm: &lm, cache: &mut cache },
            &tokenizer,
            &prompt,
            None,
            &options,
            &mut stop,
            &|| false,
        )
        .unwrap();
        assert!(seen.starts_with(b"pri"), "{seen:?}");
        assert_eq!(out.bytes, seen[3..]);
    }

    #[test]
    fn a_cancelled_request_leaves_a_valid_cache() {
        let lm = model(&toy());
        let mut cache = empty(&lm);
        for after in 0..6 {
            let asked = Cell::new(0);
            let cancelled = || asked.replace(asked.get() + 1) >= after;
            assert!(matches!(run(&lm, &mut cache, "for i in range(", &cancelled), Err(Error::Cancelled)));
        }
        let warm = run(&lm, &mut cache, "for i in range(", &|| false).unwrap();
        let cold = run(&lm, &mut empty(&lm), "for i in range(", &|| false).unwrap();
        assert_eq!(warm.ids, cold.ids);
    }
}
