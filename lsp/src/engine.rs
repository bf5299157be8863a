//! The model's thread: the newest request of a document wins, an abandoned one stops between two layers, a panic costs one answer.
//!
//! The thread loads the model first; requests that come meanwhile wait. What is superseded is answered at once.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use crate::complete::{self, Answer, Request};
use crate::completer::{Completer, Loader, ModelInfo};
use crate::config::Settings;
use crate::documents::Snapshot;
use crate::eager::panic_text;
use crate::priority;
use crate::reason::{Reason, Silence};
use crate::reuse::Answers;

/// What became of a request.
pub type Outcome = Result<Answer, Silence>;

/// Which of the editor's two ways asks. An editor may ask both at one keystroke, so one does not supersede the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Channel {
    Inline,
    Menu,
}

/// How far the loading of the model is.
#[derive(Clone, Debug)]
pub enum Loading {
    Running,
    Ready(ModelInfo),
    /// With a sentence for the user.
    Failed(String),
}

const LIVE: u8 = 0;
const DROPPED: u8 = 1;
const SUPERSEDED: u8 = 2;
const ENDING: u8 = 3;

/// Why a request should stop, if it should.
#[derive(Debug, Default)]
struct Flag(AtomicU8);

impl Flag {
    /// The first reason stays.
    fn raise(&self, why: u8) {
        let _ = self.0.compare_exchange(LIVE, why, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed) != LIVE
    }

    fn reason(&self) -> Reason {
        match self.0.load(Ordering::Relaxed) {
            SUPERSEDED => Reason::Superseded,
            ENDING => Reason::ShuttingDown,
            _ => Reason::Cancelled,
        }
    }
}

/// Texts to guess from.
#[derive(Clone, Debug)]
pub struct Others {
    /// Open documents, the one that is worked at first and then the last changed.
    pub newest_first: Vec<Snapshot>,
    /// Files of the project, open or not.
    pub nearest_first: Arc<[Snapshot]>,
    /// Which say what may be read.
    pub settings: Arc<Settings>,
}

impl Others {
    /// Whether they are the very same, so that nothing has to be read again.
    fn is(&self, other: &Others) -> bool {
        let alike = |(a, b): (&Snapshot, &Snapshot)| a.revision == b.revision && a.uri == b.uri;
        Arc::ptr_eq(&self.settings, &other.settings)
            && Arc::ptr_eq(&self.nearest_first, &other.nearest_first)
            && self.newest_first.len() == other.newest_first.len()
            && self.newest_first.iter().zip(&other.newest_first).all(alike)
    }

    /// Those that may be read; what is open counts as it is in the editor.
    fn readable(&self) -> Vec<Snapshot> {
        let is_closed = |file: &&Snapshot| self.newest_first.iter().all(|open| open.path != file.path);
        let all = self.newest_first.iter().chain(self.nearest_first.iter().filter(is_closed));
        all.filter(|document| complete::allowed(document, &self.settings).is_ok()).cloned().collect()
    }
}

struct Job {
    channel: Channel,
    request: Request,
    flag: Arc<Flag>,
    reply: oneshot::Sender<Outcome>,
}

impl Job {
    fn end(self, outcome: Outcome) {
        // Whoever asked may have gone.
        let _ = self.reply.send(outcome);
    }

    fn is_of(&self, channel: Channel, document: &str) -> bool {
        self.channel == channel && self.request.document == document
    }
}

/// What the model is working at.
struct Running {
    channel: Channel,
    document: String,
    flag: Arc<Flag>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    running: Option<Running>,
    /// What to guess from, until the thread has read it.
    others: Option<Others>,
    /// Reading them panicked: it is not tried again.
    leaves_others: bool,
    is_closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    answers: Answers,
    loading: watch::Sender<Loading>,
}

/// A request under way. Dropping it tells the model to stop.
#[derive(Debug)]
pub struct Pending {
    flag: Arc<Flag>,
    outcome: oneshot::Receiver<Outcome>,
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = std::task::ready!(Pin::new(&mut self.outcome).poll(cx));
        Poll::Ready(outcome.unwrap_or_else(|_| Err(Reason::ShuttingDown.into())))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.flag.raise(DROPPED);
    }
}

/// The handle to the model's thread; the thread ends when it is dropped.
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Starts the thread, which first calls `load`.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn start(load: Loader) -> std::io::Result<Engine> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            answers: Answers::default(),
            loading: watch::Sender::new(Loading::Running),
        });
        let of_thread = shared.clone();
        std::thread::Builder::new().name("engine".to_string()).spawn(move || {
            // Before the model is loaded: its helpers are to have the same.
            let is_raised = priority::raise();
            tracing::debug!(is_raised, "priority");
            of_thread.work(load);
        })?;
        Ok(Engine { shared })
    }

    /// How far the loading is, and news of it.
    pub fn loading(&self) -> watch::Receiver<Loading> {
        self.shared.loading.subscribe()
    }

    /// Asks for a completion. An older request of the same document and channel is superseded.
    pub fn submit(&self, channel: Channel, request: Request) -> Pending {
        let (reply, outcome) = oneshot::channel();
        let flag = Arc::new(Flag::default());
        let reused = self.shared.answers.rest_for(&request);
        let job = Job { channel, request, flag: flag.clone(), reply };
        let superseded = self.shared.enqueue(job, reused);
        for old in superseded {
            old.end(Err(Reason::Superseded.into()));
        }
        Pending { flag, outcome }
    }

    /// Says what there is to guess from; what may be read is, when nothing else is to be done.
    pub fn offer(&self, others: Others) {
        let mut queue = self.shared.lock();
        queue.others = Some(others).filter(|_| !queue.leaves_others);
    }

    /// Drops what is remembered of a closed document; what is asked for it is superseded.
    pub fn forget(&self, document: &str) {
        let superseded: Vec<Job> = {
            let mut queue = self.shared.lock();
            if let Some(running) = queue.running.as_ref().filter(|running| running.document == document) {
                running.flag.raise(SUPERSEDED);
            }
            let (superseded, waiting): (Vec<Job>, Vec<Job>) =
                queue.waiting.drain(..).partition(|job| job.request.document == document);
            queue.waiting = waiting.into();
            superseded
        };
        self.shared.answers.forget(document);
        for job in superseded {
            job.end(Err(Reason::Superseded.into()));
        }
    }

    /// Ends the thread; what waits is answered with silence.
    pub fn close(&self) {
        let mut queue = self.shared.lock();
        queue.is_closed = true;
        if let Some(running) = &queue.running {
            running.flag.raise(ENDING);
        }
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        self.shared.wake.notify_all();
        for job in waiting {
            job.end(Err(Reason::ShuttingDown.into()));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job into the queue, or ends it at once with `reused`. Returns the jobs whose place it takes.
    fn enqueue(&self, job: Job, reused: Option<Answer>) -> VecDeque<Job> {
        let mut queue = self.lock();
        let document = job.request.document.as_str();
        let is_same = |running: &&Running| running.channel == job.channel && running.document == document;
        if let Some(running) = queue.running.as_ref().filter(is_same) {
            running.flag.raise(SUPERSEDED);
        }
        let (superseded, waiting) = queue.waiting.drain(..).partition(|old| old.is_of(job.channel, document));
        queue.waiting = waiting;
        if let Some(answer) = reused {
            job.end(Ok(answer));
        } else if queue.is_closed {
            job.end(Err(Reason::ShuttingDown.into()));
        } else if let Loading::Failed(why) = &*self.loading.borrow() {
            job.end(Err(Reason::NoModel.because(why)));
        } else {
            queue.waiting.push_back(job);
            self.wake.notify_one();
        }
        superseded
    }

    /// Waits for the next job that somebody still wants; `None` when the engine closes.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            match queue.waiting.pop_front() {
                Some(job) if job.flag.is_raised() => {
                    let reason = job.flag.reason();
                    job.end(Err(reason.into()));
                }
                Some(job) => {
                    let (document, flag) = (job.request.document.clone(), job.flag.clone());
                    queue.running = Some(Running { channel: job.channel, document, flag });
                    return Some(job);
                }
                None => queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn work(&self, load: Loader) {
        let Some(mut completer) = self.load(load) else { return };
        let mut read = None;
        while let Some(job) = self.next() {
            let outcome = match self.answers.rest_for(&job.request) {
                Some(answer) => Ok(answer),
                None => self.complete(&job, completer.as_mut()),
            };
            self.lock().running = None;
            job.end(outcome);
            self.tell_device(completer.info());
            self.read_elsewhere(completer.as_mut(), &mut read);
        }
    }

    /// A completer whose device was lost goes on at another one.
    fn tell_device(&self, now: &ModelInfo) {
        self.loading.send_if_modified(|loading| match loading {
            Loading::Ready(told) if told.device != now.device => {
                told.device.clone_from(&now.device);
                true
            }
            _ => false,
        });
    }

    /// Gives up as soon as something is asked for, and goes on after that. `read` is what was read last.
    fn read_elsewhere(&self, completer: &mut dyn Completer, read: &mut Option<Others>) {
        let is_asked = || {
            let queue = self.lock();
            queue.is_closed || !queue.waiting.is_empty()
        };
        let Some(others) = (if is_asked() { None } else { self.lock().others.take() }) else { return };
        if read.as_ref().is_some_and(|read| read.is(&others)) {
            return;
        }
        let documents = others.readable();
        match catch_unwind(AssertUnwindSafe(|| completer.read_elsewhere(&documents, &is_asked))) {
            Ok(true) => *read = Some(others),
            Ok(false) => {
                self.lock().others.get_or_insert(others);
            }
            Err(panic) => {
                tracing::error!(why = panic_text(panic.as_ref()), "other documents are not read any more");
                completer.reset();
                self.lock().leaves_others = true;
            }
        }
    }

    fn load(&self, load: Loader) -> Option<Box<dyn Completer>> {
        let start = Instant::now();
        let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| Err(panic_text(panic.as_ref())));
        match loaded {
            Ok(completer) => {
                let mut info = completer.info().clone();
                info.load_time = start.elapsed();
                tracing::info!(model = info.name, elapsed_ms = start.elapsed().as_millis(), "model loaded");
                self.loading.send_replace(Loading::Ready(info));
                Some(completer)
            }
            Err(why) => {
                tracing::error!(why, "no model");
                let waiting = {
                    let mut queue = self.lock();
                    self.loading.send_replace(Loading::Failed(why.clone()));
                    std::mem::take(&mut queue.waiting)
                };
                for job in waiting {
                    job.end(Err(Reason::NoModel.because(&why)));
                }
                None
            }
        }
    }

    fn complete(&self, job: &Job, completer: &mut dyn Completer) -> Outcome {
        let cancelled = || job.flag.is_raised();
        let result = catch_unwind(AssertUnwindSafe(|| complete::run(&job.request, completer, &cancelled)));
        match result {
            Ok(Ok(answer)) => {
                self.answers.keep(job.request.clone(), answer.clone());
                Ok(answer)
            }
            Ok(Err(silence)) if silence.reason == Reason::Cancelled => Err(job.flag.reason().into()),
            Ok(Err(silence)) => Err(silence),
            Err(panic) => {
                completer.reset();
                Err(Reason::EnginePanicked.because(panic_text(panic.as_ref())))
            }
        }
    }
}

#[cfg(test)]
mod tests;
