//! RMSNorm of each query or key head (Henry et al. 2020, arXiv 2010.04245) and its rotation, in one pass over memory.

use rayon::prelude::*;

use super::Rope;
use super::rms_norm::{norm_row, row_grad};
use super::rope::rotate_head;

/// Tokens that one task handles.
const TOKENS: usize = 64;

/// What is the same for all tokens.
#[derive(Clone, Copy)]
pub(crate) struct HeadNormRope<'a> {
    pub(crate) rope: &'a Rope,
    pub(crate) weight_K: &'a [f32],
    pub(crate) eps: f32,
    /// Positions of a sequence.
    pub(crate) l: usize,
    /// Heads of a token.
    pub(crate) h: usize,
}

impl HeadNormRope<'_> {
    /// Shapes: `x` and `out` `NHK`; `inverse`, one over the root mean square of each head, `NH`.
    pub(crate) fn forward(&self, x: &[f32], out: &mut [f32], inverse: &mut [f32]) {
        let (k, h) = (self.weight_K.len(), self.h);
        let chunk = TOKENS * h * k;
        let tasks = out.par_chunks_mut(chunk).zip(inverse.par_chunks_mut(TOKENS * h)).zip(x.par_chunks(chunk));
        tasks.enumerate().for_each(|(task, ((out, inverse), x))| {
            let heads = out.chunks_exact_mut(k).zip(x.chunks_exact(k)).zip(inverse).enumerate();
            heads.for_each(|(i, ((out, x), inverse))| {
                *inverse = norm_row(out, x, self.weight_K, self.eps);
                let (cos, sin) = self.rope.at((task * TOKENS + i / h) % self.l);
                rotate_head(out, cos, sin, 1.0);
            });
        });
    }

    /// Turns `dy`, the gradient of the result, into that of `x`; adds to `dweight_K`.
    pub(crate) fn backward(&self, x: &[f32], inverse: &[f32], dy: &mut [f32], dweight_K: &mut [f32]) {
        let (k, h) = (self.weight_K.len(), self.h);
        let chunk = TOKENS * h * k;
        let tasks = dy.par_chunks_mut(chunk).zip(inverse.par_chunks(TOKENS * h)).zip(x.par_chunks(chunk));
        let parts: Vec<Vec<f32>> = tasks
            .enumerate()
            .map(|(task, ((dy, inverse), x))| {
                let [mut dweight, mut scratch, mut rotated] = [0; 3].map(|_| vec![0f32; k]);
                let heads = dy.chunks_exact_mut(k).zip(x.chunks_exact(k)).zip(inverse).enumerate();
                heads.for_each(|(i, ((dy, x), &inverse))| {
                    let (cos, sin) = self.rope.at((task * TOKENS + i / h) % self.l);
                    rotated.copy_from_slice(dy);
                    rotate_head(&mut rotated, cos, sin, -1.0);
                    row_grad((dy, false), (&mut dweight, &mut scratch), x, inverse, self.weight_K, &rotated);
                });
                dweight
            })
            .collect();
        // In order, so that the sum does not depend on the threads.
        parts.iter().for_each(|part| dweight_K.iter_mut().zip(part).for_each(|(sum, value)| *sum += value));
    }
}
