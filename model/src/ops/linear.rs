//! The linear map `x·wᵀ` with its two gradients, in bfloat16 products where a training run asked for them.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::simd::Mat;
use super::{is_fused, matmul, product, slice, with_values};

/// `x·wᵀ`. Shapes: `x_ND`, `w_FD` -> `NF`; `w` has one row per output, as checkpoints store it.
pub fn linear(x_ND: &Tensor, w_FD: &Tensor) -> Result<Tensor> {
    if !is_fused(x_ND) {
        return product(x_ND, &w_FD.t()?);
    }
    x_ND.contiguous()?.apply_op2(&w_FD.contiguous()?, Linear)
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, d), (f, d2)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        if d != d2 {
            candle_core::bail!("linear: {d} inputs for a weight of {d2}");
        }
        let (x, w) = (slice(s1, l1, "linear")?, slice(s2, l2, "linear")?);
        let mut y = vec![0f32; n * f];
        linear_forward(x, w, (n, d), (&mut y, false));
        Ok((CpuStorage::F32(y), Shape::from((n, f))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((n, d), f) = (x.dims2()?, w.dim(0)?);
        let (dx, dw) = with_values(x, "linear", |x| {
            with_values(w, "linear", |w| {
                with_values(dy, "linear", |dy| {
                    let (mut dx, mut dw) = (vec![0f32; n * d], vec![0f32; f * d]);
                    linear_grad_input(dy, w, (n, f), (&mut dx, false));
                    linear_grad_weight(x, dy, (n, f), (&mut dw, false));
                    Ok((dx, dw))
                })
            })
        })?;
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, w.shape(), w.device())?)))
    }
}

/// `y = x·wᵀ`, added to what `y` holds if its flag says so. Shapes: `x` `(n, d)`, `w` `FD`, `y` `NF`.
pub(crate) fn linear_forward(x: &[f32], w: &[f32], (n, d): (usize, usize), (y, keep): (&mut [f32], bool)) {
    let f = w.len() / d;
    matmul::matmul(y, f, (n, f, d), keep, Mat::rows(x, d), Mat::rows(w, d).t());
}

/// `dx = dy·w`. Shapes: `dy` `(n, f)`, `w` `FD`, `dx` `ND`.
pub(crate) fn linear_grad_input(dy: &[f32], w: &[f32], (n, f): (usize, usize), (dx, keep): (&mut [f32], bool)) {
    let d = w.len() / f;
    matmul::matmul(dx, d, (n, d, f), keep, Mat::rows(dy, f), Mat::rows(w, d));
}

/// `dw = dyᵀ·x`. Shapes: `x` `ND`, `dy` `(n, f)`, `dw` `FD`.
pub(crate) fn linear_grad_weight(x: &[f32], dy: &[f32], (n, f): (usize, usize), (dw, keep): (&mut [f32], bool)) {
    let d = x.len() / n;
    matmul::matmul(dw, d, (f, d, n), keep, Mat::rows(dy, f).t(), Mat::rows(x, d));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_same_gradients, values};

    #[test]
    fn linear_equals_composed() {
        let inputs = [values(&[70, 24], 1), values(&[10, 24], 2)];
        assert_same_gradients(&inputs, |x| linear(&x[0], &x[1]), |x| x[0].matmul(&x[1].t()?));
    }
}
