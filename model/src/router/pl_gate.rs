//! PL-gate: a language learns which experts its tokens meet, all of them the same; languages alike may share.
//!
//! Task-MoE (Kudugunta et al. 2021, arXiv 2110.03742): routing by the task's embedding. Here one row of logits a language, which is what
//! a linear router of an embedding that nothing else reads comes to; the last row is that of unknown languages.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, UNKNOWN_LANGUAGE, check};
use crate::error::Result;
use crate::params::{Init, Params};
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, Scores};

/// Options of the `pl_gate` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlGate {
    /// Experts per token.
    pub top_k: usize,
}

impl Default for PlGate {
    fn default() -> Self {
        PlGate { top_k: 2 }
    }
}

impl RouterSpec for PlGate {
    const NAME: &'static str = "pl_gate";
    const PAPER: &'static str = "Kudugunta et al. 2021, arXiv 2110.03742; Gong et al. 2022, arXiv 2212.09666 (reading)";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "(L + 1)·E";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let logits_LE = params.get("router.weight", &[model.languages.len() + 1, moe.n_experts], Init::Normal(1.0))?;
        Ok(Box::new(PlGateRouter { top_k: self.top_k, logits_LE }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let expected = format!("between 1 and n_experts = {}", moe.n_experts);
        check((1..=moe.n_experts).contains(&self.top_k), "moe.router.top_k", self.top_k, &expected)
    }

    fn n_selected(&self) -> usize {
        self.top_k
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        (model.languages.len() + 1) * moe.n_experts
    }
}

#[derive(Debug)]
struct PlGateRouter {
    top_k: usize,
    /// A row for each language.
    logits_LE: Tensor,
}

impl Router for PlGateRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let unknown = self.logits_LE.dim(0)? as u32 - 1;
        let row = |&language: &u32| if language == UNKNOWN_LANGUAGE { unknown } else { language };
        let row_N: Vec<u32> = context.language_N.iter().map(row).collect();
        let row_N = Tensor::new(row_N, x_ND.device())?;
        let scores = Scores::new(self.logits_LE.index_select(&row_N, 0)?, context)?;
        Ok((scores.likeliest(self.top_k)?, Aux { scores: Some(scores), ..Aux::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_language_has_the_same_two_experts_everywhere() {
        let logits_LE = Tensor::new(&[[0f32, 1.0, 2.0], [5.0, 0.0, 5.0], [0.0; 3]], &Device::Cpu).unwrap();
        let router = PlGateRouter { top_k: 2, logits_LE };
        let x_ND = Tensor::zeros((4, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let language_N = [0, 1, UNKNOWN_LANGUAGE, 0];
        let (plan, _) =
            router.plan(&x_ND, &RouterContext { language_N: &language_N, ..RouterContext::default() }).unwrap();
        assert_eq!(plan.expert_A, [2, 1, 0, 2, 0, 1, 2, 1]);
        let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        let sum = 1.0 + 1f32.exp() + 2f32.exp();
        let expected = [2f32.exp() / sum, 1f32.exp() / sum];
        assert!(
            weight_A[..2].iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6),
            "{weight_A:?}"
        );
        assert_eq!((weight_A[2], &weight_A[..2]), (weight_A[3], &weight_A[6..]));
        assert!((weight_A[4] - 1.0 / 3.0).abs() < 1e-6);
    }
}
