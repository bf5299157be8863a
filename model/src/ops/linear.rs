//! The linear map `x·wᵀ` with its two gradients, in bfloat16 products where a training run asked for them.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::simd::Mat;
use super::{mixed, slice, with_values};

/// `x·wᵀ`. Shapes: `x_ND`, `w_FD` -> `NF`; `w` has one row per output, as checkpoints store it.
pub fn linear(x_ND: &Tensor, w_FD: &Tensor) -> Result<Tensor> {
    if !x_ND.device().is_cpu() {
        return x_ND.matmul(&w_FD.t()?);
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
        mixed::matmul(&mut y, f, (n, f, d), false, Mat::rows(x, d), Mat::rows(w, d).t());
        Ok((CpuStorage::F32(y), Shape::from((n, f))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((n, d), f) = (x.dims2()?, w.dim(0)?);
        let (dx, dw) = with_values(x, "linear", |x| {
            with_values(w, "linear", |w| {
                with_values(dy, "linear", |dy| {
                    let (mut dx, mut dw) = (vec![0f32; n * d], vec![0f32; f * d]);
                    let dy = Mat::rows(dy, f);
                    mixed::matmul(&mut dx, d, (n, d, f), false, dy, Mat::rows(w, d));
                    mixed::matmul(&mut dw, d, (f, d, n), false, dy.t(), Mat::rows(x, d));
                    Ok((dx, dw))
                })
            })
        })?;
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, w.shape(), w.device())?)))
    }
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
