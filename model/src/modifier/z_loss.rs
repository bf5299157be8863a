//! The router z-loss: large logits, whose rounding moves tokens to other experts, cost something.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, needs_scores};
use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext, losses};

/// Options of the modifier `z_loss`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ZLoss {
    pub coefficient: f64,
}

impl Default for ZLoss {
    fn default() -> Self {
        ZLoss { coefficient: 0.001 }
    }
}

impl ModifierSpec for ZLoss {
    const NAME: &'static str = "z_loss";
    const PAPER: &'static str = "Zoph et al. 2022, arXiv 2202.08906, eq. 5";

    fn build(&self, _model: &ModelConfig, _moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(self.clone()))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        needs_scores(moe, Self::NAME)
    }
}

impl Modifier for ZLoss {
    fn modify(&self, _x_ND: &Tensor, _plan: &mut Plan, aux: &mut Aux, _context: &RouterContext) -> Result<()> {
        let Some(scores) = &aux.scores else { return Ok(()) };
        let loss = losses::z(scores, self.coefficient)?;
        aux.add(loss)
    }
}
