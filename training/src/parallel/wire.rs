//! A way to other ranks: two primitives, and the sum over ranks that follows from them.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};

/// What a rank has sent to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes, without what the transport adds.
    pub bytes: u64,
    /// Messages to a single other rank each.
    pub messages: u64,
}

impl Traffic {
    /// Counts `bytes` sent to each of `n` other ranks.
    pub(super) fn add(&mut self, bytes: usize, n: usize) {
        self.bytes += (bytes * n) as u64;
        self.messages += n as u64;
    }

    /// Counts an all-to-all of this rank's `parts`.
    pub(super) fn add_parts(&mut self, rank: usize, parts: &[Vec<f32>]) {
        parts
            .iter()
            .enumerate()
            .filter(|(to, _)| *to != rank)
            .for_each(|(_, part)| self.add(size_of_val(&part[..]), 1));
    }
}

/// One rank's end of the connections to all others. It lives on one thread; all ranks call the same functions in the same order.
pub(super) trait Wire {
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// What this rank has sent so far.
    fn traffic(&self) -> Traffic;

    /// The bytes of every rank, by rank; each may have another number of them.
    fn all_gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>>;

    /// Sends `parts[rank]` to each rank; returns what each sent here, by rank.
    fn all_to_all_v(&mut self, parts: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>>;

    /// Replaces each value by its sum over all ranks. The ranks' values are added in the order of the ranks, whatever the way and the
    /// number of values, so that all ranks get the same bits: each sums one part, then they exchange the parts. A rank sends
    /// `2 (R - 1) / R` times the bytes, as a ring does (Patarasuk and Yuan 2009, JPDC 69(2)).
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<()> {
        let spans = even_spans(values.len(), self.world());
        let parts = spans.iter().map(|span| values[span.clone()].to_vec()).collect();
        let mut received = self.all_to_all_v(parts)?.into_iter();
        let mut sum = received.next().unwrap_or_default();
        for part in received {
            ensure!(part.len() == sum.len(), "{} values from one rank, {} from another", part.len(), sum.len());
            sum.iter_mut().zip(&part).for_each(|(sum, value)| *sum += value);
        }
        for (span, part) in spans.into_iter().zip(self.all_to_all_v(vec![sum; self.world()])?) {
            ensure!(part.len() == span.len(), "{} values from one rank, expected {}", part.len(), span.len());
            values[span].copy_from_slice(&part);
        }
        Ok(())
    }

    /// Returns once all ranks have come here.
    fn barrier(&mut self) -> Result<()> {
        self.all_gather(Vec::new()).map(drop)
    }

    /// How long the next calls may wait for another rank, where the way can tell.
    fn set_timeout(&mut self, _timeout: Duration) {}

    /// Ends the connection in good order; called by all ranks. A wire that is dropped without has failed.
    fn leave(&mut self) -> Result<()> {
        self.barrier()
    }
}

/// `n` things in `parts` stretches whose lengths differ by at most one.
pub(super) fn even_spans(n: usize, parts: usize) -> Vec<Range<usize>> {
    (0..parts).map(|part| n * part / parts..n * (part + 1) / parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_everything_evenly() {
        assert_eq!(even_spans(7, 3), [0..2, 2..4, 4..7]);
        assert_eq!(even_spans(1, 4), [0..0, 0..0, 0..0, 0..1]);
    }
}
