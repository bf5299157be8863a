//! Muon: momentum, made orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").
//!
//! Hidden matrices move by the nearest semi-orthogonal matrix to their Nesterov momentum, found by five Newton-Schulz iterations. The
//! step is scaled by `0.2 * sqrt(max(rows, columns))` (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that it is as large as AdamW's and
//! one learning rate serves both. On the CPU one matrix is one thread's: a model has more of them than there are cores.

use candle_core::{Result, Tensor, Var, bail};

use super::matmul::{Part, Right};
use super::simd::{self, Mat, Rows, vectorized};
use super::{is_fused, with_values_mut};

/// Coefficients of the quintic whose iteration drives singular values to about 1 (Jordan et al. 2024).
const QUINTIC: (f32, f32, f32) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;
/// Added to the norm that a matrix is divided by.
const EPS: f32 = 1e-7;

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct MuonStep {
    pub lr: f64,
    /// Of the running sum of gradients.
    pub momentum: f64,
    /// Decoupled: the parameter shrinks by `lr * weight_decay`.
    pub weight_decay: f64,
}

/// Updates `param`, a matrix, and its `momentum` (float32, of one shape) with `scale * grad`. Products are of bfloat16 factors where
/// [`super::set_bf16_products`] said so.
///
/// # Errors
/// A gradient of another size; tensors that are no contiguous matrices.
pub fn muon_step(param: &Var, grad: &[f32], scale: f64, momentum: &Var, step: &MuonStep) -> Result<()> {
    let (rows, columns) = param.dims2()?;
    if grad.len() != rows * columns {
        bail!("muon: a gradient of {} values, expected {}", grad.len(), rows * columns);
    }
    let size = step.lr * 0.2 * (rows.max(columns) as f64).sqrt();
    if !is_fused(param) {
        let grad = (Tensor::from_slice(grad, param.shape(), param.device())? * scale)?;
        return composed(param, &grad, momentum, step, size);
    }
    let (scale, beta) = (scale as f32, step.momentum as f32);
    let direction = with_values_mut(momentum, "muon", |momentum| {
        let mut direction = vec![0f32; grad.len()];
        move_momentum(&mut direction, momentum, grad, scale, beta);
        Ok(orthogonal(direction, rows, columns))
    })?;
    let (keep, size) = ((1.0 - step.lr * step.weight_decay) as f32, size as f32);
    with_values_mut(param, "muon", |param| {
        blend(param, keep, &direction, -size);
        Ok(())
    })
}

vectorized! {
    /// Nesterov's momentum: `momentum = beta · momentum + scale · grad`, and the direction one step ahead of it.
    fn move_momentum(direction: &mut [f32], momentum: &mut [f32], grad: &[f32], scale: f32, beta: f32) {
        for ((direction, momentum), &grad) in direction.iter_mut().zip(momentum).zip(grad) {
            *momentum = beta * *momentum + scale * grad;
            *direction = scale * grad + beta * *momentum;
        }
    }
}

vectorized! {
    /// `x = keep · x + size · y`.
    fn blend(x: &mut [f32], keep: f32, y: &[f32], size: f32) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x = keep * *x + size * y);
    }
}

/// About `U·Vᵀ` of the singular value decomposition `U·S·Vᵀ` of a matrix: its singular values become 0.7 to 1.2.
fn orthogonal(matrix: Vec<f32>, rows: usize, columns: usize) -> Vec<f32> {
    if rows > columns {
        return turned(&orthogonal(turned(&matrix, rows, columns), columns, rows), columns, rows);
    }
    let (r, c) = (rows, columns);
    let mut x = matrix;
    let inverse_norm = 1.0 / (simd::dot_row(&x, &x).sqrt() + EPS);
    x.iter_mut().for_each(|x| *x *= inverse_norm);
    let (mut gram, mut polynomial, mut next) = (vec![0f32; r * r], vec![0f32; r * r], vec![0f32; r * c]);
    let (first, second, third) = QUINTIC;
    for _ in 0..ITERATIONS {
        multiply(&mut gram, Mat::rows(&x, c), Mat::rows(&x, c).t(), (r, r, c), false);
        multiply(&mut polynomial, Mat::rows(&gram, r), Mat::rows(&gram, r), (r, r, r), false);
        blend(&mut polynomial, third, &gram, second);
        next.iter_mut().zip(&x).for_each(|(next, x)| *next = first * x);
        multiply(&mut next, Mat::rows(&polynomial, r), Mat::rows(&x, c), (r, c, r), true);
        std::mem::swap(&mut x, &mut next);
    }
    x
}

/// `dst = dst * keep + a · b`, sizes (m, n, k), on this thread.
fn multiply(dst: &mut [f32], a: Mat, b: Mat, (m, n, k): (usize, usize, usize), keep: bool) {
    let part = Part { inner: 0..k, first_col: 0 };
    // SAFETY: `dst` is borrowed exclusively.
    unsafe { Right::new(b, (m, n, k)).product(Rows::new(dst, n, (m, n)), a, part, keep) };
}

fn turned(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| matrix[i % rows * columns + i / rows]).collect()
}

fn composed(param: &Var, grad: &Tensor, momentum: &Var, step: &MuonStep, size: f64) -> Result<()> {
    let sum = ((momentum.as_tensor() * step.momentum)? + grad)?;
    let direction = composed_orthogonal(&(grad + (&sum * step.momentum)?)?)?;
    momentum.set(&sum)?;
    let kept = (param.as_tensor() * (1.0 - step.lr * step.weight_decay))?;
    param.set(&(kept - (direction * size)?)?)
}

fn composed_orthogonal(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    let is_tall = rows > columns;
    let wide = if is_tall { matrix.t()?.contiguous()? } else { matrix.contiguous()? };
    // Stays on the device: a host read for each matrix would stall a GPU.
    let inverse_norm = (wide.sqr()?.sum(1)?.sum_all()?.sqrt()? + f64::from(EPS))?.recip()?;
    let mut x = wide.broadcast_mul(&inverse_norm)?;
    let (a, b, c) = (f64::from(QUINTIC.0), f64::from(QUINTIC.1), f64::from(QUINTIC.2));
    for _ in 0..ITERATIONS {
        let gram = x.matmul(&x.t()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + polynomial.matmul(&x)?)?;
    }
    if is_tall { x.t()?.contiguous() } else { Ok(x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, values};
    use candle_core::Device;

    const STEP: MuonStep = MuonStep { lr: 0.1, momentum: 0.95, weight_decay: 0.1 };

    #[test]
    fn muon_equals_composed() {
        for shape in [[8, 24], [24, 8], [70, 130]] {
            let new = || {
                let param = Var::from_tensor(&values(&shape, 1)).unwrap();
                (param, Var::from_tensor(&values(&shape, 2).zeros_like().unwrap()).unwrap())
            };
            let ((p1, m1), (p2, m2)) = (new(), new());
            for step in 1..=3 {
                let grad = values(&shape, step);
                muon_step(&p1, &grad.flatten_all().unwrap().to_vec1().unwrap(), 0.5, &m1, &STEP).unwrap();
                let size = STEP.lr * 0.2 * (shape[0].max(shape[1]) as f64).sqrt();
                composed(&p2, &(grad * 0.5).unwrap(), &m2, &STEP, size).unwrap();
            }
            assert_close(m1.as_tensor(), m2.as_tensor(), "momentum");
            // Each iteration multiplies what rounding does to small singular values by up to 3.4.
            let difference = (p1.as_tensor() - p2.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-3, "{shape:?}: {difference}");
        }
    }

    #[test]
    fn singular_values_come_near_one() {
        for (rows, columns) in [(8, 24), (24, 8)] {
            let matrix: Vec<f32> = (0..rows * columns).map(|i| ((i * 7919 % 101) as f32 / 50.0 - 1.0) * 1e-3).collect();
            let x = orthogonal(matrix, rows, columns);
            let x = Tensor::from_vec(x, (rows, columns), &Device::Cpu).unwrap();
            let wide = if rows > columns { x.t().unwrap().contiguous().unwrap() } else { x };
            let gram = wide.matmul(&wide.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            for (i, row) in gram.iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((value - expected).abs() < 0.55, "{rows}x{columns} ({i}, {j}): {value}");
                }
            }
        }
    }

    #[test]
    fn a_step_does_not_depend_on_the_gradients_scale() {
        let step = |scale: f64| {
            let param = Var::zeros((4, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
            let momentum = Var::from_tensor(&param.zeros_like().unwrap()).unwrap();
            let grad: Vec<f32> = (0..24).map(|i| (i as f32).sin()).collect();
            muon_step(&param, &grad, scale, &momentum, &STEP).unwrap();
            param.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (small, large) = (step(1e-2), step(1e2));
        assert!(small.iter().zip(&large).all(|(a, b)| (a - b).abs() < 1e-3) && small.iter().any(|x| x.abs() > 1e-3));
    }
}
