//! Root-mean-square normalization over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467).

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{simd, slice, with_values};

/// Rows that one task handles.
const ROWS: usize = 64;

/// `x / rms(x) * weight` over the last dimension of `x`; `weight` has that dimension's size.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
        return x.broadcast_mul(&inverse)?.broadcast_mul(weight);
    }
    x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 })
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(s1, l1, "rms_norm")?, slice(s2, l2, "rms_norm")?);
        let d = weight.len();
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(d * ROWS).zip(x.par_chunks(d * ROWS)).for_each(|(y, x)| {
            simd::vectorized(|| {
                for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                    let inverse = self.inverse_rms(x);
                    for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
                        *y = x * inverse * weight;
                    }
                }
            });
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dweight) = with_values(x, "rms_norm", |x| {
            with_values(weight, "rms_norm", |w| with_values(dy, "rms_norm", |dy| Ok(self.gradients(x, w, dy))))
        })?;
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dweight, weight.shape(), weight.device())?)))
    }
}

impl RmsNorm {
    #[inline(always)]
    fn inverse_rms(&self, x: &[f32]) -> f32 {
        1.0 / (simd::dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }

    fn gradients(&self, x: &[f32], weight: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let d = weight.len();
        let mut dx = vec![0f32; x.len()];
        let tasks = dx.par_chunks_mut(d * ROWS).zip(x.par_chunks(d * ROWS)).zip(dy.par_chunks(d * ROWS));
        let parts: Vec<Vec<f32>> = tasks
            .map(|((dx, x), dy)| {
                let mut dweight = vec![0f32; d];
                simd::vectorized(|| {
                    let rows = dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d));
                    rows.for_each(|((dx, x), dy)| self.row_gradient(dx, &mut dweight, x, weight, dy));
                });
                dweight
            })
            .collect();
        let mut dweight = vec![0f32; d];
        for part in parts {
            dweight.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        (dx, dweight)
    }

    /// With r = 1/rms: dx = r·(w·dy) - x·r^3/d·Σ(w·dy·x), dw += dy·x·r.
    #[inline(always)]
    fn row_gradient(&self, dx: &mut [f32], dweight: &mut [f32], x: &[f32], weight: &[f32], dy: &[f32]) {
        let inverse = self.inverse_rms(x);
        for ((dx, &w), &dy) in dx.iter_mut().zip(weight).zip(dy) {
            *dx = w * dy;
        }
        let along = simd::dot(dx, x) * inverse * inverse * inverse / x.len() as f32;
        for (((dx, dw), &x), &dy) in dx.iter_mut().zip(dweight).zip(x).zip(dy) {
            *dx = *dx * inverse - x * along;
            *dw += dy * x * inverse;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_same_gradients, values};

    #[test]
    fn rms_norm_equals_composed() {
        for dims in [[3, 5, 40], [1, 130, 16]] {
            let inputs = [values(&dims, 1), values(&dims[2..], 2)];
            assert_same_gradients(
                &inputs,
                |x| rms_norm(&x[0], &x[1], 1e-6),
                |x| {
                    let inverse = (x[0].sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?.recip()?;
                    x[0].broadcast_mul(&inverse)?.broadcast_mul(&x[1])
                },
            );
        }
    }
}
