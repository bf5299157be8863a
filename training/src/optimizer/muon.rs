//! Muon: momentum, made orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").
//!
//! Hidden matrices move by the nearest semi-orthogonal matrix to their Nesterov momentum, found by five Newton-Schulz iterations. The
//! step is scaled by `0.2 * sqrt(max(rows, columns))` (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that it is as large as AdamW's and
//! one learning rate serves both.

use anyhow::Result;
use candle_core::{Tensor, Var};

use crate::config::OptimizerConfig;

/// Coefficients of the quintic whose iteration drives singular values to about 1 (Jordan et al. 2024).
const QUINTIC: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;

/// Momentum of one parameter.
pub(super) struct Momentum(pub(super) Var);

impl Momentum {
    pub(super) fn zeros_like(parameter: &Var) -> Result<Momentum> {
        Ok(Momentum(Var::from_tensor(&parameter.zeros_like()?)?))
    }

    /// Updates `parameter`, a matrix, with `scale * gradient`.
    pub(super) fn update(
        &self,
        config: &OptimizerConfig,
        parameter: &Var,
        (gradient, scale): (&[f32], f64),
        lr: f64,
    ) -> Result<()> {
        let gradient = Tensor::from_slice(gradient, parameter.shape(), parameter.device())?;
        let gradient = if scale == 1.0 { gradient } else { (gradient * scale)? };
        let beta = config.momentum;
        let momentum = ((self.0.as_tensor() * beta)? + &gradient)?;
        let direction = orthogonal(&(gradient + (&momentum * beta)?)?)?;
        self.0.set(&momentum)?;
        let (rows, columns) = parameter.dims2()?;
        let size = 0.2 * (rows.max(columns) as f64).sqrt();
        let kept = (parameter.as_tensor() * (1.0 - lr * config.weight_decay))?;
        Ok(parameter.set(&(kept - (direction * (lr * size))?)?)?)
    }
}

/// About `U·Vᵀ` of the singular value decomposition `U·S·Vᵀ` of a matrix: its singular values become 0.7 to 1.2.
fn orthogonal(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    let is_tall = rows > columns;
    let wide = if is_tall { matrix.t()?.contiguous()? } else { matrix.contiguous()? };
    // Stays on the device: a host read for each matrix would stall a GPU.
    let inverse_norm = (wide.sqr()?.sum(1)?.sum_all()?.sqrt()? + 1e-7)?.recip()?;
    let mut x = wide.broadcast_mul(&inverse_norm)?;
    let (a, b, c) = QUINTIC;
    for _ in 0..ITERATIONS {
        let gram = x.matmul(&x.t()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + polynomial.matmul(&x)?)?;
    }
    Ok(if is_tall { x.t()?.contiguous()? } else { x })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn singular_values_come_near_one() {
        for shape in [(8, 24), (24, 8)] {
            let n = shape.0 * shape.1;
            let values: Vec<f32> = (0..n).map(|i| ((i * 7919 % 101) as f32 / 50.0 - 1.0) * 1e-3).collect();
            let matrix = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let x = orthogonal(&matrix).unwrap();
            let wide = if shape.0 > shape.1 { x.t().unwrap().contiguous().unwrap() } else { x };
            let gram = wide.matmul(&wide.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            for (i, row) in gram.iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((value - expected).abs() < 0.55, "{shape:?} ({i}, {j}): {value}");
                }
            }
        }
    }

    #[test]
    fn a_step_does_not_depend_on_the_gradients_scale() {
        let config = OptimizerConfig::for_tests();
        let step = |scale: f64| {
            let parameter = Var::zeros((4, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
            let gradient: Vec<f32> = (0..24).map(|i| (i as f32).sin()).collect();
            let momentum = Momentum::zeros_like(&parameter).unwrap();
            momentum.update(&config, &parameter, (&gradient, scale), 0.1).unwrap();
            parameter.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (small, large) = (step(1e-2), step(1e2));
        assert!(small.iter().zip(&large).all(|(a, b)| (a - b).abs() < 1e-3) && small.iter().any(|x| x.abs() > 1e-3));
    }
}
