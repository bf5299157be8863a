//! The balance loss of Switch, for routers that have none of their own or another.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, needs_scores};
use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext, losses};

/// Options of the modifier `balance`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    pub coefficient: f64,
}

impl Default for Balance {
    fn default() -> Self {
        Balance { coefficient: 0.01 }
    }
}

impl ModifierSpec for Balance {
    const NAME: &'static str = "balance";
    const PAPER: &'static str = "Fedus et al. 2022, arXiv 2101.03961, eq. 4";

    fn build(&self, _model: &ModelConfig, _moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(self.clone()))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        needs_scores(moe, Self::NAME)
    }
}

impl Modifier for Balance {
    fn modify(&self, _x_ND: &Tensor, plan: &mut Plan, aux: &mut Aux, context: &RouterContext) -> Result<()> {
        let Some(scores) = &aux.scores else { return Ok(()) };
        let share_E = context.shares(&plan.expert_A, scores.probs_NE.dim(1)?)?;
        let loss = losses::balance(&scores.probs_NE, &share_E, self.coefficient)?;
        aux.add(loss)
    }
}
