//! Memory that operations use while they run.

use super::super::super::Tape;
use super::super::super::op::Op;
use super::super::device::{Device, DeviceBuffer};
use super::super::upload::Sections;
use super::{PARTIALS, loss};
use crate::error::Result;

/// Memory beside the arena that operations use while they run.
pub(in super::super) struct Scratch {
    /// Sums over stretches of rows.
    pub(super) partial: DeviceBuffer,
    /// Sums over pieces of a table's rows.
    pub(super) pieces: DeviceBuffer,
    /// What attention's gradient keeps of each row and head.
    pub(super) along: DeviceBuffer,
    /// A block of rows of logits.
    pub(super) logits: DeviceBuffer,
    /// The loss of each row, and of each sequence in float64.
    pub(super) nll: DeviceBuffer,
    pub(super) sequences: DeviceBuffer,
}

impl Scratch {
    pub(in super::super) fn new(device: &Device) -> Result<Scratch> {
        let empty = || device.zeros(0);
        let (partial, pieces, along, logits) = (empty()?, empty()?, empty()?, empty()?);
        Ok(Scratch { partial, pieces, along, logits, nll: empty()?, sequences: empty()? })
    }

    /// Makes room for the operations of `tape` over `b` sequences; says whether anything has moved.
    pub(in super::super) fn fit(
        &mut self,
        device: &Device,
        tape: &Tape,
        sections: &Sections,
        (b, vocab): (usize, usize),
    ) -> Result<bool> {
        let (mut partial, mut pieces, mut along, mut rows) = (0, 0, 0, 0);
        for op in &tape.ops {
            match *op {
                Op::NormGrad { dout, .. }
                | Op::HeadNormRopeGrad { dout, .. }
                | Op::LinearGradWeight { dout, bias: Some(_), .. } => {
                    partial = partial.max(PARTIALS * tape.buffers[dout.0].cols);
                }
                Op::EmbedGrad { dout, .. } => {
                    let most = sections.by_id.most_pieces.max(sections.by_bucket.most_pieces);
                    pieces = pieces.max(most * tape.buffers[dout.0].cols);
                }
                Op::AddRowsGrad { dx, .. } => {
                    pieces = pieces.max(sections.by_id.most_pieces * tape.buffers[dx.0].cols);
                }
                Op::AttentionGrad { log_sum, .. } => along = along.max(tape.buffers[log_sum.0].len()),
                Op::LinearCrossEntropy { x, .. } => rows = tape.buffers[x.0].rows,
                _ => (),
            }
        }
        let chunk = loss::chunk_rows(rows, vocab);
        let sizes = [
            (&mut self.partial, 4 * partial),
            (&mut self.pieces, 4 * pieces),
            (&mut self.along, 4 * along),
            (&mut self.logits, 2 * chunk * loss::pitch(vocab)),
            (&mut self.nll, 4 * rows),
            (&mut self.sequences, 8 * b),
        ];
        let moved: Vec<bool> =
            sizes.into_iter().map(|(buffer, n_bytes)| device.grow(buffer, n_bytes)).collect::<Result<_>>()?;
        Ok(moved.contains(&true))
    }

    pub(in super::super) fn n_bytes(&self) -> usize {
        let buffers = [&self.partial, &self.pieces, &self.along, &self.logits, &self.nll, &self.sequences];
        buffers.map(|buffer| buffer.n_bytes).iter().sum()
    }

    /// Where the last tape left the loss of each sequence.
    pub(in super::super) fn sequence_losses(&self) -> u64 {
        self.sequences.at
    }
}
