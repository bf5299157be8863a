//! The communication thread: it alone owns the wire, so that sums go on while the training thread computes, and so that a wire that
//! never answers cannot hang the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::wire::{Traffic, Wire};

/// What is added to the wire's own deadline: its error says more than that of this thread.
const GRACE: Duration = Duration::from_millis(500);

type Job = Box<dyn FnOnce(&mut dyn Wire) + Send>;

/// The training thread's end: jobs go in, their results come out in their own time.
pub(super) struct Link {
    pub(super) rank: usize,
    pub(super) world: usize,
    jobs: Sender<Job>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    bytes: AtomicU64,
    messages: AtomicU64,
    waited_us: AtomicU64,
}

/// A result that is on its way.
pub(super) struct Pending<T>(Receiver<Result<T>>);

impl Link {
    /// Starts the thread, makes the wire on it, and waits for that until `timeout`.
    ///
    /// # Errors
    /// A wire that cannot be made, or not in time: then not all ranks came.
    pub(super) fn start<W: Wire + 'static>(
        timeout: Duration,
        connect: impl FnOnce() -> Result<W> + Send + 'static,
    ) -> Result<Link> {
        let (jobs, queue) = channel::<Job>();
        let (ready, made) = channel();
        let counters = Arc::new(Counters::default());
        let counted = counters.clone();
        let serve = move || match connect() {
            Err(error) => drop(ready.send(Err(error))),
            Ok(mut wire) => {
                let _ = ready.send(Ok((wire.rank(), wire.world())));
                for job in queue {
                    job(&mut wire);
                    counted.set(wire.traffic());
                }
            }
        };
        // Not joined: it ends when the link is dropped, unless the wire holds it for ever.
        let thread = std::thread::Builder::new().name("ranks".to_owned()).spawn(serve);
        thread.context("cannot start the communication thread")?;
        let (rank, world) = match made.recv_timeout(timeout) {
            Ok(made) => made?,
            Err(RecvTimeoutError::Disconnected) => bail!("the communication thread ended before its time"),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the ranks did not meet within {timeout:?}: at least one is missing (parallel.join_timeout_s)")
            }
        };
        Ok(Link { rank, world, jobs, counters })
    }

    /// Hands `job` to the communication thread. Jobs are done one after the other; all ranks must hand over the same ones.
    pub(super) fn call<T: Send + 'static>(
        &self,
        timeout: Duration,
        job: impl FnOnce(&mut dyn Wire) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (sender, result) = channel();
        let job = move |wire: &mut dyn Wire| {
            wire.set_timeout(timeout);
            let _ = sender.send(job(wire));
        };
        // Without a thread the receiver below finds its sender gone.
        let _ = self.jobs.send(Box::new(job));
        Pending(result)
    }

    /// Waits for a result; the time counts as waited.
    ///
    /// # Errors
    /// That of the job, or no result within `timeout`.
    pub(super) fn wait<T>(&self, timeout: Duration, pending: Pending<T>) -> Result<T> {
        let start = Instant::now();
        let result = pending.0.recv_timeout(timeout + GRACE);
        self.counters.waited_us.fetch_add(start.elapsed().as_micros() as u64, Ordering::Relaxed);
        let (rank, world) = (self.rank, self.world);
        result.unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => {
                    anyhow!("rank {rank} of {world}: no answer from the others within {timeout:?}: a rank is missing or stuck")
                }
                RecvTimeoutError::Disconnected => anyhow!("rank {rank} of {world}: the communication thread has ended"),
            })
        })
    }

    /// What was sent and how many seconds the training thread has waited, both since the start.
    pub(super) fn counters(&self) -> (Traffic, f64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let traffic = Traffic { bytes: load(&self.counters.bytes), messages: load(&self.counters.messages) };
        (traffic, load(&self.counters.waited_us) as f64 / 1e6)
    }

    /// Leaves together with all other ranks.
    ///
    /// # Errors
    /// A rank that does not come.
    pub(super) fn leave(&self, timeout: Duration) -> Result<()> {
        let left = self.call(timeout, |wire| wire.leave());
        self.wait(timeout, left)
    }
}

impl Counters {
    fn set(&self, traffic: Traffic) {
        self.bytes.store(traffic.bytes, Ordering::Relaxed);
        self.messages.store(traffic.messages, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::threads::Threads;

    #[test]
    fn a_wire_that_is_never_made_is_an_error_in_time() {
        let start = Instant::now();
        let connect = || -> Result<Threads> {
            std::thread::sleep(Duration::from_secs(3));
            bail!("late")
        };
        let message = Link::start(Duration::from_millis(50), connect).err().map(|error| error.to_string());
        assert!(message.unwrap().contains("did not meet within 50ms") && start.elapsed() < Duration::from_secs(2));
    }
}
