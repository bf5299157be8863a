//! Muon for hidden matrices: see [`muon_step`].

use anyhow::Result;
use candle_core::Var;
use multicoder_model::ops::{MuonStep, muon_step};

use crate::config::OptimizerConfig;

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
        let step = MuonStep { lr, momentum: config.momentum, weight_decay: config.weight_decay };
        Ok(muon_step(parameter, gradient, scale, &self.0, &step)?)
    }
}
