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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{Draw, StepKey};
    use candle_core::{DType, Device, Tensor};

    #[test]
    fn experts_have_like_shares_other_ones_in_each_step_and_all_when_measured() {
        let router = RandomRouter { n_experts: 4 };
        let x_N0 = Tensor::zeros((400, 0), DType::F32, &Device::Cpu).unwrap();
        let id_N: Vec<u32> = (0..400).collect();
        let experts = |step| {
            let draw = Draw::new(StepKey { seed: 1, step }, &id_N, 400);
            let context = RouterContext { draw: Some(draw.layer(0)), ..RouterContext::default() };
            router.plan(&x_N0, &context).unwrap().0
        };
        let first = experts(1);
        assert!(first.load(4).iter().all(|load| (0.18..0.32).contains(load)), "{:?}", first.load(4));
        assert_ne!(first.expert_A, experts(2).expert_A);
        let (measured, _) = router.plan(&x_N0, &RouterContext::default()).unwrap();
        assert_eq!((measured.token_A.len(), &measured.expert_A[..5]), (1600, &[0, 1, 2, 3, 0][..]));
        assert!(measured.weight_A.unwrap().to_vec1::<f32>().unwrap().iter().all(|weight| *weight == 0.25));
    }
}
