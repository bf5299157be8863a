//! The model's column: sliding windows over files, greedy line completions through the same prompts as in the editor.
#![allow(non_snake_case)]

use anyhow::Result;
use indicatif::ProgressBar;
use multicoder_model::copy::next_token_probs;
use multicoder_model::{CodeLm, GenerateOptions, KvCache, PromptBudget, TensorSequence, Tokenizer, fim, generate};

use super::metric::{TextScore, line_score};
use super::sample::LanguageSample;
use super::{EvalOptions, SystemOutput};

/// Files of a language of which the experts' loads are told.
const LOAD_FILES: usize = 8;

/// Scores the model on one language's sample; `bar` is moved by one a file and one a completion.
///
/// # Errors
/// Errors of the tokenizer and the model.
pub fn score(
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    sample: &LanguageSample,
    options: &EvalOptions,
    bar: &ProgressBar,
) -> Result<SystemOutput> {
    let texts = score_texts(lm, tokenizer, sample, options.tag, bar)?;
    let cache = KvCache::new(lm.config(), lm.device())?;
    let mut completer = Completer { lm, tokenizer, language: &sample.language, cache, options };
    let mut lines = Vec::new();
    let mut lines_with_suffix = Vec::new();
    for case in &sample.lines {
        let (before, truth, after) = sample.parts(case);
        lines.push(line_score(&completer.line(before, "")?, truth));
        lines_with_suffix.push(line_score(&completer.line(before, after)?, truth));
        bar.inc(2);
    }
    let expert_load = expert_load(lm, tokenizer, sample)?;
    Ok(SystemOutput { texts, lines, lines_with_suffix, expert_load })
}

/// Over the first window of each of some files.
fn expert_load(lm: &CodeLm, tokenizer: &Tokenizer, sample: &LanguageSample) -> Result<Vec<Vec<f32>>> {
    let language = lm.config().language_index(Some(&sample.language));
    let mut sums: Vec<Vec<f32>> = Vec::new();
    let mut n_tokens = 0.0;
    for text in sample.texts.iter().filter(|text| !text.is_empty()).take(LOAD_FILES) {
        let mut ids = tokenizer.encode(text)?;
        ids.truncate(lm.config().context_tokens);
        let loads = lm.expert_loads(&ids, language)?;
        sums.resize_with(loads.len(), Vec::new);
        for (sum_E, load_E) in sums.iter_mut().zip(loads) {
            sum_E.resize(load_E.len(), 0.0);
            sum_E.iter_mut().zip(load_E).for_each(|(sum, load)| *sum += load * ids.len() as f32);
        }
        n_tokens += ids.len() as f32;
    }
    sums.iter_mut().flatten().for_each(|sum| *sum /= n_tokens);
    Ok(sums)
}

fn score_texts(
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    sample: &LanguageSample,
    tag: bool,
    bar: &ProgressBar,
) -> Result<Vec<TextScore>> {
    let mut scores = Vec::new();
    for text in &sample.texts {
        let ids = tokenizer.encode(text)?;
        let mut score = TextScore { n_bytes: text.len() as u64, n_tokens: ids.len() as u64, ..TextScore::default() };
        each_token(lm, tokenizer, (&sample.language, tag), &ids, &mut |at, logits_V| {
            let probs_V = next_token_probs(logits_V, &ids[..at], lm.config().copy.as_ref());
            let p = probs_V[ids[at] as usize];
            score.bits -= f64::from(p.max(f32::MIN_POSITIVE)).log2();
            score.n_correct += u64::from(probs_V.iter().all(|&other| other <= p));
        })?;
        scores.push(score);
        bar.inc(1);
    }
    Ok(scores)
}

/// Calls `visit` with each position of one file, in order, and the network's logits for the token there. With `tag` the network is told the
/// language by its token; the expert is the language's in either case.
///
/// # Errors
/// Errors of the model.
pub fn each_token(
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    (language, tag): (&str, bool),
    ids: &[u32],
    visit: &mut dyn FnMut(usize, &[f32]),
) -> Result<()> {
    let first = tokenizer.language_token(language).filter(|_| tag).unwrap_or(tokenizer.special().end_of_text);
    let language = lm.config().language_index(Some(language));
    for window in windows(ids.len(), lm.config().context_tokens) {
        let mut x = vec![first];
        x.extend(&ids[window.from..window.to - 1]);
        let counted = window.counted_from - window.from;
        let logits_LV = lm.forward_logits(&x, language)?.narrow(0, counted, x.len() - counted)?.to_vec2::<f32>()?;
        logits_LV.iter().zip(window.counted_from..).for_each(|(logits_V, at)| visit(at, logits_V));
    }
    Ok(())
}

/// A stretch of one file that is scored in one forward pass.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    /// Targets are `ids[from..to]`; those before `counted_from` are context only.
    from: usize,
    to: usize,
    counted_from: usize,
}

/// Windows of at most `context_tokens` targets, half overlapping: each token is counted once, and but for the file's first window it
/// has at least half a window before it.
fn windows(n_ids: usize, context_tokens: usize) -> Vec<Window> {
    let stride = (context_tokens / 2).max(1);
    let mut windows = Vec::new();
    let (mut from, mut counted_from) = (0, 0);
    while counted_from < n_ids {
        let to = (from + context_tokens).min(n_ids);
        windows.push(Window { from, to, counted_from });
        counted_from = to;
        from += stride;
    }
    windows
}

struct Completer<'a> {
    lm: &'a CodeLm,
    tokenizer: &'a Tokenizer,
    language: &'a str,
    cache: KvCache,
    options: &'a EvalOptions,
}

impl Completer<'_> {
    /// The greedy continuation of `before` up to the end of its line.
    fn line(&mut self, before: &str, after: &str) -> Result<String> {
        let max_new_tokens = self.options.max_line_tokens;
        let max_tokens = self.lm.config().context_tokens.saturating_sub(max_new_tokens).max(1);
        let suffix_tokens = if after.is_empty() { 0 } else { self.options.suffix_tokens.min(max_tokens / 2) };
        let budget = PromptBudget { max_tokens, suffix_tokens, snippet_tokens: 0 };
        let tag = Some(self.language).filter(|_| self.options.tag);
        let prompt = fim::prompt(self.tokenizer, tag, &[], before, after, &budget)?;
        let n_healed = prompt.heal.len();
        let options = GenerateOptions { max_new_tokens, guesses: false };
        let mut at_line_end = |bytes: &[u8]| bytes.get(n_healed..).is_some_and(|new| new.contains(&b'\n'));
        let language = Some(self.language);
        let mut sequence = TensorSequence { lm: self.lm, cache: &mut self.cache };
        let generated =
            generate(&mut sequence, self.tokenizer, &prompt, language, &options, &mut at_line_end, &|| false)?;
        let text = String::from_utf8_lossy(&generated.bytes);
        Ok(text.split('\n').next().unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_count_every_token_once_with_half_a_window_before_it() {
        for (n_ids, context_tokens) in [(0, 8), (1, 8), (8, 8), (9, 8), (100, 8), (101, 16), (5, 1)] {
            let windows = windows(n_ids, context_tokens);
            let mut counted = 0;
            for window in &windows {
                assert_eq!(window.counted_from, counted);
                assert!(window.to - window.from <= context_tokens && window.counted_from < window.to);
                assert!(window.from == 0 || window.counted_from - window.from >= context_tokens / 2);
                counted = window.to;
            }
            assert_eq!(counted, n_ids);
        }
    }
}
