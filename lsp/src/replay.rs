//! Typing, replayed: seeded keystrokes, pauses, deletions, jumps and switches over real files, through the whole server.
//!
//! A stretch of each file is taken out and typed back. What an edit is worth to a user is the time until the answer to it.

pub mod client;
mod typist;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::completer::{Ask, Completer, CompleterError, Loader, ModelInfo, Written};
use crate::documents::Snapshot;
use client::Client;
pub use typist::{Edit, Typist};

/// How long someone thinks.
const PAUSE: Duration = Duration::from_millis(200);

/// What came before a request.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The first request of a file.
    Opening,
    /// One character.
    Typing,
    /// The last of several characters, of which each asked and none waited.
    Burst,
    /// One character after a pause.
    AfterPause,
    /// An answer was accepted.
    Accepting,
    /// One character was removed.
    Deleting,
    /// Several characters vanished at once.
    Undo,
    /// Another place of the file.
    Jump,
    /// The other file.
    Switch,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Opening,
        Kind::Typing,
        Kind::Burst,
        Kind::AfterPause,
        Kind::Accepting,
        Kind::Deleting,
        Kind::Undo,
        Kind::Jump,
        Kind::Switch,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Opening => "opening",
            Kind::Typing => "typing",
            Kind::Burst => "burst",
            Kind::AfterPause => "after a pause",
            Kind::Accepting => "accepting",
            Kind::Deleting => "deleting",
            Kind::Undo => "undo",
            Kind::Jump => "jump",
            Kind::Switch => "switch",
        }
    }
}

/// One request that was waited for.
#[derive(Clone, Debug)]
pub struct Measured {
    pub kind: Kind,
    pub elapsed: Duration,
    pub is_shown: bool,
    /// The answer is how the text goes on.
    pub is_right: bool,
    /// What the model did for it: nothing where an earlier answer's rest was given.
    pub work: Work,
}

/// What a model has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Work {
    /// Answers that were written to their end.
    pub runs: usize,
    /// Answers that were given up: superseded, or out of time.
    pub cancelled: usize,
    /// Tokens of prompts, of answers that were written to their end, as are the following.
    pub prompt_tokens: usize,
    /// Those of them that were not in the cache.
    pub prefilled_tokens: usize,
    pub written_tokens: usize,
    /// Tokens that were guessed before they were written, and how many of the guesses were right.
    pub guessed_tokens: usize,
    pub accepted_tokens: usize,
    /// How often other texts were read, to guess from.
    pub readings: usize,
}

impl Work {
    /// What was done since `before`.
    #[must_use]
    pub fn since(self, before: Work) -> Work {
        Work {
            runs: self.runs - before.runs,
            cancelled: self.cancelled - before.cancelled,
            prompt_tokens: self.prompt_tokens - before.prompt_tokens,
            prefilled_tokens: self.prefilled_tokens - before.prefilled_tokens,
            written_tokens: self.written_tokens - before.written_tokens,
            guessed_tokens: self.guessed_tokens - before.guessed_tokens,
            accepted_tokens: self.accepted_tokens - before.accepted_tokens,
            readings: self.readings - before.readings,
        }
    }
}

/// A completer that counts what it does.
struct Counted {
    inner: Box<dyn Completer>,
    work: Arc<Mutex<Work>>,
}

impl Completer for Counted {
    fn info(&self) -> &ModelInfo {
        self.inner.info()
    }

    fn write(
        &mut self,
        ask: &Ask<'_>,
        enough: &mut dyn FnMut(&[u8]) -> bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Written, CompleterError> {
        let written = self.inner.write(ask, enough, cancelled);
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        match &written {
            Ok(written) => {
                work.runs += 1;
                work.prompt_tokens += written.prompt_tokens;
                work.prefilled_tokens += written.prefilled_tokens;
                work.written_tokens += written.logprobs.len();
                work.guessed_tokens += written.guessed_tokens;
                work.accepted_tokens += written.accepted_tokens;
            }
            Err(_) => work.cancelled += 1,
        }
        written
    }

    fn read_elsewhere(&mut self, others: &[Snapshot], cancelled: &dyn Fn() -> bool) -> bool {
        let is_read = self.inner.read_elsewhere(others, cancelled);
        if is_read && !others.is_empty() {
            self.work.lock().unwrap_or_else(PoisonError::into_inner).readings += 1;
        }
        is_read
    }

    fn reset(&mut self) {
        self.inner.reset();
    }
}

/// A file to be typed in.
#[derive(Clone, Debug)]
pub struct File {
    pub uri: String,
    pub text: String,
}

/// What is replayed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// To be typed in, in turn.
    pub files: Vec<File>,
    /// Those that are open, whose files are read to guess from.
    pub folders: Vec<PathBuf>,
    /// Requests that are waited for.
    pub n_requests: usize,
    /// Decides what is typed where.
    pub seed: u64,
}

/// Replays requests and hands each that is waited for to `seen`. Returns all that the model did.
///
/// # Errors
/// The server cannot be started, ends, or answers with an error; a file too short to type in.
pub fn replay(plan: &Plan, load: Loader, seen: &mut dyn FnMut(Measured)) -> anyhow::Result<Work> {
    let Plan { files, folders, n_requests, seed } = plan;
    let work = Arc::new(Mutex::new(Work::default()));
    let of_model = work.clone();
    let counted: Loader =
        Box::new(move || load().map(|inner| Box::new(Counted { inner, work: of_model }) as Box<dyn Completer>));
    let mut player = Player { client: Client::start(counted, folders)?, work, seen, n_left: *n_requests };
    let mut typists =
        files.iter().map(|file| Typist::new(&file.uri, &file.text, *seed)).collect::<anyhow::Result<Vec<Typist>>>()?;
    for typist in &mut typists {
        player.client.open(&typist.uri, &typist.text())?;
        player.ask(Kind::Opening, typist)?;
    }
    let (mut at, mut draw) = (0, typist::Draw::new(*seed));
    while player.n_left > 0 {
        let n_files = typists.len();
        if n_files > 1 && draw.percent() < 4 {
            at = (at + 1) % n_files;
            player.ask(Kind::Switch, &mut typists[at])?;
        } else {
            player.step(&mut typists[at], draw.percent())?;
        }
    }
    player.client.shut_down()?;
    let work = *player.work.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(work)
}

/// Someone at the keyboard.
struct Player<'a> {
    client: Client,
    work: Arc<Mutex<Work>>,
    seen: &'a mut dyn FnMut(Measured),
    n_left: usize,
}

impl Player<'_> {
    /// One thing that a person does, chosen by a number below 100.
    fn step(&mut self, typist: &mut Typist, percent: u64) -> anyhow::Result<()> {
        if !typist.has_more() {
            self.edit(typist, Typist::jump)?;
            return self.ask(Kind::Jump, typist);
        }
        match percent {
            5..15 if !typist.has_typed() => {
                self.edit(typist, |typist| typist.type_next(1))?;
                self.ask(Kind::Typing, typist)
            }
            0..5 => {
                self.edit(typist, Typist::jump)?;
                self.ask(Kind::Jump, typist)
            }
            5..11 => self.delete(typist, 1 + percent as usize % 4),
            11..15 => {
                self.edit(typist, |typist| typist.untype(8))?;
                self.ask(Kind::Undo, typist)
            }
            15..21 => {
                std::thread::sleep(PAUSE);
                self.edit(typist, |typist| typist.type_next(1))?;
                self.ask(Kind::AfterPause, typist)
            }
            21..29 => self.burst(typist),
            _ => {
                self.edit(typist, |typist| typist.type_next(1))?;
                self.ask(Kind::Typing, typist)
            }
        }
    }

    fn edit(&mut self, typist: &mut Typist, how: impl FnOnce(&mut Typist) -> Vec<Edit>) -> anyhow::Result<()> {
        let edits = how(typist);
        self.client.change(&typist.uri, &edits)
    }

    fn delete(&mut self, typist: &mut Typist, n_chars: usize) -> anyhow::Result<()> {
        for _ in 0..n_chars {
            if !typist.has_typed() {
                break;
            }
            self.edit(typist, |typist| typist.untype(1))?;
            self.ask(Kind::Deleting, typist)?;
        }
        Ok(())
    }

    /// Three characters, faster than answers come.
    fn burst(&mut self, typist: &mut Typist) -> anyhow::Result<()> {
        let mut asked = Vec::new();
        for _ in 0..2 {
            self.edit(typist, |typist| typist.type_next(1))?;
            asked.push(self.client.ask(&typist.uri, typist.position())?);
        }
        self.edit(typist, |typist| typist.type_next(1))?;
        self.ask(Kind::Burst, typist)?;
        asked.into_iter().try_for_each(|id| self.client.answer(id).map(drop))
    }

    /// Asks, waits and takes it down; accepts right answers to every third request.
    fn ask(&mut self, kind: Kind, typist: &mut Typist) -> anyhow::Result<()> {
        let done = |work: &Mutex<Work>| *work.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, start) = (done(&self.work), Instant::now());
        let id = self.client.ask(&typist.uri, typist.position())?;
        let answer = self.client.answer(id)?;
        let elapsed = start.elapsed();
        let is_right = answer.as_deref().is_some_and(|text| typist.goes_on_with(text));
        let work = done(&self.work).since(before);
        (self.seen)(Measured { kind, elapsed, is_shown: answer.is_some(), is_right, work });
        self.n_left = self.n_left.saturating_sub(1);
        if let Some(text) = answer.filter(|_| is_right && self.n_left > 0 && self.n_left.is_multiple_of(3)) {
            self.edit(typist, |typist| typist.type_next(text.chars().count()))?;
            return self.ask(Kind::Accepting, typist);
        }
        Ok(())
    }
}
