//! Ranks that are processes, over MPI. `mpirun` or `srun` starts them; the MPI library carries the bytes, nothing else of it is used.

use std::mem::ManuallyDrop;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::request::{Request, Scope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use mpi::{Count, Threading};

use super::wire::{Traffic, Wire};

/// Looks at a request before the thread begins to sleep between them.
const SOON: usize = 50;
const NAP: Duration = Duration::from_micros(50);

/// This process among those of `MPI_COMM_WORLD`.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    /// Finalizes MPI when dropped, which waits for all ranks: only [`Wire::leave`] may. A process that ends without has failed, and its
    /// launcher ends the others.
    universe: ManuallyDrop<Universe>,
    traffic: Traffic,
}

impl Mpi {
    /// Starts MPI on this thread, from which alone it may be called (`MPI_THREAD_FUNNELED`).
    pub(super) fn connect() -> Result<Mpi> {
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) = started.context("MPI is already in use in this process")?;
        Ok(Mpi { world: universe.world(), universe: ManuallyDrop::new(universe), traffic: Traffic::default() })
    }

    /// The number of values that every rank has for this one.
    fn counts(&self, counts: &[Count]) -> Vec<Count> {
        let mut received = vec![0; counts.len()];
        scope(|scope| wait(self.world.immediate_all_to_all_into(scope, counts, &mut received[..])));
        received
    }
}

impl Wire for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world(&self) -> usize {
        self.world.size() as usize
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn all_gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.traffic.add(bytes.len(), Wire::world(self) - 1);
        let counts = self.counts(&vec![count(bytes.len())?; Wire::world(self)]);
        let starts = starts(&counts)?;
        let mut all = vec![0u8; total(&counts)];
        if all.is_empty() {
            // Open MPI takes a gathering of nothing for an error.
            return Ok(vec![Vec::new(); counts.len()]);
        }
        let mut parts = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
        scope(|scope| wait(self.world.immediate_all_gather_varcount_into(scope, &bytes[..], &mut parts)));
        Ok(split(&all, &counts))
    }

    fn all_to_all_v(&mut self, parts: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        self.traffic.add_parts(Wire::rank(self), &parts);
        let sent: Vec<Count> = parts.iter().map(|part| count(part.len())).collect::<Result<_>>()?;
        let received = self.counts(&sent);
        let (from, to) = (starts(&sent)?, starts(&received)?);
        let values = parts.concat();
        let mut all = vec![0f32; total(&received)];
        let source = Partition::new(&values[..], &sent[..], &from[..]);
        let mut target = PartitionMut::new(&mut all[..], &received[..], &to[..]);
        scope(|scope| wait(self.world.immediate_all_to_all_varcount_into(scope, &source, &mut target)));
        Ok(split(&all, &received))
    }

    fn leave(&mut self) -> Result<()> {
        self.world.barrier();
        // SAFETY: this is the last use of MPI; the link calls `leave` once and nothing after it.
        unsafe { ManuallyDrop::drop(&mut self.universe) }
        Ok(())
    }
}

/// Waits without keeping a core busy: a blocking call of MPI spins, on a core that the training thread needs. What is done soon is
/// seen soon; after that, a look every [`NAP`].
fn wait<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>) {
    for look in 0.. {
        match request.test() {
            Ok(_) => return,
            Err(unfinished) => request = unfinished,
        }
        match look < SOON {
            true => std::thread::yield_now(),
            false => std::thread::sleep(NAP),
        }
    }
}

fn count(n: usize) -> Result<Count> {
    Count::try_from(n).with_context(|| format!("{n} values in one message: MPI counts to {}", Count::MAX))
}

fn starts(counts: &[Count]) -> Result<Vec<Count>> {
    let n = total(counts);
    ensure!(Count::try_from(n).is_ok(), "{n} values in one exchange: MPI counts to {}", Count::MAX);
    let starts = counts.iter().scan(0, |next, count| {
        let start = *next;
        *next += count;
        Some(start)
    });
    Ok(starts.collect())
}

fn total(counts: &[Count]) -> usize {
    counts.iter().map(|count| *count as usize).sum()
}

fn split<T: Clone>(mut values: &[T], counts: &[Count]) -> Vec<Vec<T>> {
    let take = |count: &Count| {
        let (part, rest) = values.split_at(*count as usize);
        values = rest;
        part.to_vec()
    };
    counts.iter().map(take).collect()
}
