//! Who answers: a model of ours through the prompts of the editor, or the right answers themselves.

use std::time::Instant;

use anyhow::Result;
use multicoder_model::fim::Snippet;
use multicoder_model::{Batching, Bundle, Engine, GenerateOptions, PromptBudget, Tokenizer, fim, generate};
use serde::{Deserialize, Serialize};

use super::question::{Fragment, Question};

/// An answer, already cut where the question says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The text for the hole.
    pub text: String,
    /// The model's probability of it, token by token; absent where the model does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Wall-clock time, in milliseconds.
    pub elapsed_ms: f64,
}

/// Someone who completes code.
pub trait Answerer {
    /// Answers in at most `max_new_tokens` tokens.
    ///
    /// # Errors
    /// What the model or the way to it says.
    fn answer(&mut self, question: &Question, max_new_tokens: usize) -> Result<Answer>;
}

/// A model in this process.
pub struct Local<'a> {
    tokenizer: &'a Tokenizer,
    engine: Engine<'a>,
}

/// Those who answer.
pub enum Answerers<'a> {
    One(&'a mut dyn Answerer),
    /// At once.
    Many(Vec<Local<'a>>),
}

impl Local<'_> {
    /// # Errors
    /// No memory; a device that fails.
    pub fn new(bundle: &Bundle) -> Result<Local<'_>> {
        Ok(Local { tokenizer: &bundle.tokenizer, engine: Engine::of(&bundle.lm)? })
    }

    /// As many that answer at once, on a GPU, by kernels of our own.
    ///
    /// # Errors
    /// No GPU, or a model that does not run there.
    pub fn on_gpu(bundle: &Bundle, n: usize) -> Result<Vec<Local<'_>>> {
        let batching = Batching::on_gpu(0, &bundle.lm, n)?;
        let client = |_| Ok(Local { tokenizer: &bundle.tokenizer, engine: Engine::Batched(batching.client()?) });
        (0..n).map(client).collect()
    }
}

impl Answerer for Local<'_> {
    fn answer(&mut self, question: &Question, max_new_tokens: usize) -> Result<Answer> {
        let started = Instant::now();
        let (mut sequence, tokenizer) = (self.engine.sequence(), self.tokenizer);
        let context_tokens = sequence.config().context_tokens;
        let max_new_tokens = max_new_tokens.min(context_tokens / 4);
        // A keystroke's cost bounds the server's prompt; here all of the context may be read.
        let budget = PromptBudget::of(context_tokens - max_new_tokens);
        let fragments = fitted(tokenizer, &question.fragments, budget.snippet_tokens)?;
        let snippets: Vec<Snippet<'_>> =
            fragments.iter().map(|fragment| Snippet { path: &fragment.path, text: &fragment.text }).collect();
        let language = Some(question.language);
        let prompt = fim::prompt(tokenizer, language, &snippets, &question.prefix, &question.suffix, &budget)?;
        let n_healed = prompt.heal.len();
        let mut stop = |bytes: &[u8]| bytes.get(n_healed..).is_some_and(|new| question.ending.is_enough(new));
        let options = GenerateOptions { max_new_tokens, guesses: true };
        let out = generate(&mut *sequence, tokenizer, &prompt, language, &options, &mut stop, &|| false)?;
        let text = String::from_utf8_lossy(&out.bytes);
        Ok(Answer {
            text: question.ending.cut(&text).to_owned(),
            probability: Some(out.logprobs.iter().map(|&logprob| f64::from(logprob)).sum::<f64>().exp()),
            elapsed_ms: 1e3 * started.elapsed().as_secs_f64(),
        })
    }
}

/// The best fragments, which stand last, that fit into `max_tokens` with their paths and separators; the first of those kept to whole lines.
fn fitted(tokenizer: &Tokenizer, fragments: &[Fragment], max_tokens: usize) -> Result<Vec<Fragment>> {
    // A separator before each, and one after the last.
    let mut left = max_tokens.saturating_sub(1);
    let mut kept = Vec::new();
    for fragment in fragments.iter().rev() {
        let n_tokens =
            |text: &str| Ok::<_, anyhow::Error>(2 + tokenizer.encode(&format!("{}\n{text}\n", fragment.path))?.len());
        let mut text = fragment.text.as_str();
        while !text.is_empty() && n_tokens(text)? > left {
            text = text.trim_end_matches('\n').rfind('\n').map_or("", |end| &text[..end + 1]);
        }
        if text.is_empty() {
            break;
        }
        left -= n_tokens(text)?;
        kept.push(Fragment { path: fragment.path.clone(), text: text.to_owned() });
    }
    kept.reverse();
    Ok(kept)
}

/// Says what is right: what a perfect model would score, and whether the programs that are run pass here.
pub struct Truth;

impl Answerer for Truth {
    fn answer(&mut self, question: &Question, _max_new_tokens: usize) -> Result<Answer> {
        let text = question.ending.cut(&question.truth).to_owned();
        Ok(Answer { text, probability: Some(1.0), elapsed_ms: 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multicoder_model::tokenizer::TokenizerOptions;

    #[test]
    fn the_best_fragment_is_cut_to_lines_rather_than_left_out() {
        let options =
            TokenizerOptions { vocab_size: 300, languages: vec!["lua".to_owned()], ..TokenizerOptions::default() };
        let tokenizer = Tokenizer::train(["local x = 1\n"].into_iter(), &options).unwrap();
        let fragment = |path: &str, n: usize| Fragment { path: path.to_owned(), text: "local x = 1\n".repeat(n) };
        let fragments = [fragment("far.lua", 2), fragment("near.lua", 50)];
        let n_tokens = |fragments: &[Fragment]| {
            let snippets: Vec<Snippet<'_>> =
                fragments.iter().map(|of| Snippet { path: &of.path, text: &of.text }).collect();
            fim::snippet_ids(&tokenizer, &snippets).unwrap().len()
        };
        for max_tokens in [0, 5, 40, 100, 100_000] {
            let kept = fitted(&tokenizer, &fragments, max_tokens).unwrap();
            assert!(n_tokens(&kept) <= max_tokens && kept.iter().all(|of| of.text.ends_with('\n')), "{max_tokens}");
            assert_eq!(
                kept.last().map(|of| of.path.as_str()),
                (max_tokens >= 40).then_some("near.lua"),
                "{max_tokens}"
            );
            assert_eq!(kept.len(), if max_tokens > 1000 { 2 } else { usize::from(max_tokens >= 40) });
        }
    }
}
