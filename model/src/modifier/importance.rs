//! The importance loss: experts' summed probabilities are to be alike.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, needs_scores};
use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext, losses};

/// Options of the modifier `importance`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Importance {
    pub coefficient: f64,
}

impl Default for Importance {
    fn default() -> Self {
        Importance { coefficient: 0.01 }
    }
}

impl ModifierSpec for Importance {
    const NAME: &'static str = "importance";
    const PAPER: &'static str = "Shazeer et al. 2017, arXiv 1701.06538, eq. 6-7";

    fn build(&self, _model: &ModelConfig, _moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(self.clone()))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        needs_scores(moe, Self::NAME)
    }

    fn is_local(&self) -> bool {
        // The loss is a square of means.
        false
    }
}

impl Modifier for Importance {
    fn modify(&self, _x_ND: &Tensor, _plan: &mut Plan, aux: &mut Aux, _context: &RouterContext) -> Result<()> {
        let Some(scores) = &aux.scores else { return Ok(()) };
        let loss = losses::importance(scores, self.coefficient)?;
        aux.add(loss)
    }
}
