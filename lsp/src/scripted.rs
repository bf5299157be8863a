//! A completer that says what a script tells it, a few bytes at a time: for tests of everything around the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::completer::{Ask, Completer, CompleterError, Finish, ModelInfo, Written};

/// Bytes of one pretended token.
const TOKEN_BYTES: usize = 4;

type Script = Box<dyn FnMut(&Ask<'_>) -> Result<String, String> + Send>;

/// Deterministic text with a controllable delay.
pub struct Scripted {
    info: ModelInfo,
    script: Script,
    token_delay: Duration,
    calls: Arc<AtomicUsize>,
    finished: Arc<AtomicUsize>,
}

impl Scripted {
    /// Writes what `script` returns for what is asked; its panics and errors are the completer's.
    pub fn new(script: impl FnMut(&Ask<'_>) -> Result<String, String> + Send + 'static) -> Scripted {
        let info = ModelInfo { name: "scripted".to_string(), device: "cpu".to_string(), ..ModelInfo::default() };
        let (calls, finished) = Default::default();
        Scripted { info, script: Box::new(script), token_delay: Duration::ZERO, calls, finished }
    }

    /// Always writes `text`.
    pub fn always(text: &str) -> Scripted {
        let text = text.to_string();
        Scripted::new(move |_| Ok(text.clone()))
    }

    /// Takes `delay` for each token.
    pub fn with_token_delay(mut self, delay: Duration) -> Scripted {
        self.token_delay = delay;
        self
    }

    /// How often it was called, and how often it came to its end.
    pub fn counters(&self) -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
        (self.calls.clone(), self.finished.clone())
    }
}

impl Completer for Scripted {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn write(
        &mut self,
        ask: &Ask<'_>,
        enough: &mut dyn FnMut(&[u8]) -> bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Written, CompleterError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let text = (self.script)(ask).map_err(CompleterError::Failed)?;
        let mut bytes = Vec::new();
        let mut finish = Finish::Exhausted;
        let mut tokens = 0;
        for token in text.as_bytes().chunks(TOKEN_BYTES).take(ask.max_new_tokens) {
            std::thread::sleep(self.token_delay);
            if cancelled() {
                return Err(CompleterError::Cancelled);
            }
            bytes.extend_from_slice(token);
            tokens += 1;
            if enough(&bytes) {
                finish = Finish::Stopped;
                break;
            }
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
        let prompt_tokens = (ask.prefix.len() + ask.suffix.len()) / TOKEN_BYTES;
        let logprobs = vec![-0.1; tokens];
        Ok(Written { bytes, logprobs, prompt_tokens, prefilled_tokens: prompt_tokens, expert: None, finish })
    }

    fn reset(&mut self) {}
}
