//! Non-linearities of the feed-forward network: `relu(x)^2` and `silu(gate) * up`.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::simd::{self, vectorized};
use super::{is_fused, slice, with_values};

/// Elements that one task handles.
const CHUNK: usize = 16 * 1024;

/// `relu(x)^2`, elementwise (So et al. 2021, arXiv 2109.08668).
pub fn relu2(x: &Tensor) -> Result<Tensor> {
    if !is_fused(x) {
        return x.relu()?.sqr();
    }
    x.contiguous()?.apply_op1(Relu2)
}

/// `silu(gate) * up`, elementwise (Shazeer 2020, arXiv 2002.05202).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !is_fused(gate) {
        return gate.silu()?.mul(up);
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu)
}

struct Relu2;

impl CustomOp1 for Relu2 {
    fn name(&self) -> &'static str {
        "relu2"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(storage, layout, "relu2")?;
        let mut y = vec![0f32; x.len()];
        relu2_forward(x, &mut y);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values(x, "relu2", |x| {
            with_values(dy, "relu2", |dy| {
                let mut dx = dy.to_vec();
                relu2_backward(x, &mut dx);
                Ok(dx)
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(s1, l1, "swiglu")?, slice(s2, l2, "swiglu")?);
        let mut y = vec![0f32; gate.len()];
        swiglu_forward(gate, up, &mut y);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dgate, dup) = with_values(gate, "swiglu", |gate| {
            with_values(up, "swiglu", |up| {
                with_values(dy, "swiglu", |dy| {
                    let (mut dgate, mut dup) = (vec![0f32; dy.len()], dy.to_vec());
                    swiglu_backward(gate, up, &mut dup, &mut dgate);
                    Ok((dgate, dup))
                })
            })
        })?;
        let dgate = Tensor::from_vec(dgate, gate.shape(), gate.device())?;
        Ok((Some(dgate), Some(Tensor::from_vec(dup, up.shape(), up.device())?)))
    }
}

pub(crate) fn relu2_forward(x: &[f32], y: &mut [f32]) {
    map_chunks(y, x, x, |y, x, _| relu2_chunk(y, x));
}

vectorized! {
    fn relu2_chunk(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let positive = if x > 0.0 { x } else { 0.0 };
            *y = positive * positive;
        }
    }
}

/// Turns the gradient of the result into that of `x`.
pub(crate) fn relu2_backward(x: &[f32], dy: &mut [f32]) {
    map_chunks(dy, x, x, |dy, x, _| relu2_grad(dy, x));
}

vectorized! {
    fn relu2_grad(dy: &mut [f32], x: &[f32]) {
        for (dy, &x) in dy.iter_mut().zip(x) {
            *dy = if x > 0.0 { 2.0 * x * *dy } else { 0.0 };
        }
    }
}

pub(crate) fn swiglu_forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    map_chunks(y, gate, up, swiglu_chunk);
}

vectorized! {
    fn swiglu_chunk(y: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate / (1.0 + simd::exp(-gate)) * up;
        }
    }
}

/// Turns the gradient of the result into that of `up`, and writes that of `gate`.
pub(crate) fn swiglu_backward(gate: &[f32], up: &[f32], dy: &mut [f32], dgate: &mut [f32]) {
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    dy.par_chunks_mut(CHUNK).zip(dgate.par_chunks_mut(CHUNK)).zip(inputs).for_each(|((dy, dgate), (gate, up))| {
        swiglu_grad(dy, dgate, gate, up);
    });
}

vectorized! {
    fn swiglu_grad(dy: &mut [f32], dgate: &mut [f32], gate: &[f32], up: &[f32]) {
        for (((dy, dgate), &gate), &up) in dy.iter_mut().zip(dgate).zip(gate).zip(up) {
            let sigmoid = 1.0 / (1.0 + simd::exp(-gate));
            *dgate = *dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
            *dy *= gate * sigmoid;
        }
    }
}

/// Runs `f` over equal chunks of three slices in parallel.
fn map_chunks(y: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(&mut [f32], &[f32], &[f32]) + Sync) {
    if y.len() <= CHUNK {
        return f(y, a, b);
    }
    let chunks = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK));
    chunks.for_each(|((y, a), b)| f(y, a, b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_same_gradients, values};

    #[test]
    fn relu2_equals_composed() {
        assert_same_gradients(&[values(&[5, 7], 1)], |x| relu2(&x[0]), |x| x[0].relu()?.sqr());
    }

    #[test]
    fn swiglu_equals_composed() {
        let inputs = [(values(&[9, 33], 2) * 6.0).unwrap(), values(&[9, 33], 3)];
        assert_same_gradients(&inputs, |x| swiglu(&x[0], &x[1]), |x| x[0].silu()?.mul(&x[1]));
    }
}
