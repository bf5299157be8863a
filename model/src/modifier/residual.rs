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
    const PARAMETERS: &'static str = "D + 1";

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

#[cfg(test)]
mod tests {
    use super::super::tests::plan_of;
    use super::*;
    use candle_core::Device;

    #[test]
    fn two_weights_add_up_to_one() {
        let tensor = |values: &[f32], shape: (usize, usize)| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        let b_1 = Tensor::new(&[0.5f32], &Device::Cpu).unwrap();
        let modifier = Coefficients { w_1D: tensor(&[1.0, -1.0], (1, 2)), b_1 };
        let (x_ND, mut plan) = (tensor(&[2.0, 1.0, 0.0, 0.5], (2, 2)), plan_of(2, 1));
        modifier.modify(&x_ND, &mut plan, &mut Aux::default(), &RouterContext::default()).unwrap();
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let of_experts = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        let of_shared = plan.shared_weight_N.unwrap().to_vec1::<f32>().unwrap();
        assert!((of_experts[0] - sigmoid(1.5)).abs() < 1e-6 && (of_experts[1] - 0.5).abs() < 1e-6, "{of_experts:?}");
        assert!(of_experts.iter().zip(&of_shared).all(|(a, b)| (a + b - 1.0).abs() < 1e-6));
    }
}
