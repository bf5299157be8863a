//! The seam between the server and what writes: a model here, a script in tests.

use std::time::Duration;

use crate::documents::Snapshot;

/// What is to be continued. Line ends are `\n`.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The language whose expert serves the text: its own or its nearest relative's.
    pub language: Option<&'static str>,
    /// Text before the caret.
    pub prefix: &'a str,
    /// Text after the caret.
    pub suffix: &'a str,
    pub max_new_tokens: usize,
    /// What the answer is given up after.
    pub timeout: Duration,
}

/// Why the writing ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Finish {
    /// The caller had enough.
    Stopped,
    /// The writer says that the text is complete.
    EndOfText,
    /// The number of tokens, or the room for them, was used up.
    Exhausted,
}

/// What was written after the caret.
#[derive(Clone, Debug)]
pub struct Written {
    /// UTF-8, possibly cut inside a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of each token's probability.
    pub logprobs: Vec<f32>,
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were not in the cache.
    pub prefilled_tokens: usize,
    /// Tokens that were guessed before they were written, and how many of the guesses were right.
    pub guessed_tokens: usize,
    pub accepted_tokens: usize,
    /// What wrote: the expert's name, where there is one.
    pub expert: Option<String>,
    pub finish: Finish,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum CompleterError {
    /// Nobody waits for the answer any more.
    #[error("cancelled")]
    Cancelled,
    #[error("{0}")]
    Failed(String),
}

/// What is known of a model, for `doctor` and the status request.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelInfo {
    pub name: String,
    /// The file that it came from, or "embedded".
    pub origin: String,
    pub device: String,
    pub parameters: usize,
    pub active_parameters: usize,
    pub quantization: String,
    pub checksum: String,
    pub context_tokens: usize,
    pub languages: Vec<String>,
    /// How long loading took.
    #[serde(serialize_with = "as_ms", rename = "loadMs")]
    pub load_time: Duration,
}

fn as_ms<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Writes text at a caret. Lives on the engine's thread and keeps what it likes between two calls.
pub trait Completer: Send {
    /// What it is.
    fn info(&self) -> &ModelInfo;

    /// Continues `ask.prefix`. `enough` is asked with all bytes so far after every token; `cancelled` as often as can be.
    ///
    /// # Errors
    /// [`CompleterError::Cancelled`] when `cancelled` said so; it must be usable afterwards.
    fn write(
        &mut self,
        ask: &Ask<'_>,
        enough: &mut dyn FnMut(&[u8]) -> bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Written, CompleterError>;

    /// Reads texts to guess from, the most helpful first, while nothing is asked for; says whether it came to an end before `cancelled`.
    fn read_elsewhere(&mut self, others: &[Snapshot], cancelled: &dyn Fn() -> bool) -> bool;

    /// Drops all state, after a panic.
    fn reset(&mut self);
}

/// Makes the completer, on the engine's thread. An error is a sentence for the user.
pub type Loader = Box<dyn FnOnce() -> Result<Box<dyn Completer>, String> + Send>;
