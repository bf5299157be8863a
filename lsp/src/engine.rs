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
use crate::eager::panic_text;
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
        std::thread::Builder::new().name("engine".to_string()).spawn(move || of_thread.work(load))?;
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

    /// Drops what is remembered of a document that was closed.
    pub fn forget(&self, document: &str) {
        self.shared.answers.forget(document);
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
        while let Some(job) = self.next() {
            let outcome = match self.answers.rest_for(&job.request) {
                Some(answer) => Ok(answer),
                None => self.complete(&job, completer.as_mut()),
            };
            self.lock().running = None;
            job.end(outcome);
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
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::documents::Snapshot;
    use crate::scripted::Scripted;
    use std::time::Duration;

    fn request_in(document: &str, text: &str) -> Request {
        let snapshot = Snapshot::from_file(document.into(), text);
        complete::request(&snapshot, text.chars().count(), &Settings::standard()).unwrap()
    }

    fn engine(scripted: Scripted) -> Engine {
        Engine::start(Box::new(|| Ok(Box::new(scripted)))).unwrap()
    }

    fn slow() -> Scripted {
        Scripted::always("12345678901234567890123456789012345678\n").with_token_delay(Duration::from_millis(20))
    }

    #[tokio::test]
    async fn the_newest_request_of_a_document_wins() {
        let scripted = slow();
        let (calls, finished) = scripted.counters();
        let engine = engine(scripted);
        let old: Vec<Pending> =
            (0..20).map(|i| engine.submit(Channel::Inline, request_in("a.py", &format!("x{i} = ")))).collect();
        let newest = engine.submit(Channel::Inline, request_in("a.py", "y = ")).await;
        assert!(newest.is_ok());
        for pending in old {
            assert_eq!(pending.await.unwrap_err().reason, Reason::Superseded);
        }
        assert!(calls.load(Ordering::SeqCst) <= 3 && finished.load(Ordering::SeqCst) == 1);
    }

    #[tokio::test]
    async fn documents_and_channels_do_not_disturb_each_other() {
        let engine = engine(slow());
        let a = engine.submit(Channel::Inline, request_in("a.py", "x = "));
        let b = engine.submit(Channel::Inline, request_in("b.py", "x = "));
        let c = engine.submit(Channel::Menu, request_in("a.py", "x = "));
        assert!(a.await.is_ok() && b.await.is_ok());
        assert!(c.await.unwrap().is_reused, "the same place was answered a moment ago");
    }

    #[tokio::test]
    async fn dropping_stops_the_model() {
        let scripted = slow();
        let (_, finished) = scripted.counters();
        let engine = engine(scripted);
        drop(engine.submit(Channel::Inline, request_in("a.py", "x = ")));
        assert!(engine.submit(Channel::Inline, request_in("b.py", "x = ")).await.is_ok());
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_panic_costs_one_answer() {
        let mut n_calls = 0;
        let engine = engine(Scripted::new(move |_| {
            n_calls += 1;
            assert!(n_calls != 1, "the first call");
            Ok("1\n".to_string())
        }));
        let first = engine.submit(Channel::Inline, request_in("a.py", "x = ")).await;
        assert_eq!(first.unwrap_err(), Reason::EnginePanicked.because("the first call"));
        assert!(engine.submit(Channel::Inline, request_in("a.py", "x = ")).await.is_ok());
    }

    #[tokio::test]
    async fn typing_an_answer_needs_no_model() {
        let scripted = Scripted::always("call(1)\n");
        let (calls, _) = scripted.counters();
        let engine = engine(scripted);
        for typed in ["", "c", "ca", "call", "call(1"] {
            let answer = engine.submit(Channel::Inline, request_in("a.py", &format!("x = {typed}"))).await.unwrap();
            assert_eq!(answer.text, "call(1)"[typed.len()..]);
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn requests_wait_for_the_model_and_learn_that_there_is_none() {
        let slowly: Loader = Box::new(|| {
            std::thread::sleep(Duration::from_millis(50));
            Err("no such file".to_string())
        });
        let engine = Engine::start(slowly).unwrap();
        let early = engine.submit(Channel::Inline, request_in("a.py", "x = ")).await;
        assert_eq!(early.unwrap_err(), Reason::NoModel.because("no such file"));
        let late = engine.submit(Channel::Inline, request_in("a.py", "x = ")).await;
        assert_eq!(late.unwrap_err().reason, Reason::NoModel);
        assert!(matches!(&*engine.loading().borrow(), Loading::Failed(_)));
    }

    #[tokio::test]
    async fn closing_answers_what_waits() {
        let engine = engine(slow());
        let pending: Vec<Pending> =
            (0..5).map(|i| engine.submit(Channel::Inline, request_in(&format!("{i}.py"), "x = "))).collect();
        engine.close();
        for pending in pending {
            assert_eq!(pending.await.unwrap_err().reason, Reason::ShuttingDown);
        }
        assert!(engine.submit(Channel::Inline, request_in("a.py", "x = ")).await.is_err());
    }
}
