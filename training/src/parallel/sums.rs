//! Gradients summed over ranks in buckets, from the end of the model to its start: the order in which a backward pass finishes them,
//! so that the sum of one bucket travels while the next is computed.

use std::ops::Range;

use anyhow::Result;
use multicoder_model::Gradients;

use super::link::{Link, Pending};

/// Some neighbouring parameters that travel together.
struct Bucket {
    parameters: Vec<usize>,
    /// Where the first of their values lies: from there on all gradients must be final.
    start: usize,
    /// Values, then one number a parameter: 0 where it is absent.
    values: Vec<f32>,
    pending: Option<Pending<Vec<f32>>>,
}

/// The sums of one optimizer step.
pub(super) struct Sums {
    buckets: Vec<Bucket>,
    n_started: usize,
}

impl Sums {
    /// Buckets of `bucket_bytes` or a little more for the parameters that `is_shared`, last parameter first.
    pub(super) fn plan(gradients: &Gradients, is_shared: impl Fn(usize) -> bool, bucket_bytes: usize) -> Sums {
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut room = 0;
        for idx in (0..gradients.n_parameters()).rev().filter(|idx| is_shared(*idx)) {
            let span = gradients.span(idx);
            if room == 0 {
                buckets.push(Bucket { parameters: Vec::new(), start: 0, values: Vec::new(), pending: None });
                room = bucket_bytes;
            }
            if let Some(bucket) = buckets.last_mut() {
                bucket.parameters.push(idx);
                bucket.start = span.start;
            }
            room = room.saturating_sub(size_of::<f32>() * span.len());
        }
        Sums { buckets, n_started: 0 }
    }

    /// Starts the sums of all buckets whose values are final: those that lie at `from` or after.
    pub(super) fn start(&mut self, gradients: &Gradients, from: usize, link: &Link, timeout: std::time::Duration) {
        let waiting = self.buckets[self.n_started..].iter_mut();
        for bucket in waiting.take_while(|bucket| bucket.start >= from) {
            let mut values = std::mem::take(&mut bucket.values);
            values.clear();
            for &idx in &bucket.parameters {
                match gradients.get(idx) {
                    Some(gradient) => values.extend_from_slice(gradient),
                    None => values.resize(values.len() + gradients.span(idx).len(), 0.0),
                }
            }
            values.extend(bucket.parameters.iter().map(|&idx| f32::from(u8::from(gradients.is_present(idx)))));
            bucket.pending = Some(link.call(timeout, move |wire| {
                wire.all_reduce(&mut values)?;
                Ok(values)
            }));
            self.n_started += 1;
        }
    }

    /// Starts what has not been started, waits for all, and puts the sums into `gradients`. A parameter is present if it is on any rank.
    ///
    /// # Errors
    /// A rank that does not answer.
    pub(super) fn finish(
        &mut self,
        gradients: &mut Gradients,
        link: &Link,
        timeout: std::time::Duration,
    ) -> Result<()> {
        self.start(gradients, 0, link, timeout);
        self.n_started = 0;
        for bucket in &mut self.buckets {
            let Some(pending) = bucket.pending.take() else { continue };
            bucket.values = link.wait(timeout, pending)?;
            let (values, present) = bucket.values.split_at(bucket.values.len() - bucket.parameters.len());
            let mut start = 0;
            for (&idx, &present) in bucket.parameters.iter().zip(present) {
                let n = gradients.span(idx).len();
                gradients.set(idx, (present > 0.0).then(|| &values[start..start + n]));
                start += n;
            }
        }
        Ok(())
    }

    /// The parameters of each bucket, for tests.
    #[cfg(test)]
    fn parameters(&self) -> Vec<Vec<usize>> {
        self.buckets.iter().map(|bucket| bucket.parameters.clone()).collect()
    }
}

/// Neighbouring parameters that `is_wanted`, as stretches of values.
pub(super) fn stretches(gradients: &Gradients, is_wanted: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut stretches: Vec<Range<usize>> = Vec::new();
    for span in (0..gradients.n_parameters()).filter(|idx| is_wanted(*idx)).map(|idx| gradients.span(idx)) {
        match stretches.last_mut().filter(|last| last.end == span.start) {
            Some(last) => last.end = span.end,
            None => stretches.push(span),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::threads::Threads;
    use std::time::Duration;

    const SIZES: [usize; 5] = [3, 2, 4, 1, 5];

    #[test]
    fn buckets_go_from_the_end_and_leave_out_what_is_not_shared() {
        let gradients = Gradients::new(SIZES);
        assert_eq!(Sums::plan(&gradients, |idx| idx != 2, 20).parameters(), [vec![4], vec![3, 1, 0]]);
        assert_eq!(Sums::plan(&gradients, |_| true, 1).parameters().len(), 5);
        assert_eq!(stretches(&gradients, |idx| idx != 2), [0..5, 9..15]);
        assert_eq!(Sums::plan(&gradients, |_| false, 20).parameters().len(), 0);
    }

    #[test]
    fn sums_started_early_and_late_are_the_same_and_absent_means_absent_everywhere() {
        let timeout = Duration::from_secs(20);
        let sum_on = |wire: Threads, early: bool| {
            let link = Link::start(timeout, move || Ok(wire)).unwrap();
            let mut gradients = Gradients::new(SIZES);
            let mut sums = Sums::plan(&gradients, |_| true, 8);
            for _ in 0..2 {
                gradients.clear();
                // Parameter 1 is on rank 1 alone, parameter 3 on none.
                for idx in [4, 2, 1, 0].into_iter().filter(|idx| *idx != 1 || link.rank == 1) {
                    gradients.slice_mut(idx).fill((idx + 10 * link.rank) as f32);
                    if early {
                        sums.start(&gradients, gradients.span(idx).start, &link, timeout);
                    }
                }
                sums.finish(&mut gradients, &link, timeout).unwrap();
            }
            link.leave(timeout).unwrap();
            gradients
        };
        let mut expected = Gradients::new(SIZES);
        [(0, 10.0), (1, 11.0), (2, 14.0), (4, 18.0)].into_iter().for_each(|(idx, x)| expected.slice_mut(idx).fill(x));
        let sums: Vec<Gradients> = std::thread::scope(|scope| {
            let ranks = Threads::connect(2).into_iter().enumerate();
            let ranks = ranks.map(|(rank, wire)| scope.spawn(move || sum_on(wire, rank == 0)));
            ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(sums.iter().all(|sum| *sum == expected), "{sums:?}");
    }

    #[test]
    fn a_started_sum_is_done_while_the_rank_computes() {
        let timeout = Duration::from_secs(20);
        let compute = |wire: Threads| {
            let link = Link::start(timeout, move || Ok(wire)).unwrap();
            let mut gradients = Gradients::new(SIZES);
            let mut sums = Sums::plan(&gradients, |_| true, 8);
            gradients.slice_mut(4).fill(1.0);
            sums.start(&gradients, gradients.span(4).start, &link, timeout);
            // Jobs are done in their order: once this one is, so is the sum, which nobody has waited for.
            link.wait(timeout, link.call(timeout, |wire| wire.barrier())).unwrap();
            let first = sums.buckets[0].pending.take().map(|pending| link.wait(Duration::ZERO, pending).unwrap());
            let is_second_idle = sums.buckets[1].pending.is_none();
            link.leave(timeout).unwrap();
            (first, is_second_idle)
        };
        let ranks: Vec<_> = std::thread::scope(|scope| {
            let ranks = Threads::connect(2).into_iter().map(|wire| scope.spawn(move || compute(wire)));
            ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        // Five values of parameter 4, and on how many ranks it is present.
        assert!(ranks.iter().all(|rank| *rank == (Some(vec![2.0; 6]), true)), "{ranks:?}");
    }
}
