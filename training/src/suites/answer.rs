//! Who answers: a model of ours through the prompts of the editor, or the right answers themselves.

use std::time::Instant;

use anyhow::Result;
use multicoder_model::fim::Snippet;
use multicoder_model::{Bundle, GenerateOptions, Generator, PromptBudget, fim};
use serde::{Deserialize, Serialize};

use super::question::Question;

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
    bundle: &'a Bundle,
    generator: Generator,
}

impl Local<'_> {
    /// # Errors
    /// No memory for the cache.
    pub fn new(bundle: &Bundle) -> Result<Local<'_>> {
        Ok(Local { bundle, generator: Generator::new(&bundle.lm)? })
    }
}

impl Answerer for Local<'_> {
    fn answer(&mut self, question: &Question, max_new_tokens: usize) -> Result<Answer> {
        let started = Instant::now();
        let (lm, tokenizer) = (&self.bundle.lm, &self.bundle.tokenizer);
        let context_tokens = lm.config().context_tokens;
        let max_new_tokens = max_new_tokens.min(context_tokens / 4);
        // A keystroke's cost bounds the server's prompt; here all of the context may be read.
        let budget = PromptBudget::of(context_tokens - max_new_tokens);
        let snippets: Vec<Snippet<'_>> =
            question.fragments.iter().map(|fragment| Snippet { path: &fragment.path, text: &fragment.text }).collect();
        let language = Some(question.language);
        let prompt = fim::prompt(tokenizer, language, &snippets, &question.prefix, &question.suffix, &budget)?;
        let n_healed = prompt.heal.len();
        let mut stop = |bytes: &[u8]| bytes.get(n_healed..).is_some_and(|new| question.ending.is_enough(new));
        let options = GenerateOptions { max_new_tokens };
        let out = self.generator.generate(lm, tokenizer, &prompt, language, &options, &mut stop, &|| false)?;
        let text = String::from_utf8_lossy(&out.bytes);
        Ok(Answer {
            text: question.ending.cut(&text).to_owned(),
            probability: Some(out.logprobs.iter().map(|&logprob| f64::from(logprob)).sum::<f64>().exp()),
            elapsed_ms: 1e3 * started.elapsed().as_secs_f64(),
        })
    }
}

/// Says what is right: what a perfect model would score, and whether the programs that are run pass here.
pub struct Truth;

impl Answerer for Truth {
    fn answer(&mut self, question: &Question, _max_new_tokens: usize) -> Result<Answer> {
        let text = question.ending.cut(&question.truth).to_owned();
        Ok(Answer { text, probability: Some(1.0), elapsed_ms: 0.0 })
    }
}
