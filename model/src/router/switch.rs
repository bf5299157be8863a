//! Switch: one expert a token, weighted by its probability, from a router that begins small and reads its tokens with noise.
//!
//! Fedus, Zoph and Shazeer 2022 (arXiv 2101.03961): §2.2 top-1 and the balance loss, §2.4 float32 and a small initial scale, and the
//! jitter of their released code (each input times `U(1 - jitter, 1 + jitter)` while training). Capacity is the modifier `capacity`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::token::{Token, TokenRouter};
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, scores};

/// Options of the `switch` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Switch {
    /// Coefficient of the balance loss.
    pub balance_loss: f64,
    /// Half the width of the factor on what the router reads while training.
    pub jitter: f64,
    /// The router's first weights, in units of those that keep variances.
    pub init_scale: f64,
}

impl Default for Switch {
    fn default() -> Self {
        Switch { balance_loss: 0.01, jitter: 0.01, init_scale: 0.1 }
    }
}

impl RouterSpec for Switch {
    const NAME: &'static str = "switch";
    const PAPER: &'static str = "Fedus et al. 2022, arXiv 2101.03961";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "D·E";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let w_ED = scores::weight(model, moe, self.init_scale, params)?;
        let spec = Token { top_k: 1, normalize: false, balance_loss: self.balance_loss, z_loss: 0.0 };
        Ok(Box::new(SwitchRouter { jitter: self.jitter, router: TokenRouter { w_ED, spec } }))
    }

    fn validate(&self, _model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        check((0.0..1.0).contains(&self.jitter), "moe.router.jitter", self.jitter, "0 or more, below 1")?;
        check(self.init_scale >= 0.0, "moe.router.init_scale", self.init_scale, "0 or more")
    }

    fn n_selected(&self) -> usize {
        1
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        model.d_model * moe.n_experts
    }
}

#[derive(Debug)]
struct SwitchRouter {
    jitter: f64,
    router: TokenRouter,
}

impl Router for SwitchRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let Some(draw) = context.draw.filter(|_| self.jitter > 0.0) else { return self.router.plan(x_ND, context) };
        let (n, d) = x_ND.dims2()?;
        let stream = draw.stream("switch jitter");
        let factor = |i: usize| 1.0 + self.jitter as f32 * (2.0 * stream.token(i / d, i % d) - 1.0);
        let factor_ND = Tensor::from_vec((0..n * d).map(factor).collect(), (n, d), x_ND.device())?;
        self.router.plan(&x_ND.mul(&factor_ND)?, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{Draw, StepKey};
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn the_likeliest_expert_keeps_its_probability_and_jitter_is_small_and_for_training() {
        let w_ED = Tensor::eye(2, DType::F32, &Device::Cpu).unwrap();
        let spec = Token { top_k: 1, normalize: false, balance_loss: 0.0, z_loss: 0.0 };
        let router = SwitchRouter { jitter: 0.01, router: TokenRouter { w_ED, spec } };
        let x_ND = Tensor::new(&[[2f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let weights = |draw| {
            let (plan, _) = router.plan(&x_ND, &RouterContext { draw, ..RouterContext::default() }).unwrap();
            assert_eq!(plan.expert_A, [0, 1]);
            plan.weight_A.unwrap().to_vec1::<f32>().unwrap()
        };
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let measured = weights(None);
        assert!((measured[0] - sigmoid(2.0)).abs() < 1e-6 && (measured[1] - sigmoid(1.0)).abs() < 1e-6, "{measured:?}");
        let draw = Draw::new(StepKey { seed: 1, step: 1 }, &[1, 2], 2);
        let trained = weights(Some(draw.layer(0)));
        assert!(trained != measured && trained[0] > sigmoid(1.98) && trained[0] < sigmoid(2.02), "{trained:?}");
    }
}
