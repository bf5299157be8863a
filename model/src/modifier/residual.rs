//! Residual experts: every token meets the shared expert and a chosen one, and two weights that add up to one share it out.
//!
//! Rajbhandari et al. 2022 (DeepSpeed-MoE, arXiv 2201.05596, §4.1): `y = c_0 MoE(x) + c_1 MLP(x)`, `c = softmax(W x + b)`. A softmax of two
//! is the sigmoid of their difference, so one row is kept of `W`.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, needs_shared};
use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::params::{Init, Params};
use crate::router::scores::sigmoid;
use crate::router::{Aux, Plan, RouterContext};

/// No options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residual {}

impl ModifierSpec for Residual {
    const NAME: &'static str = "residual";
    const PAPER: &'static str = "Rajbhandari et al. 2022, arXiv 2201.05596, §4.1";

    fn build(&self, model: &ModelConfig, _moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Modifier>> {
        let w_1D = params.get("modifiers.residual.weight", &[1, model.d_model], Init::Zero)?;
        let b_1 = params.get("modifiers.residual.bias", &[1], Init::Zero)?;
        Ok(Box::new(Coefficients { w_1D, b_1 }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        needs_shared(moe, Self::NAME)
    }

    fn reads_tokens(&self) -> bool {
        true
    }

    fn weighs_shared(&self) -> bool {
        true
    }

    fn n_parameters(&self, model: &ModelConfig) -> usize {
        model.d_model + 1
    }
}

#[derive(Debug)]
struct Coefficients {
    w_1D: Tensor,
    b_1: Tensor,
}

impl Modifier for Coefficients {
    fn modify(&self, x_ND: &Tensor, plan: &mut Plan, _aux: &mut Aux, _context: &RouterContext) -> Result<()> {
        let logit_N = x_ND.broadcast_mul(&self.w_1D)?.sum(D::Minus1)?.broadcast_add(&self.b_1)?;
        plan.share_out(&sigmoid(&logit_N)?)
    }
}
