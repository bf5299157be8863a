//! Root-mean-square normalization over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467).

use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::simd::{self, vectorized};
use super::{is_fused, slice, with_values};

/// Rows that one task handles.
const ROWS: usize = 64;

/// `x / rms(x) * weight` over the last dimension of `x`; `weight` has that dimension's size.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if !is_fused(x) {
        return composed(x, weight, eps);
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
        let (mut y, mut inverse) = (vec![0f32; x.len()], vec![0f32; x.len() / weight.len()]);
        norm(x, None, weight, self.eps, &mut y, &mut inverse);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dweight) = with_values(x, "rms_norm", |x| {
            with_values(weight, "rms_norm", |weight| {
                with_values(dy, "rms_norm", |dy| {
                    let (mut dx, mut dweight) = (vec![0f32; x.len()], vec![0f32; weight.len()]);
                    let inverse: Vec<f32> = x.par_chunks(weight.len()).map(|x| inverse_rms(x, self.eps)).collect();
                    norm_grad(x, &inverse, weight, dy, (&mut dx, false), (&mut dweight, false));
                    Ok((dx, dweight))
                })
            })
        })?;
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dweight, weight.shape(), weight.device())?)))
    }
}

/// `y = x / rms(x) * weight` for rows of `weight`'s length; `inverse` becomes `1 / rms(x)` of each row. With `add` = (a, sum), `x + a` takes
/// the place of `x`, and is written to `sum`.
pub(crate) fn norm(
    x: &[f32],
    add: Option<(&[f32], &mut [f32])>,
    weight: &[f32],
    eps: f32,
    y: &mut [f32],
    inverse: &mut [f32],
) {
    let d = weight.len();
    let chunk = d * ROWS;
    let outputs = y.par_chunks_mut(chunk).zip(inverse.par_chunks_mut(ROWS)).zip(x.par_chunks(chunk));
    match add {
        None => outputs.for_each(|((y, inverse), x)| {
            let rows = y.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(inverse);
            rows.for_each(|((y, x), inverse)| *inverse = norm_row(y, x, weight, eps));
        }),
        Some((a, sum)) => {
            outputs.zip(a.par_chunks(chunk)).zip(sum.par_chunks_mut(chunk)).for_each(
                |((((y, inverse), x), a), sum)| {
                    add_rows(sum, x, a);
                    let rows = y.chunks_exact_mut(d).zip(sum.chunks_exact(d)).zip(inverse);
                    rows.for_each(|((y, x), inverse)| *inverse = norm_row(y, x, weight, eps));
                },
            );
        }
    }
}

/// Gradients of [`norm`]: of `x`, added to `dx` where its flag says so, and of `weight`, likewise.
pub(crate) fn norm_grad(
    x: &[f32],
    inverse: &[f32],
    weight: &[f32],
    dy: &[f32],
    (dx, adds): (&mut [f32], bool),
    (dweight, keeps): (&mut [f32], bool),
) {
    let d = weight.len();
    let chunk = d * ROWS;
    let tasks = dx.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).zip(dy.par_chunks(chunk));
    let parts: Vec<Vec<f32>> = tasks
        .zip(inverse.par_chunks(ROWS))
        .map(|(((dx, x), dy), inverse)| {
            let (mut dweight, mut scratch) = (vec![0f32; d], vec![0f32; d]);
            let rows = dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)).zip(inverse);
            rows.for_each(|(((dx, x), dy), &inverse)| {
                row_grad((&mut *dx, adds), (&mut dweight, &mut scratch), x, inverse, weight, dy);
            });
            dweight
        })
        .collect();
    // In order, so that the sum does not depend on the threads.
    if !keeps {
        dweight.fill(0.0);
    }
    for part in parts {
        dweight.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
}

vectorized! {
    fn add_rows(sum: &mut [f32], x: &[f32], a: &[f32]) {
        sum.iter_mut().zip(x).zip(a).for_each(|((sum, x), a)| *sum = x + a);
    }
}

vectorized! {
    fn inverse_rms(x: &[f32], eps: f32) -> f32 {
        1.0 / (simd::dot(x, x) / x.len() as f32 + eps).sqrt()
    }
}

vectorized! {
    /// A row of [`norm`]; returns `1 / rms(x)`.
    pub(crate) fn norm_row(y: &mut [f32], x: &[f32], weight: &[f32], eps: f32) -> f32 {
        let inverse = inverse_rms(x, eps);
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * inverse * weight;
        }
        inverse
    }
}

vectorized! {
    /// With r = 1/rms: dx = r·(w·dy) - x·r^3/d·Σ(w·dy·x), dw += dy·x·r.
    pub(super) fn row_grad(
        dx: (&mut [f32], bool),
        sums: (&mut [f32], &mut [f32]),
        x: &[f32],
        inverse: f32,
        weight: &[f32],
        dy: &[f32],
    ) {
        let ((dx, adds), (dweight, scaled)) = (dx, sums);
        for ((scaled, &w), &dy) in scaled.iter_mut().zip(weight).zip(dy) {
            *scaled = w * dy;
        }
        let along = simd::dot(scaled, x) * inverse * inverse * inverse / x.len() as f32;
        for ((dw, &x), &dy) in dweight.iter_mut().zip(x).zip(dy) {
            *dw += dy * x * inverse;
        }
        let values = scaled.iter().zip(x).map(|(&scaled, &x)| scaled * inverse - x * along);
        match adds {
            true => dx.iter_mut().zip(values).for_each(|(dx, value)| *dx += value),
            false => dx.iter_mut().zip(values).for_each(|(dx, value)| *dx = value),
        }
    }
}

fn composed(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&inverse)?.broadcast_mul(weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_same_gradients, values};

    #[test]
    fn rms_norm_equals_composed() {
        for dims in [[3, 5, 40], [1, 130, 16]] {
            let inputs = [values(&dims, 1), values(&dims[2..], 2)];
            assert_same_gradients(&inputs, |x| rms_norm(&x[0], &x[1], 1e-6), |x| composed(&x[0], &x[1], 1e-6));
        }
    }
}
