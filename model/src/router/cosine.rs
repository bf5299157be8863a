//! Cosine: tokens and experts meet in a space of few dimensions, on the unit sphere; the temperature is learned.
//!
//! Chi et al. 2022 (X-MoE, arXiv 2204.09179, eq. 5-8), used by MoEC (Xie et al. 2023, arXiv 2207.09094). An expert's output is weighted
//! by the sigmoid of its score, as in X-MoE. The part of MoEC's output that is the token itself is left out: the residual stream has it.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::{Init, Params};
use crate::router::scores::sigmoid;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, Scores, losses};

/// Options of the `cosine` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cosine {
    /// Experts per token.
    pub top_k: usize,
    /// Dimensions of the space.
    pub d_low: usize,
    /// First temperature.
    pub temperature: f64,
    /// Coefficient of the balance loss.
    pub balance_loss: f64,
}

impl Default for Cosine {
    fn default() -> Self {
        Cosine { top_k: 1, d_low: 32, temperature: 0.07, balance_loss: 0.01 }
    }
}

impl RouterSpec for Cosine {
    const NAME: &'static str = "cosine";
    const PAPER: &'static str = "Chi et al. 2022, arXiv 2204.09179; Xie et al. 2023, arXiv 2207.09094";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "d_low·(D + E) + 1";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let (d, low) = (model.d_model, self.d_low);
        let w_PD = params.get("router.projection.weight", &[low, d], Init::Normal(1.0 / (d as f64).sqrt()))?;
        let w_EP = params.get("router.weight", &[moe.n_experts, low], Init::Normal(1.0 / (low as f64).sqrt()))?;
        // The temperature is this exponential times the first one.
        let log_scale_1 = params.get("router.log_scale", &[1], Init::Zero)?;
        Ok(Box::new(CosineRouter { w_PD, w_EP, log_scale_1, spec: self.clone() }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let expected = format!("between 1 and n_experts = {}", moe.n_experts);
        check((1..=moe.n_experts).contains(&self.top_k), "moe.router.top_k", self.top_k, &expected)?;
        check(self.d_low > 0, "moe.router.d_low", self.d_low, "a positive number")?;
        check(self.temperature > 0.0, "moe.router.temperature", self.temperature, "a positive number")
    }

    fn n_selected(&self) -> usize {
        self.top_k
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        self.d_low * (model.d_model + moe.n_experts) + 1
    }
}

#[derive(Debug)]
struct CosineRouter {
    w_PD: Tensor,
    w_EP: Tensor,
    log_scale_1: Tensor,
    spec: Cosine,
}

impl Router for CosineRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let x_NP = unit(&x_ND.to_dtype(DType::F32)?.matmul(&self.w_PD.t()?)?)?;
        let cosine_NE = x_NP.matmul(&unit(&self.w_EP)?.t()?)?;
        let inverse_1 = self.log_scale_1.neg()?.exp()?.affine(1.0 / self.spec.temperature, 0.0)?;
        let scores = Scores::new(cosine_NE.broadcast_mul(&inverse_1)?, context)?;
        let mut plan = scores.likeliest(self.spec.top_k)?;
        let gates = Scores { probs_NE: sigmoid(&scores.logits_NE)?, logits_NE: scores.logits_NE.clone() };
        plan.weight_A = Some(gates.probs_of(&plan.token_A, &plan.expert_A)?);
        let share_E = context.shares(&plan.expert_A, scores.probs_NE.dim(1)?)?;
        let loss = losses::balance(&scores.probs_NE, &share_E, self.spec.balance_loss)?;
        Ok((plan, Aux { loss: Some(loss), scores: Some(scores), overflow: 0.0 }))
    }
}

/// Rows of length 1.
fn unit(x: &Tensor) -> Result<Tensor> {
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.affine(1.0, 1e-12)?.sqrt()?;
    Ok(x.broadcast_div(&length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn lengths_do_not_matter_and_weights_are_sigmoids_of_cosines() {
        let tensor = |rows: [[f32; 2]; 2]| Tensor::new(&rows, &Device::Cpu).unwrap();
        let (w_PD, w_EP) = (tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([[3.0, 0.0], [0.0, 0.5]]));
        let log_scale_1 = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let spec = Cosine { d_low: 2, temperature: 0.5, top_k: 1, balance_loss: 0.0 };
        let router = CosineRouter { w_PD, w_EP, log_scale_1, spec };
        let (plan, _) = router.plan(&tensor([[3.0, 4.0], [0.2, 0.0]]), &RouterContext::default()).unwrap();
        assert_eq!(plan.expert_A, [1, 0]);
        let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        for (got, expected) in weight_A.iter().zip([sigmoid(0.8 / 0.5), sigmoid(1.0 / 0.5)]) {
            assert!((got - expected).abs() < 1e-5, "{weight_A:?}");
        }
    }
}
