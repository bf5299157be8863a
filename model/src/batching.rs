//! Continuous batching (Yu et al. 2022, Orca, OSDI '22): sequences of many clients, whose tokens are computed together, pass by pass.
//!
//! Each [`Client`] waits for its own tokens alone. What is asked for while a pass runs goes into the next one, so
//! that a sequence joins and leaves between any two tokens. A prompt comes in chunks, between which others have their turn.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cache::Held;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::generate::Sequence;
use crate::lm::{CodeLm, check_ids};
use crate::speculate::Pace;

mod logits;

pub use logits::Logits;

/// A token that is to be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The sequence that it goes on with; all before `position` is computed.
    pub sequence: usize,
    pub position: usize,
    pub id: u32,
    /// The token before it; 0 at the beginning.
    pub before: u32,
    pub language: u32,
    /// Whether the logits after it are asked for.
    pub is_wanted: bool,
}

/// What computes rows of several sequences in one pass, and keeps their keys and values.
pub trait RowDecoder {
    fn config(&self) -> &ModelConfig;

    /// Sequences that it keeps.
    fn n_sequences(&self) -> usize;

    /// Rows of a pass, at most.
    fn max_rows(&self) -> usize;

    /// Computes `rows`, those of a sequence in order, and returns the logits after each that is wanted, in their order.
    ///
    /// # Errors
    /// [`Error::Input`] for rows that do not fit; [`Error::Device`] for a device that fails.
    fn decode(&mut self, rows: &[Row]) -> Result<Logits>;
}

/// Rows of one client, and where their logits go.
struct Job {
    rows: Vec<Row>,
    /// Told the logits of the pass, and which row of them is the first of these.
    reply: SyncSender<Result<(Logits, usize)>>,
}

impl Job {
    fn n_wanted(&self) -> usize {
        self.rows.iter().filter(|row| row.is_wanted).count()
    }
}

/// What all clients share: where their rows go, and which sequences are free.
struct Shared {
    config: ModelConfig,
    max_rows: usize,
    free: Mutex<Vec<usize>>,
    /// Until it is dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Shared {
    /// Waits until the decoder is gone: a device that is given back while the program ends fails.
    fn drop(&mut self) {
        self.jobs = None;
        // Who waits for a panic's answer was told so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A decoder on a thread of its own, for many clients. The thread ends with the last of them and this.
pub struct Batching {
    shared: Arc<Shared>,
}

impl Batching {
    /// Starts the thread, on which `make` makes the decoder.
    ///
    /// # Errors
    /// Whatever `make` fails with; a thread that cannot be started.
    pub fn new<D: RowDecoder>(make: impl FnOnce() -> Result<D> + Send + 'static) -> Result<Batching> {
        let (ready, made) = sync_channel(1);
        let (jobs, waiting) = channel();
        let run = move || match make() {
            Err(error) => drop(ready.send(Err(error))),
            Ok(mut decoder) => {
                drop(ready.send(Ok((decoder.config().clone(), decoder.max_rows(), decoder.n_sequences()))));
                serve(&mut decoder, &waiting);
            }
        };
        let thread = std::thread::Builder::new().name("batching".into()).spawn(run);
        let thread = thread.map_err(|error| Error::Device(format!("a thread cannot be started: {error}")))?;
        let (config, max_rows, n_sequences) = made.recv().unwrap_or_else(|_| Err(gone()))?;
        let free = Mutex::new((0..n_sequences).rev().collect());
        let shared = Shared { config, max_rows, free, jobs: Some(jobs), thread: Some(thread) };
        Ok(Batching { shared: Arc::new(shared) })
    }

    /// `lm`, a model on the CPU, on the GPU of that number, with room for `n_sequences`.
    ///
    /// # Errors
    /// [`Error::Device`] without a GPU, its driver or its libraries, for sizes that the kernels do not take, or in a build without the
    /// feature `cuda`; [`Error::Input`] for a model that no tape runs there.
    pub fn on_gpu(ordinal: usize, lm: &CodeLm, n_sequences: usize) -> Result<Batching> {
        #[cfg(feature = "cuda")]
        {
            let lm = lm.materialized()?;
            Batching::new(move || crate::tape::CudaDecoder::new(ordinal, lm, n_sequences))
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (ordinal, lm, n_sequences);
            Err(crate::tape::no_gpu_code())
        }
    }

    /// A client with an empty sequence.
    ///
    /// # Errors
    /// [`Error::Device`] when all sequences are in use.
    pub fn client(&self) -> Result<Client> {
        let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let number = free.ok_or_else(|| Error::Device("all sequences of the decoder are in use".to_owned()))?;
        Ok(Client { shared: self.shared.clone(), number, held: Held::default(), pace: Pace::default() })
    }
}

fn gone() -> Error {
    Error::Device("the decoder's thread has ended".to_owned())
}

/// Computes jobs as they come, as many at once as fit a pass, the oldest first.
///
/// Clients that had their answers from the last pass ask for the next token soon: for a quarter of what that pass took they are waited for,
/// so that those that write together stay together.
fn serve(decoder: &mut impl RowDecoder, jobs: &Receiver<Job>) {
    let (mut waiting, mut n_answered, mut patience) = (VecDeque::new(), 0, Duration::ZERO);
    while let Some(first) = waiting.pop_front().or_else(|| jobs.recv().ok()) {
        let start = Instant::now();
        while waiting.len() + 1 < n_answered {
            let Ok(job) = jobs.recv_timeout(patience.saturating_sub(start.elapsed())) else { break };
            waiting.push_back(job);
        }
        waiting.extend(jobs.try_iter());
        let (mut rows, mut batch) = (first.rows.clone(), vec![first]);
        let room = |job: &Job, rows: &[Row]| rows.len() + job.rows.len() <= decoder.max_rows();
        while waiting.front().is_some_and(|job| room(job, &rows)) {
            batch.extend(waiting.pop_front());
            rows.extend(batch.last().iter().flat_map(|job| &job.rows));
        }
        let start = Instant::now();
        let logits = decoder.decode(&rows);
        (n_answered, patience) = (batch.len(), start.elapsed() / 4);
        let mut first = 0;
        for job in batch {
            let own = match &logits {
                Ok(logits) => Ok((logits.clone(), first)),
                Err(error) => Err(Error::Device(error.to_string())),
            };
            first += job.n_wanted();
            // Nobody waits for it if the client is gone.
            drop(job.reply.send(own));
        }
    }
}

/// What one client has computed.
pub struct Client {
    shared: Arc<Shared>,
    number: usize,
    held: Held,
    pace: Pace,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}

/// A client's sequence.
pub struct BatchedSequence<'a>(&'a mut Client);

impl Client {
    /// The model with what it has computed so far.
    pub fn sequence(&mut self) -> BatchedSequence<'_> {
        BatchedSequence(self)
    }

    /// Forgets all that was computed.
    pub fn clear(&mut self) {
        self.held.truncate(0);
    }

    /// Computes `ids` too, and returns the logits after the last `n_wanted` of them.
    fn compute(
        &mut self,
        (ids, n_wanted): (&[u32], usize),
        language: u32,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        let (start, n) = (self.held.ids().len(), ids.len());
        let room = self.shared.config.context_tokens - start;
        if n == 0 || n > room {
            return Err(Error::Input(format!("{n} tokens after {start}: expected 1 to {room}")));
        }
        if !self.held.follow(language) {
            return Err(Error::Input("tokens of another language than those before: expected the same".to_owned()));
        }
        check_ids(ids, self.shared.config.vocab_size)?;
        let before = self.held.ids().last().copied().unwrap_or(0);
        let row = |(i, (&id, before))| {
            let (sequence, position, is_wanted) = (self.number, start + i, i >= n - n_wanted);
            Row { sequence, position, id, before, language, is_wanted }
        };
        let rows: Vec<Row> =
            ids.iter().zip(std::iter::once(before).chain(ids.iter().copied())).enumerate().map(row).collect();
        let mut logits = Vec::new();
        for rows in rows.chunks(self.shared.max_rows) {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            let (reply, answer) = sync_channel(1);
            let jobs = self.shared.jobs.as_ref().ok_or_else(gone)?;
            let job = Job { rows: rows.to_vec(), reply };
            let n_wanted = job.n_wanted();
            jobs.send(job).map_err(|_| gone())?;
            let (of_pass, first) = answer.recv().unwrap_or_else(|_| Err(gone()))?;
            for n in first..first + n_wanted {
                logits.push(of_pass.row(n)?);
            }
        }
        self.held.extend(ids);
        Ok(logits)
    }
}

impl Sequence for BatchedSequence<'_> {
    fn config(&self) -> &ModelConfig {
        &self.0.shared.config
    }

    fn ids(&self) -> &[u32] {
        self.0.held.ids()
    }

    fn capacity(&self) -> usize {
        self.0.shared.config.context_tokens
    }

    fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize {
        self.0.held.keep_common_prefix(ids, language)
    }

    fn truncate(&mut self, n_tokens: usize) {
        self.0.held.truncate(n_tokens);
    }

    fn next(&mut self, ids: &[u32], language: u32, cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>> {
        self.0.compute((ids, 1), language, cancelled)?.pop().ok_or_else(gone)
    }

    fn pace(&mut self) -> &mut Pace {
        &mut self.0.pace
    }

    fn next_each(&mut self, ids: &[u32], language: u32, cancelled: &dyn Fn() -> bool) -> Result<Vec<Vec<f32>>> {
        self.0.compute((ids, ids.len()), language, cancelled)
    }
}

#[cfg(test)]
mod tests;
