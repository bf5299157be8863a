//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) for everything that is no hidden matrix.

use anyhow::Result;
use candle_core::Var;
use multicoder_model::ops::{AdamWStep, adamw_step};

use crate::config::OptimizerConfig;

/// First and second moment of one parameter.
pub(super) struct Moments {
    pub(super) first: Var,
    pub(super) second: Var,
}

impl Moments {
    pub(super) fn zeros_like(parameter: &Var) -> Result<Moments> {
        let zeros = || parameter.zeros_like().and_then(|zeros| Var::from_tensor(&zeros));
        Ok(Moments { first: zeros()?, second: zeros()? })
    }

    /// Updates `parameter` with `scale * gradient`; `n_steps` counts its own steps, this one included.
    pub(super) fn update(
        &self,
        config: &OptimizerConfig,
        parameter: &Var,
        (gradient, scale): (&[f32], f64),
        n_steps: u64,
        lr: f64,
    ) -> Result<()> {
        // Matrices decay; norms, biases and other 1-D parameters do not.
        let weight_decay = if parameter.rank() >= 2 { config.weight_decay } else { 0.0 };
        let OptimizerConfig { beta1, beta2, eps, .. } = *config;
        let step = AdamWStep { lr, beta1, beta2, eps, weight_decay, step: n_steps };
        Ok(adamw_step(parameter, gradient, scale, &self.first, &self.second, &step)?)
    }
}
