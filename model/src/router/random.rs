//! Random: while training a lot decides, anew for every token and step; afterwards every expert speaks with the same weight. The control
//! for whatever learns to route.
//!
//! Zuo et al. 2021 (THOR, arXiv 2110.04260) train by lot; the mean of all experts is what a token met in expectation.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec};

/// No options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {}

impl RouterSpec for Random {
    const NAME: &'static str = "random";
    const PAPER: &'static str = "Zuo et al. 2021, arXiv 2110.04260; all experts when measured";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "0";

    fn build(&self, _model: &ModelConfig, moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Router>> {
        Ok(Box::new(RandomRouter { n_experts: moe.n_experts }))
    }

    fn validate(&self, _model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        Ok(())
    }

    fn reads_tokens(&self) -> bool {
        false
    }

    fn max_assignments(&self, language_N: &[u32], moe: &MoeConfig) -> usize {
        language_N.len() * moe.n_experts
    }

    fn n_selected(&self) -> usize {
        1
    }

    fn n_parameters(&self, _model: &ModelConfig, _moe: &MoeConfig) -> usize {
        0
    }
}

#[derive(Debug)]
struct RandomRouter {
    n_experts: usize,
}

impl Router for RandomRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let (n, e) = (x_ND.dim(0)?, self.n_experts);
        let Some(draw) = context.draw else { return Ok((Plan::mean_of_all(n, e, x_ND.device())?, Aux::default())) };
        let stream = draw.stream("random expert");
        let expert = |n: usize| ((stream.token(n, 0) * e as f32) as u32).min(e as u32 - 1);
        let (token_A, expert_A) = ((0..n as u32).collect(), (0..n).map(expert).collect());
        Ok((Plan { token_A, expert_A, weight_A: None, shared_weight_N: None }, Aux::default()))
    }
}
