//! Token-choice top-k, dropless: the control that PL-MoE is compared with.
//!
//! Shazeer et al. 2017 (arXiv 1701.06538) and Fedus et al. 2022 (Switch, arXiv 2101.03961): a linear router, softmax in float32, the k
//! likeliest experts, no capacity (no token is dropped, so no token depends on another). Balance loss: Switch eq. 4; z-loss: Zoph et al.
//! 2022 (arXiv 2202.08906) eq. 5. Weights are gathered from the probabilities on the device, so the gradient reaches the router.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, Scores, losses, scores};

/// Options of the `token` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Token {
    /// Experts per token.
    pub top_k: usize,
    /// Divide the selected weights by their sum.
    pub normalize: bool,
    /// Coefficient of the balance loss.
    pub balance_loss: f64,
    /// Coefficient of the router z-loss.
    pub z_loss: f64,
}

impl Default for Token {
    fn default() -> Self {
        Token { top_k: 1, normalize: false, balance_loss: 0.01, z_loss: 0.001 }
    }
}

impl RouterSpec for Token {
    const NAME: &'static str = "token";
    const PAPER: &'static str = "Fedus et al. 2022, arXiv 2101.03961; dropless";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "D·E";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        Ok(Box::new(TokenRouter { w_ED: scores::weight(model, moe, 1.0, params)?, spec: self.clone() }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let expected = format!("between 1 and n_experts = {}", moe.n_experts);
        check((1..=moe.n_experts).contains(&self.top_k), "moe.router.top_k", self.top_k, &expected)
    }

    fn n_selected(&self) -> usize {
        self.top_k
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        model.d_model * moe.n_experts
    }
}

#[derive(Debug)]
pub(super) struct TokenRouter {
    pub(super) w_ED: Tensor,
    pub(super) spec: Token,
}

impl Router for TokenRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let Token { top_k, normalize, balance_loss, z_loss } = self.spec;
        let scores = Scores::new(scores::logits(x_ND, &self.w_ED)?, context)?;
        let mut plan = scores.likeliest(top_k)?;
        if let Some(weight_A) = plan.weight_A.as_mut().filter(|_| normalize) {
            let weight_NS = weight_A.reshape(((), top_k))?;
            *weight_A = weight_NS.broadcast_div(&weight_NS.sum_keepdim(1)?)?.flatten_all()?;
        }
        let mut aux = Aux::default();
        let share_E = context.shares(&plan.expert_A, scores.probs_NE.dim(1)?)?;
        aux.add(losses::balance(&scores.probs_NE, &share_E, balance_loss)?)?;
        aux.add(losses::z(&scores, z_loss)?)?;
        aux.scores = Some(scores);
        Ok((plan, aux))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn four_tokens_four_experts() {
        // The router's rows are unit vectors: a token's logits are its own coordinates.
        let w_ED = Tensor::eye(4, DType::F32, &Device::Cpu).unwrap();
        let spec = Token { top_k: 2, normalize: true, ..Token::default() };
        let x_ND =
            Tensor::new(&[[2f32, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 5.0, 0.0, 5.0], [0.0; 4]], &Device::Cpu);
        let (plan, aux) = TokenRouter { w_ED, spec }.plan(&x_ND.unwrap(), &RouterContext::default()).unwrap();
        assert_eq!(plan.token_A, [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(plan.expert_A, [0, 1, 2, 0, 1, 3, 0, 1]);
        let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        for (got, expected) in weight_A.iter().zip([sigmoid(1.0), sigmoid(-1.0), sigmoid(3.0), sigmoid(-3.0), 0.5, 0.5])
        {
            assert!((got - expected).abs() < 1e-6);
        }
        assert!(aux.loss.unwrap().to_scalar::<f32>().unwrap() > 0.0);
    }
}
