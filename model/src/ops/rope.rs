//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split form of Llama and Qwen.

use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

use super::simd::vectorized;
use super::{is_fused, slice, with_values};

/// Cosines and sines of the first positions, computed once per model.
#[derive(Clone)]
pub struct Rope {
    /// Per position the half-head's cosines, then its sines.
    table: Arc<Vec<f32>>,
    half: usize,
    /// The same on the device of the model that rotates with it, where that is not the CPU. Shape: positions, 1, 2, half.
    on_device: Arc<OnceLock<Tensor>>,
}

impl Rope {
    /// Angles `position * theta^(-2i/d_head)` for positions below `n_positions`.
    pub fn new(d_head: usize, theta: f64, n_positions: usize) -> Rope {
        let half = d_head / 2;
        let mut table = Vec::with_capacity(n_positions * d_head);
        for position in 0..n_positions {
            let angle = |i: usize| position as f64 * theta.powf(-((2 * i) as f64) / d_head as f64);
            table.extend((0..half).map(|i| angle(i).cos() as f32));
            table.extend((0..half).map(|i| angle(i).sin() as f32));
        }
        Rope { table: Arc::new(table), half, on_device: Arc::default() }
    }

    /// For each position the half-head's cosines, then its sines.
    pub fn table(&self) -> &[f32] {
        &self.table
    }

    /// Positions that the table covers.
    pub fn n_positions(&self) -> usize {
        self.table.len() / (2 * self.half)
    }

    /// The whole table on `device`: uploaded once, as a model lives on one device.
    fn on(&self, device: &Device) -> Result<Tensor> {
        if let Some(table) = self.on_device.get().filter(|table| table.device().same_device(device)) {
            return Ok(table.clone());
        }
        let table = Tensor::from_slice(&self.table, (self.n_positions(), 1, 2, self.half), device)?;
        // Of two threads that come here at once the second one's table goes unused.
        self.on_device.set(table.clone()).ok();
        Ok(table)
    }
}

/// Rotates the heads of `x_BLHK`, whose first position is `start`.
pub fn apply_rope(x_BLHK: &Tensor, rope: &Rope, start: usize) -> Result<Tensor> {
    let (_, l, h, k) = x_BLHK.dims4()?;
    if start + l > rope.n_positions() || k != 2 * rope.half {
        candle_core::bail!("rope: positions {start}..{} of {}, head {k}", start + l, rope.n_positions());
    }
    if !is_fused(x_BLHK) {
        return composed(x_BLHK, rope, start);
    }
    x_BLHK.contiguous()?.apply_op1(Rotate { rope: rope.clone(), start, l, h, sign: 1.0 })
}

struct Rotate {
    rope: Rope,
    start: usize,
    l: usize,
    h: usize,
    /// -1 rotates back, which is the gradient.
    sign: f32,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(storage, layout, "rope")?.to_vec();
        self.rope.rotate(&mut y, self.h, |n| self.start + n % self.l, self.sign);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values(dy, "rope", |dy| {
            let mut dx = dy.to_vec();
            self.rope.rotate(&mut dx, self.h, |n| self.start + n % self.l, -self.sign);
            Ok(dx)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

impl Rope {
    /// Rotates the `h` heads of each token in place, at the position that `position` gives the token; back if `sign` is -1.
    pub(crate) fn rotate(&self, x: &mut [f32], h: usize, position: impl Fn(usize) -> usize + Sync, sign: f32) {
        let k = 2 * self.half;
        x.par_chunks_mut(h * k).with_min_len(128).enumerate().for_each(|(n, heads)| {
            let (cos, sin) = self.at(position(n));
            heads.chunks_exact_mut(k).for_each(|head| rotate_head(head, cos, sin, sign));
        });
    }

    /// Rotates heads that all stand at `position`, on this thread.
    pub(crate) fn rotate_at(&self, heads: &mut [f32], position: usize) {
        let (cos, sin) = self.at(position);
        heads.chunks_exact_mut(2 * self.half).for_each(|head| rotate_head(head, cos, sin, 1.0));
    }

    /// Cosines and sines of a position.
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let k = 2 * self.half;
        self.table[position * k..][..k].split_at(self.half)
    }
}

vectorized! {
    pub(super) fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - sign * *b * sin, *b * cos + sign * *a * sin);
        }
    }
}

fn composed(x_BLHK: &Tensor, rope: &Rope, start: usize) -> Result<Tensor> {
    let l = x_BLHK.dim(1)?;
    let table = rope.on(x_BLHK.device())?.narrow(0, start, l)?;
    let (cos, sin) = (table.narrow(2, 0, 1)?.squeeze(2)?, table.narrow(2, 1, 1)?.squeeze(2)?);
    let (x1, x2) = (x_BLHK.narrow(D::Minus1, 0, rope.half)?, x_BLHK.narrow(D::Minus1, rope.half, rope.half)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Tensor::cat(&[y1, y2], D::Minus1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_same_gradients, values};

    #[test]
    fn rope_equals_composed() {
        let rope = Rope::new(8, 10_000.0, 16);
        let inputs = [values(&[2, 5, 3, 8], 1)];
        assert_same_gradients(&inputs, |x| apply_rope(&x[0], &rope, 4), |x| composed(&x[0], &rope, 4));
    }

    #[test]
    fn positions_beyond_the_table_are_an_error() {
        let rope = Rope::new(8, 10_000.0, 16);
        assert!(apply_rope(&values(&[1, 5, 3, 8], 1), &rope, 12).is_err());
    }
}
