//! The output projection, its cross-entropy and the gradients of both, in blocks of rows whose logits stay in the cache.

use super::super::super::op::{BufId, ParamId};
use super::super::device::{Arg, Grid};
use super::super::gemm::Shape;
use super::super::kernels::Kernel;
use super::{Run, THREADS, int};
use crate::error::Result;

/// Logits that exist at one time: two thirds of an H200's second-level cache, so that they are read there again.
const LOGITS_BYTES: usize = 32 << 20;

/// Elements from one row of logits to the next: 16 bytes divide it.
pub(super) fn pitch(vocab: usize) -> usize {
    vocab.next_multiple_of(8)
}

/// Rows of a block.
pub(super) fn chunk_rows(rows: usize, vocab: usize) -> usize {
    let fitting = LOGITS_BYTES / (2 * pitch(vocab).max(1));
    (fitting / 128 * 128).max(128).min(rows)
}

impl Run<'_> {
    pub(super) fn cross_entropy(&self, x: BufId, head: ParamId, dx: BufId) -> Result<()> {
        let ((n, d), v) = (self.shape(x), self.config.vocab_size);
        let (pitch, chunk) = (pitch(v), chunk_rows(n, v));
        let (logits, nll) = (self.scratch.logits.at, self.scratch.nll.at);
        for first in (0..n).step_by(chunk.max(1)) {
            let rows = chunk.min(n - first);
            let at = 2 * (first * d) as u64;
            let (x, dx) = (self.half(x)? + at, self.half(dx)? + at);
            let forward = Shape { strides: (d, d, pitch), ..Shape::of((rows, v, d), (false, true), false) };
            self.product(forward, x, self.half_weight(head), logits, false)?;
            let target = Arg::At(self.uploads.at(self.sections.targets) + 4 * first as u64);
            let (scale, nll) = (self.section(self.sections.scale), Arg::At(nll + 4 * first as u64));
            let args = [Arg::At(logits), target, scale, nll, int(v), int(pitch), Arg::Float(self.config.logit_softcap)];
            self.device.launch(Kernel::SoftmaxLoss, Grid::of(rows, THREADS), &args)?;
            let to_input = Shape { strides: (pitch, d, d), ..Shape::of((rows, d, v), (false, false), false) };
            self.product(to_input, logits, self.half_weight(head), dx, false)?;
            let to_weight = Shape { strides: (pitch, d, d), ..Shape::of((v, d, rows), (true, false), true) };
            self.product(to_weight, logits, x, self.gradient(head), true)?;
        }
        let (b, l, sequences) = (self.data.b, self.data.l, Arg::At(self.scratch.sequences.at));
        self.device.launch(Kernel::SequenceLosses, Grid::of(b, THREADS), &[Arg::At(nll), sequences, int(l)])?;
        self.device.launch(Kernel::AddLosses, Grid::of(1, THREADS), &[sequences, Arg::At(self.loss), int(b)])
    }
}
