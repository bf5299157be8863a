//! A completer that says what a script tells it, a few bytes at a time: for tests of everything around the model.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::completer::{Ask, Completer, CompleterError, Finish, ModelInfo, Written};
use crate::documents::Snapshot;

/// Bytes of one pretended token.
const TOKEN_BYTES: usize = 4;
/// How often one that stands at its gate looks whether it is cancelled.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Nothing is ever sent through a gate: it opens when its sender goes.
#[derive(Debug)]
pub enum Opened {}

/// Holds a completer back until it is dropped.
#[derive(Debug)]
#[must_use = "a gate that is dropped is open"]
pub struct Gate(#[allow(dead_code, reason = "its end is what counts")] Sender<Opened>);

type Script = Box<dyn FnMut(&Ask<'_>) -> Result<String, String> + Send>;

/// Deterministic text, on request only after a gate was opened.
pub struct Scripted {
    info: ModelInfo,
    script: Script,
    gate: Option<Receiver<Opened>>,
    pause: Option<(usize, Duration)>,
    calls: Arc<AtomicUsize>,
    finished: Arc<AtomicUsize>,
    read: Arc<Mutex<Vec<Reading>>>,
}

/// How many answers were finished when other documents were read, and the uris of these.
pub type Reading = (usize, Vec<String>);

impl Scripted {
    /// Writes what `script` returns for what is asked; its panics and errors are the completer's.
    pub fn new(script: impl FnMut(&Ask<'_>) -> Result<String, String> + Send + 'static) -> Scripted {
        let info = ModelInfo { name: "scripted".to_string(), device: "cpu".to_string(), ..ModelInfo::default() };
        let (calls, finished, read) = Default::default();
        Scripted { info, script: Box::new(script), gate: None, pause: None, calls, finished, read }
    }

    /// Always writes `text`.
    pub fn always(text: &str) -> Scripted {
        let text = text.to_string();
        Scripted::new(move |_| Ok(text.clone()))
    }

    /// Writes nothing until the gate is dropped; cancelling reaches it there, too.
    pub fn gated(mut self) -> (Scripted, Gate) {
        let (sender, receiver) = channel();
        self.gate = Some(receiver);
        (self, Gate(sender))
    }

    /// Waits once, when `after` bytes are written.
    pub fn pausing(mut self, after: usize, pause: Duration) -> Scripted {
        self.pause = Some((after, pause));
        self
    }

    /// Waits for the gate; answers whether it opened before `cancelled`.
    fn pass_gate(&self, cancelled: &dyn Fn() -> bool) -> bool {
        let Some(gate) = &self.gate else { return !cancelled() };
        while !cancelled() {
            match gate.recv_timeout(LOOK_AGAIN) {
                Ok(opened) => match opened {},
                Err(RecvTimeoutError::Disconnected) => return !cancelled(),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        false
    }

    /// Each time that it was given other documents to read.
    pub fn read(&self) -> Arc<Mutex<Vec<Reading>>> {
        self.read.clone()
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
            if let Some((_, pause)) = self.pause.take_if(|(after, _)| bytes.len() >= *after) {
                std::thread::sleep(pause);
            }
            if !self.pass_gate(cancelled) {
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
        let (prefilled_tokens, guessed_tokens, accepted_tokens) = (prompt_tokens, 0, 0);
        let expert = None;
        Ok(Written {
            bytes,
            logprobs,
            prompt_tokens,
            prefilled_tokens,
            guessed_tokens,
            accepted_tokens,
            expert,
            finish,
        })
    }

    fn read_elsewhere(&mut self, others: &[Snapshot], _cancelled: &dyn Fn() -> bool) -> bool {
        let uris = others.iter().map(|other| other.uri.clone()).collect();
        self.read.lock().unwrap_or_else(PoisonError::into_inner).push((self.finished.load(Ordering::SeqCst), uris));
        assert!(others.iter().all(|other| other.text != "panic"), "a document that cannot be read");
        true
    }

    /// As one whose GPU is lost.
    fn reset(&mut self) {
        self.info.device = "cpu instead".to_string();
    }
}
