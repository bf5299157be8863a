//! AdamW in place: three passes over memory and no temporaries (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::{simd, slice};

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

/// Updates `param` and its moments `m` and `v` (all float32, of one shape) with `grad`.
pub fn adamw_step(param: &Var, grad: &Tensor, m: &Var, v: &Var, step: &AdamWStep) -> Result<()> {
    let correction = |beta: f64| 1.0 - beta.powi(step.step.min(i32::MAX as u64) as i32);
    let (by_m, by_v) = (1.0 / correction(step.beta1), 1.0 / correction(step.beta2));
    if !param.device().is_cpu() {
        return composed(param, grad, m, v, step, (by_m, by_v));
    }
    let grad = grad.contiguous()?;
    m.inplace_op2(&grad, &Average { beta: step.beta1 as f32, squared: false })?;
    v.inplace_op2(&grad, &Average { beta: step.beta2 as f32, squared: true })?;
    let update = Update {
        keep: (1.0 - step.lr * step.weight_decay) as f32,
        lr: (step.lr * by_m) as f32,
        by_v: by_v as f32,
        eps: step.eps as f32,
    };
    param.inplace_op3(m, v, &update)
}

/// `a = beta * a + (1 - beta) * grad` or `grad^2`.
struct Average {
    beta: f32,
    squared: bool,
}

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "adamw_average"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (average, grad) = (slice_mut(s1, l1)?, slice(s2, l2, "adamw")?);
        let (beta, rest) = (self.beta, 1.0 - self.beta);
        average.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).for_each(|(average, grad)| {
            simd::vectorized(|| {
                for (a, &g) in average.iter_mut().zip(grad) {
                    *a = beta * *a + rest * if self.squared { g * g } else { g };
                }
            });
        });
        Ok(())
    }
}

struct Update {
    keep: f32,
    lr: f32,
    by_v: f32,
    eps: f32,
}

impl InplaceOp3 for Update {
    fn name(&self) -> &'static str {
        "adamw_update"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        let param = slice_mut(s1, l1)?;
        let (m, v) = (slice(s2, l2, "adamw")?, slice(s3, l3, "adamw")?);
        param.par_chunks_mut(CHUNK).zip(m.par_chunks(CHUNK)).zip(v.par_chunks(CHUNK)).for_each(|((param, m), v)| {
            simd::vectorized(|| {
                for ((p, &m), &v) in param.iter_mut().zip(m).zip(v) {
                    *p = *p * self.keep - self.lr * m / ((v * self.by_v).sqrt() + self.eps);
                }
            });
        });
        Ok(())
    }
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("adamw: expected a contiguous tensor") };
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => bail!("adamw: expected float32"),
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
            let grad = values(&[9, 7], step as u32).t().unwrap();
            let step = AdamWStep { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
            adamw_step(&p1, &grad, &m1, &v1, &step).unwrap();
            let correction = |beta: f64| 1.0 / (1.0 - beta.powi(step.step as i32));
            composed(&p2, &grad, &m2, &v2, &step, (correction(0.9), correction(0.95))).unwrap();
        }
        for (a, b) in [(&p1, &p2), (&m1, &m2), (&v1, &v2)] {
            assert_close(a.as_tensor(), b.as_tensor(), "after five steps");
        }
    }
}
