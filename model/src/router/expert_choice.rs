//! Expert choice: each expert takes the tokens that want it most, all experts as many. Perfect balance without a loss.
//!
//! Zhou et al. 2022 (arXiv 2202.09368). Which tokens an expert takes depends on all of them, later ones too: for training studies, and
//! refused by serving.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, Scores, scores};

/// Options of the `expert_choice` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpertChoice {
    /// Experts that a token has on average.
    pub capacity_factor: f64,
}

impl Default for ExpertChoice {
    fn default() -> Self {
        ExpertChoice { capacity_factor: 1.0 }
    }
}

impl ExpertChoice {
    /// Tokens that each expert takes of `n`.
    fn capacity(&self, n: usize, n_experts: usize) -> usize {
        ((n as f64 * self.capacity_factor / n_experts as f64).ceil() as usize).min(n)
    }
}

impl RouterSpec for ExpertChoice {
    const NAME: &'static str = "expert_choice";
    const PAPER: &'static str = "Zhou et al. 2022, arXiv 2202.09368";
    const CAUSAL: bool = false;
    const PARAMETERS: &'static str = "D·E";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let w_ED = scores::weight(model, moe, 1.0, params)?;
        Ok(Box::new(ExpertChoiceRouter { w_ED, spec: self.clone() }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let in_range = self.capacity_factor > 0.0 && self.capacity_factor <= moe.n_experts as f64;
        let expected = format!("more than 0, at most n_experts = {}", moe.n_experts);
        check(in_range, "moe.router.capacity_factor", self.capacity_factor, &expected)
    }

    fn n_selected(&self) -> usize {
        self.capacity_factor.ceil() as usize
    }

    fn max_assignments(&self, language_N: &[u32], moe: &MoeConfig) -> usize {
        moe.n_experts * self.capacity(language_N.len(), moe.n_experts)
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        model.d_model * moe.n_experts
    }
}

#[derive(Debug)]
struct ExpertChoiceRouter {
    w_ED: Tensor,
    spec: ExpertChoice,
}

impl Router for ExpertChoiceRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let scores = Scores::new(scores::logits(x_ND, &self.w_ED)?, context)?;
        let (n, e) = scores.probs_NE.dims2()?;
        let probs_EN = scores::host(&scores.probs_NE.t()?.contiguous()?)?;
        let c = self.spec.capacity(n, e);
        let token_A = scores::top_k(&probs_EN, n, c);
        let expert_A: Vec<u32> = (0..(e * c) as u32).map(|a| a / c as u32).collect();
        let weight_A = Some(scores.probs_of(&token_A, &expert_A)?);
        let plan = Plan { token_A, expert_A, weight_A, shared_weight_N: None };
        Ok((plan, Aux { scores: Some(scores), ..Aux::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn each_expert_takes_the_tokens_that_want_it_most() {
        // A token's logits are its own coordinates.
        let w_ED = Tensor::eye(2, DType::F32, &Device::Cpu).unwrap();
        let router = ExpertChoiceRouter { w_ED, spec: ExpertChoice::default() };
        let x_ND = Tensor::new(&[[3f32, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.5]], &Device::Cpu).unwrap();
        let (plan, _) = router.plan(&x_ND, &RouterContext::default()).unwrap();
        assert_eq!((plan.expert_A, plan.token_A), (vec![0, 0, 1, 1], vec![0, 1, 3, 2]));
        let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let expected = [sigmoid(3.0), sigmoid(2.0), sigmoid(0.5), sigmoid(-1.0)];
        assert!(weight_A.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6), "{weight_A:?}");
    }
}
