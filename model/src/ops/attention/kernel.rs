//! The kernel: blocks of query rows against the keys that they see.

use rayon::prelude::*;

use super::super::matmul::{Part, Right};
use super::super::simd::{self, Mat, Rows, Shared, vectorized};
use super::{AttentionShape, Block, Inputs, SERIAL};

impl AttentionShape {
    /// Writes every element of `out` (`BLHK`) and of `log_sum` (`BLH`), the logarithm of the sum of exponentials of each row of scores.
    pub(crate) fn forward(&self, inputs: Inputs, out: &mut [f32], log_sum: &mut [f32]) {
        let (out, log_sum) = (Shared::new(out), Shared::new(log_sum));
        let head = |task: usize| self.forward_head(task / self.h, task % self.h, inputs, out, log_sum);
        if self.b * self.h * self.l * self.m <= SERIAL {
            (0..self.b * self.h).for_each(head);
        } else {
            (0..self.b * self.h).into_par_iter().for_each(head);
        }
    }

    fn forward_head(&self, b: usize, h: usize, inputs: Inputs, out: Shared, log_sum: Shared) {
        let head = Head::new(self, b, h / self.group(), inputs);
        let mut probs = vec![0f32; self.block_rows() * self.m];
        for block in self.blocks(b, inputs.start) {
            let Block { first, rows, low, high } = block;
            let seen = high - low;
            self.scores(&mut probs, h, block, &head, inputs);
            let log_sums = log_sum.rows((b * self.l + first) * self.h + h, self.h, (rows, 1));
            for (row, probs) in probs.chunks_exact_mut(seen).take(rows).enumerate() {
                let visible = self.visible(probs, b, block, row, inputs.start);
                scale_row(visible, self.scale());
                // SAFETY: each (b, h) task writes the elements of its own head only, and both outlive the tasks.
                let log_sum = unsafe { log_sums.row(row) };
                log_sum[0] = simd::softmax_row(visible);
            }
            let dst = out.rows(self.q_at(b, first, h), self.h * self.k, (rows, self.k));
            let part = Part { inner: low..high, first_col: 0 };
            // SAFETY: as above.
            unsafe { head.values.product(dst, Mat::rows(&probs, seen), part, false) };
        }
    }

    /// Fills `scores` (rows x keys that the block sees) with the products of queries and keys.
    fn scores(&self, scores: &mut [f32], h: usize, block: Block, head: &Head, inputs: Inputs) {
        let Block { first, rows, low, high } = block;
        let queries = Mat::rows(&inputs.q[self.q_at(head.b, first, h)..], self.h * self.k);
        let scores = Rows::new(scores, high - low, (rows, high - low));
        // SAFETY: `scores` is borrowed exclusively.
        unsafe { head.keys_turned.product(scores, queries, Part { inner: 0..self.k, first_col: low }, false) };
    }

    /// The keys that a row of a block sees; sets the others to zero.
    #[inline(always)]
    fn visible<'a>(
        &self,
        row_values: &'a mut [f32],
        b: usize,
        block: Block,
        row: usize,
        start: Option<&[u32]>,
    ) -> &'a mut [f32] {
        let before = start.map_or(0, |start| start[b * self.l + block.first + row] as usize - block.low);
        let (upto, later) = row_values.split_at_mut(block.high - block.low - block.rows + row + 1);
        later.fill(0.0);
        let (before, visible) = upto.split_at_mut(before);
        before.fill(0.0);
        visible
    }

    /// Writes the gradients of queries, keys and values. Key heads are independent tasks; the query heads of one add up in order.
    pub(crate) fn backward(
        &self,
        inputs: Inputs,
        out: &[f32],
        log_sum: &[f32],
        dout: &[f32],
        [dq, dk, dv]: [&mut [f32]; 3],
    ) {
        let grads = [dq, dk, dv].map(Shared::new);
        (0..self.b * self.g).into_par_iter().for_each(|task| {
            let (b, g) = (task / self.g, task % self.g);
            for grad in &grads[1..] {
                let rows = grad.rows(self.kv_at(b, 0, g), self.g * self.k, (self.m, self.k));
                // SAFETY: a task owns the key head g in dk and dv and its query heads in dq; all three outlive the tasks.
                (0..self.m).for_each(|row| unsafe { rows.row(row) }.fill(0.0));
            }
            let head = Head::new(self, b, g, inputs);
            let values_turned = Right::new(head.values_mat.t(), (self.block_rows(), self.m, self.k));
            let keys = Right::new(head.keys_mat, (self.block_rows(), self.k, self.m));
            let mut scratch = [0; 2].map(|_| vec![0f32; self.block_rows() * self.m]);
            for h in g * self.group()..(g + 1) * self.group() {
                for block in self.blocks(b, inputs.start) {
                    let factors = (&head, &values_turned, &keys);
                    self.backward_block(h, block, factors, inputs, [out, log_sum, dout], grads, &mut scratch);
                }
            }
        });
    }

    /// With P = exp(S - log_sum): dV += Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP - rowsum(dO∘O)), dQ = dS·K, dK += dSᵀ·Q (scaled).
    #[allow(clippy::too_many_arguments)]
    fn backward_block(
        &self,
        h: usize,
        block: Block,
        (head, values_turned, keys): (&Head, &Right, &Right),
        inputs: Inputs,
        [out, log_sum, dout]: [&[f32]; 3],
        [dq, dk, dv]: [Shared; 3],
        [probs, dscores]: &mut [Vec<f32>; 2],
    ) {
        let (b, Block { first, rows, low, high }) = (head.b, block);
        let (seen, q_row, kv_row) = (high - low, self.h * self.k, self.g * self.k);
        let (at_q, at_kv) = (self.q_at(b, first, h), self.kv_at(b, low, h / self.group()));
        let [queries, douts] = [inputs.q, dout].map(|values| Mat::rows(&values[at_q..], q_row));
        let dq = dq.rows(at_q, q_row, (rows, self.k));
        let [dk, dv] = [dk, dv].map(|grad| grad.rows(at_kv, kv_row, (seen, self.k)));

        self.scores(probs, h, block, head, inputs);
        let dprobs = Rows::new(dscores, seen, (rows, seen));
        // SAFETY: `dscores` is borrowed exclusively.
        unsafe { values_turned.product(dprobs, douts, Part { inner: 0..self.k, first_col: low }, false) };
        for row in 0..rows {
            let at = at_q + row * q_row;
            let (log_sum, scale) = (log_sum[(b * self.l + first + row) * self.h + h], self.scale());
            let p = self.visible(&mut probs[row * seen..][..seen], b, block, row, inputs.start);
            exp_row(p, scale, log_sum);
            // Where a key is not seen, P is zero, and so is dS.
            let (ds, p) = (&mut dscores[row * seen..][..seen], &probs[row * seen..][..seen]);
            score_grad(ds, p, &dout[at..at + self.k], &out[at..at + self.k], scale);
        }
        let whole = || Part { inner: 0..rows, first_col: 0 };
        let [right_queries, right_douts] = [queries, douts].map(|mat| Right::new(mat, (seen, self.k, rows)));
        let [probs, dscores] = [probs, dscores].map(|values| Mat::rows(values, seen));
        // SAFETY: as in `backward`.
        unsafe {
            right_douts.product(dv, probs.t(), whole(), true);
            keys.product(dq, dscores, Part { inner: low..high, first_col: 0 }, false);
            right_queries.product(dk, dscores.t(), whole(), true);
        }
    }
}

vectorized! {
    fn scale_row(row: &mut [f32], scale: f32) {
        row.iter_mut().for_each(|score| *score *= scale);
    }
}

vectorized! {
    /// The probabilities of a row of scores again, from the logarithm of the sum of exponentials.
    fn exp_row(p: &mut [f32], scale: f32, log_sum: f32) {
        p.iter_mut().for_each(|p| *p = simd::exp(*p * scale - log_sum));
    }
}

vectorized! {
    /// The gradient of a row of scores from that of its probabilities, in its place.
    fn score_grad(ds: &mut [f32], p: &[f32], dout: &[f32], out: &[f32], scale: f32) {
        let along = simd::dot(dout, out);
        ds.iter_mut().zip(p).for_each(|(ds, &p)| *ds = p * (*ds - along) * scale);
    }
}

/// Keys and values of one head of one sequence, as right factors.
struct Head<'a> {
    b: usize,
    keys_mat: Mat<'a>,
    values_mat: Mat<'a>,
    keys_turned: Right<'a>,
    values: Right<'a>,
}

impl<'a> Head<'a> {
    fn new(shape: &AttentionShape, b: usize, g: usize, inputs: Inputs<'a>) -> Head<'a> {
        let mat = |values: &'a [f32]| Mat::rows(&values[shape.kv_at(b, 0, g)..], shape.g * shape.k);
        let (keys_mat, values_mat) = (mat(inputs.k), mat(inputs.v));
        let keys_turned = Right::new(keys_mat.t(), (shape.block_rows(), shape.m, shape.k));
        let values = Right::new(values_mat, (shape.block_rows(), shape.k, shape.m));
        Head { b, keys_mat, values_mat, keys_turned, values }
    }
}
