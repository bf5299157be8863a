//! The model's column: sliding windows over files, greedy line completions through the same prompts as in the editor.
#![allow(non_snake_case)]

use anyhow::Result;
use candle_core::Tensor;
use indicatif::ProgressBar;
use multicoder_model::{Batch, IGNORE_ID};
use multicoder_model::{CodeLm, PromptBudget, Tokenizer, fim};
use multicoder_model::{GenerateOptions, Generator};

use super::metric::{TextScore, line_score};
use super::sample::LanguageSample;
use super::{EvalOptions, SystemOutput};

/// Windows scored at once.
const BATCH_WINDOWS: usize = 8;

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
    let texts = score_texts(lm, tokenizer, sample, bar)?;
    let mut completer =
        Completer { lm, tokenizer, language: &sample.language, generator: Generator::new(lm)?, options };
    let mut lines = Vec::new();
    let mut lines_with_suffix = Vec::new();
    for case in &sample.lines {
        let (before, truth, after) = sample.parts(case);
        lines.push(line_score(&completer.line(before, "")?, truth));
        lines_with_suffix.push(line_score(&completer.line(before, after)?, truth));
        bar.inc(2);
    }
    Ok(SystemOutput { texts, lines, lines_with_suffix })
}

/// A stretch of one file that is scored in one forward pass.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    text: usize,
    /// Targets are `ids[from..to]`; those before `counted_from` are context only.
    from: usize,
    to: usize,
    counted_from: usize,
}

/// Windows of at most `context_tokens` targets, half overlapping: each token is counted once, and but for the file's first window it
/// has at least half a window before it.
fn windows(text: usize, n_ids: usize, context_tokens: usize) -> Vec<Window> {
    let stride = (context_tokens / 2).max(1);
    let mut windows = Vec::new();
    let (mut from, mut counted_from) = (0, 0);
    while counted_from < n_ids {
        let to = (from + context_tokens).min(n_ids);
        windows.push(Window { text, from, to, counted_from });
        counted_from = to;
        from += stride;
    }
    windows
}

fn score_texts(
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    sample: &LanguageSample,
    bar: &ProgressBar,
) -> Result<Vec<TextScore>> {
    let encoded: Vec<Vec<u32>> = sample.texts.iter().map(|text| Ok(tokenizer.encode(text)?)).collect::<Result<_>>()?;
    let context_tokens = lm.config().context_tokens;
    let mut queue: Vec<Window> = Vec::new();
    let mut scores = Vec::new();
    for (idx, (text, ids)) in sample.texts.iter().zip(&encoded).enumerate() {
        queue.extend(windows(idx, ids.len(), context_tokens));
        scores.push(TextScore { n_bytes: text.len() as u64, n_tokens: ids.len() as u64, ..TextScore::default() });
    }
    // Windows of like length together, so that little is padded.
    queue.sort_by_key(|window| std::cmp::Reverse(window.to - window.from));
    let mut windows_left: Vec<usize> = vec![0; encoded.len()];
    queue.iter().for_each(|window| windows_left[window.text] += 1);
    let first = tokenizer.language_token(&sample.language).unwrap_or(tokenizer.special().end_of_text);
    let language = lm.config().language_index(Some(&sample.language));
    for batch in queue.chunks(BATCH_WINDOWS) {
        score_batch(lm, batch, &encoded, first, language, &mut scores)?;
        for window in batch {
            windows_left[window.text] -= 1;
            bar.inc(u64::from(windows_left[window.text] == 0));
        }
    }
    Ok(scores)
}

fn score_batch(
    lm: &CodeLm,
    windows: &[Window],
    encoded: &[Vec<u32>],
    first: u32,
    language: u32,
    scores: &mut [TextScore],
) -> Result<()> {
    let l = windows.iter().map(|window| window.to - window.from).max().unwrap_or(0);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for window in windows {
        let ids = &encoded[window.text][window.from..window.to];
        let padding = l - ids.len();
        x.push(first);
        x.extend(&ids[..ids.len() - 1]);
        x.extend(std::iter::repeat_n(first, padding));
        let n_context = window.counted_from - window.from;
        y.extend(std::iter::repeat_n(IGNORE_ID, n_context));
        y.extend(&ids[n_context..]);
        y.extend(std::iter::repeat_n(IGNORE_ID, padding));
    }
    let shape = (windows.len(), l);
    let x_BL = Tensor::from_vec(x, shape, lm.device())?;
    let y_BL = Tensor::from_vec(y, shape, lm.device())?;
    let scored = lm.scores(&Batch { x_BL, y_BL, language_BL: vec![language; windows.len() * l] })?;
    for (row, window) in windows.iter().enumerate() {
        let counted = row * l + window.counted_from - window.from..row * l + window.to - window.from;
        let score = &mut scores[window.text];
        let nats: f64 = scored.nll_N[counted.clone()].iter().map(|&nll| f64::from(nll)).sum();
        score.bits += nats / std::f64::consts::LN_2;
        score.n_correct += scored.correct_N[counted].iter().filter(|&&correct| correct).count() as u64;
    }
    Ok(())
}

struct Completer<'a> {
    lm: &'a CodeLm,
    tokenizer: &'a Tokenizer,
    language: &'a str,
    generator: Generator,
    options: &'a EvalOptions,
}

impl Completer<'_> {
    /// The greedy continuation of `before` up to the end of its line.
    fn line(&mut self, before: &str, after: &str) -> Result<String> {
        let max_new_tokens = self.options.max_line_tokens;
        let max_tokens = self.lm.config().context_tokens.saturating_sub(max_new_tokens).max(1);
        let suffix_tokens = if after.is_empty() { 0 } else { self.options.suffix_tokens.min(max_tokens / 2) };
        let budget = PromptBudget { max_tokens, suffix_tokens };
        let prompt = fim::prompt(self.tokenizer, Some(self.language), before, after, &budget)?;
        let n_healed = prompt.heal.len();
        let options = GenerateOptions { max_new_tokens };
        let mut at_line_end = |bytes: &[u8]| bytes.get(n_healed..).is_some_and(|new| new.contains(&b'\n'));
        let language = Some(self.language);
        let generated =
            self.generator
                .generate(self.lm, self.tokenizer, &prompt, language, &options, &mut at_line_end, &|| false)?;
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
            let windows = windows(0, n_ids, context_tokens);
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
