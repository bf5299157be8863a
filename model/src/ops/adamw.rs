//! AdamW in place: one pass over memory and no temporaries (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

use candle_core::{Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::simd::vectorized;
use super::{is_fused, with_values_mut};

const CHUNK: usize = 64 * 1024;

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decoupled: the parameter shrinks by `lr * weight_decay`.
    pub weight_decay: f64,
    /// The parameter's own count of steps, this one included (from 1), for the bias correction.
    pub step: u64,
}

/// Updates `param` and its moments `m` and `v` (all float32, of one shape) with `scale * grad`.
///
/// # Errors
/// A gradient of another size; tensors that are not contiguous.
pub fn adamw_step(param: &Var, grad: &[f32], scale: f64, m: &Var, v: &Var, step: &AdamWStep) -> Result<()> {
    let (got, expected) = (grad.len(), param.elem_count());
    if got != expected {
        bail!("adamw: a gradient of {got} values, expected {expected}");
    }
    let correction = |beta: f64| 1.0 - beta.powi(step.step.min(i32::MAX as u64) as i32);
    let (by_m, by_v) = (1.0 / correction(step.beta1), 1.0 / correction(step.beta2));
    if !is_fused(param) {
        let grad = (Tensor::from_slice(grad, param.shape(), param.device())? * scale)?;
        return composed(param, &grad, m, v, step, (by_m, by_v));
    }
    let update = Update {
        scale: scale as f32,
        beta1: step.beta1 as f32,
        beta2: step.beta2 as f32,
        keep: (1.0 - step.lr * step.weight_decay) as f32,
        lr: (step.lr * by_m) as f32,
        by_v: by_v as f32,
        eps: step.eps as f32,
    };
    with_values_mut(m, "adamw", |m| {
        with_values_mut(v, "adamw", |v| with_values_mut(param, "adamw", |param| update.run(param, grad, m, v)))
    })
}

struct Update {
    scale: f32,
    beta1: f32,
    beta2: f32,
    keep: f32,
    lr: f32,
    by_v: f32,
    eps: f32,
}

impl Update {
    fn run(&self, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) -> Result<()> {
        let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        let chunks = param.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(moments);
        chunks.for_each(|((param, grad), (m, v))| run_chunk(self, param, grad, m, v));
        Ok(())
    }
}

vectorized! {
    fn run_chunk(update: &Update, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        let Update { scale, beta1, beta2, keep, lr, by_v, eps } = *update;
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            let g = g * scale;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * (g * g);
            *p = *p * keep - lr * *m / ((*v * by_v).sqrt() + eps);
        }
    }
}

fn composed(param: &Var, grad: &Tensor, m: &Var, v: &Var, step: &AdamWStep, (by_m, by_v): (f64, f64)) -> Result<()> {
    m.set(&((m.as_tensor() * step.beta1)? + (grad * (1.0 - step.beta1))?)?)?;
    v.set(&((v.as_tensor() * step.beta2)? + (grad.sqr()? * (1.0 - step.beta2))?)?)?;
    let update = (m.as_tensor() * by_m)?.div(&((v.as_tensor() * by_v)?.sqrt()? + step.eps)?)?;
    param.set(&((param.as_tensor() * (1.0 - step.lr * step.weight_decay))? - (update * step.lr)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, values};

    #[test]
    fn adamw_equals_composed() {
        let new = || {
            let var = |seed| Var::from_tensor(&values(&[7, 9], seed)).unwrap();
            let zero = || Var::from_tensor(&values(&[7, 9], 1).zeros_like().unwrap()).unwrap();
            (var(1), zero(), zero())
        };
        let ((p1, m1, v1), (p2, m2, v2)) = (new(), new());
        for step in 1..=5 {
            let grad = values(&[7, 9], step as u32);
            let flat = (&grad * 2.0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let step = AdamWStep { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
            adamw_step(&p1, &flat, 0.5, &m1, &v1, &step).unwrap();
            let correction = |beta: f64| 1.0 / (1.0 - beta.powi(step.step as i32));
            composed(&p2, &grad, &m2, &v2, &step, (correction(0.9), correction(0.95))).unwrap();
        }
        for (a, b) in [(&p1, &p2), (&m1, &m2), (&v1, &v2)] {
            assert_close(a.as_tensor(), b.as_tensor(), "after five steps");
        }
    }
}
