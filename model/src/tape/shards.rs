//! The sequences of a batch divided among the cores: each part runs a tape of its own, and waits for no other between two operations.
//!
//! Worth more than dividing every operation: at these sizes an operation takes a tenth of a millisecond to some, and the slowest core of
//! each would be waited for. It costs a buffer of gradients for each part but the first.

use std::ops::Range;

use rayon::ThreadPool;

use super::merge::{Complete, Merger};
use super::step::Ready;
use super::{CpuTape, Profile};
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::lm::Batch;

/// Bytes that the gradients of all parts but the first may take.
const MAX_GRADIENT_BYTES: usize = 1 << 29;

/// A part of the cores, with its memory.
pub(super) struct Shard {
    pub(super) cpu: CpuTape,
    /// The cores of its own; none where it has all.
    pool: Option<ThreadPool>,
    /// Where its gradients go before they are added to those of the first.
    gradients: Option<Gradients>,
}

/// All parts; made when the first batch says how many.
#[derive(Default)]
pub(super) struct Shards(Vec<Shard>);

impl Shards {
    /// Into how many parts a batch is divided; their memory is there afterwards.
    pub(super) fn n_parts(&mut self, batch: &Batch, may_divide: bool, gradients: &Gradients) -> Result<usize> {
        let n_shards =
            n_shards((batch.x_BL.dim(0)?, may_divide), rayon::current_num_threads(), gradients.values().len());
        self.make(n_shards, gradients)?;
        Ok(n_shards)
    }

    /// The memory of a batch that is not divided; none where it is.
    pub(super) fn undivided(&mut self, n_parts: usize) -> Option<&mut CpuTape> {
        self.0.first_mut().filter(|_| n_parts == 1).map(|shard| &mut shard.cpu)
    }

    /// Runs `run` on `n_shards` equal parts of the batch at the same time, adds up their gradients, and returns what they returned, in order.
    /// With `ready` the gradients of a layer are added up when all parts have left it, while the backward passes go on.
    pub(super) fn run<T: Send>(
        &mut self,
        batch: &Batch,
        n_shards: usize,
        gradients: &mut Gradients,
        run: impl Fn(&mut CpuTape, &Batch, &mut Gradients, &mut Ready) -> Result<T> + Sync,
        mut ready: Option<&mut Ready>,
    ) -> Result<Vec<T>> {
        let parts = parts(batch, batch.x_BL.dim(0)? / n_shards, n_shards)?;
        let Some((first, others)) = self.0[..n_shards].split_first_mut() else { return Ok(Vec::new()) };
        let (mut merger, senders) = Merger::new(others.len());
        let says = ready.is_some();
        let results = std::thread::scope(|scope| {
            let run = &run;
            let mut threads = Vec::new();
            for ((shard, part), sender) in others.iter_mut().zip(&parts[1..]).zip(senders) {
                let mut say = move |gradients: &mut Gradients, parameters: Range<usize>| {
                    if says {
                        // A first part that has failed listens no more.
                        let _ = sender.send(Complete::of(gradients, parameters));
                    }
                    Ok(())
                };
                threads.push(scope.spawn(move || shard.run(part, &mut say, run)));
            }
            let first = first.within(|cpu| {
                let result = run(cpu, &parts[0], gradients, &mut |gradients, parameters| match &mut ready {
                    Some(ready) => merger.add(gradients, parameters, ready),
                    None => Ok(()),
                })?;
                ready.as_mut().map_or(Ok(()), |ready| merger.finish(gradients, ready))?;
                Ok(result)
            });
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::Input("a thread of the training step panicked".to_owned())))
            });
            std::iter::once(first).chain(joined).collect::<Vec<Result<T>>>()
        });
        let parts = others.iter().filter_map(|shard| shard.gradients.as_ref()).filter(|_| !says);
        parts.for_each(|part| gradients.add_all(part));
        results.into_iter().collect()
    }

    fn make(&mut self, n_shards: usize, gradients: &Gradients) -> Result<()> {
        let n_threads = rayon::current_num_threads() / n_shards;
        while self.0.len() < n_shards {
            let pool = match n_shards {
                1 => None,
                _ => {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build();
                    Some(pool.map_err(|error| Error::Input(format!("threads of the training step: {error}")))?)
                }
            };
            let gradients = (!self.0.is_empty()).then(|| gradients.zeros_like());
            self.0.push(Shard { cpu: CpuTape::default(), pool, gradients });
        }
        Ok(())
    }

    /// Where the first part's time went.
    pub(super) fn profile(&mut self) -> Option<&mut Profile> {
        self.0.first_mut().map(|shard| &mut shard.cpu.profile)
    }

    pub(super) fn n_bytes(&self) -> usize {
        let gradients = |shard: &Shard| shard.gradients.as_ref().map_or(0, |gradients| 4 * gradients.values().len());
        self.0.iter().map(|shard| shard.cpu.n_bytes() + gradients(shard)).sum()
    }
}

impl Shard {
    fn run<T: Send>(
        &mut self,
        part: &Batch,
        ready: &mut Ready,
        run: &(impl Fn(&mut CpuTape, &Batch, &mut Gradients, &mut Ready) -> Result<T> + Sync),
    ) -> Result<T> {
        let mut gradients = self.gradients.take().unwrap_or_else(|| Gradients::new([]));
        gradients.clear();
        let result = self.within(|cpu| run(cpu, part, &mut gradients, ready));
        self.gradients = Some(gradients);
        result
    }

    /// Runs `f` on the cores of this part.
    fn within<T: Send>(&mut self, f: impl FnOnce(&mut CpuTape) -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(|| f(&mut self.cpu)),
            None => f(&mut self.cpu),
        }
    }
}

/// The most parts of as many sequences and cores each.
pub(super) fn n_shards((b, may_divide): (usize, bool), n_threads: usize, n_values: usize) -> usize {
    if !may_divide {
        return 1;
    }
    let fits = |n: &usize| (n - 1) * n_values * 4 <= MAX_GRADIENT_BYTES;
    (1..=n_threads).rev().filter(|n| b.is_multiple_of(*n) && n_threads.is_multiple_of(*n)).find(fits).unwrap_or(1)
}

/// `n` parts of `b` sequences each, of a batch whose sizes were checked.
fn parts(batch: &Batch, b: usize, n: usize) -> Result<Vec<Batch>> {
    let l = batch.x_BL.dim(1)?;
    let tokens = |values: &[u32], rows: Range<usize>| values[rows.start * l..rows.end * l].to_vec();
    let part = |i: usize| {
        let rows = i * b..(i + 1) * b;
        Ok(Batch {
            x_BL: batch.x_BL.narrow(0, rows.start, b)?,
            y_BL: batch.y_BL.narrow(0, rows.start, b)?,
            language_BL: tokens(&batch.language_BL, rows.clone()),
            start_BL: batch.start_BL.as_ref().map(|start_BL| tokens(start_BL, rows)),
            training: batch.training,
        })
    };
    (0..n).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_and_their_gradients_fit() {
        assert_eq!(
            [(8, 2), (4, 4), (3, 2), (6, 4), (1, 8), (12, 8)].map(|(b, t)| n_shards((b, true), t, 1000)),
            [2, 4, 1, 2, 1, 4]
        );
        assert_eq!(n_shards((8, true), 8, MAX_GRADIENT_BYTES / 4), 2);
        assert_eq!(n_shards((8, false), 8, 1000), 1);
    }
}
