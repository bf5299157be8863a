//! Hash: a token's id decides, by a random table that never changes. No parameters, no loss.
//!
//! Roller et al. 2021 (arXiv 2106.04426), their random hash.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig};
use crate::draw::mix;
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec};

/// Options of the `hash` router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hash {
    /// Tells one table from another.
    pub seed: u64,
}

impl RouterSpec for Hash {
    const NAME: &'static str = "hash";
    const PAPER: &'static str = "Roller et al. 2021, arXiv 2106.04426";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "0";

    fn build(&self, _model: &ModelConfig, moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Router>> {
        Ok(Box::new(HashRouter { seed: self.seed, n_experts: moe.n_experts as u64 }))
    }

    fn validate(&self, _model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        Ok(())
    }

    fn reads_tokens(&self) -> bool {
        false
    }

    fn n_selected(&self) -> usize {
        1
    }

    fn n_parameters(&self, _model: &ModelConfig, _moe: &MoeConfig) -> usize {
        0
    }
}

#[derive(Debug)]
struct HashRouter {
    seed: u64,
    n_experts: u64,
}

impl Router for HashRouter {
    fn plan(&self, _x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let expert = |&id: &u32| (mix(self.seed, u64::from(id)) % self.n_experts) as u32;
        let expert_A: Vec<u32> = context.id_N.iter().map(expert).collect();
        let token_A = (0..expert_A.len() as u32).collect();
        Ok((Plan { token_A, expert_A, weight_A: None, shared_weight_N: None }, Aux::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_expert_everywhere_and_experts_have_like_shares() {
        let router = HashRouter { seed: 0, n_experts: 4 };
        let id_N: Vec<u32> = (0..4000).chain([7, 7]).collect();
        let x_N0 = Tensor::zeros((id_N.len(), 0), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let (plan, _) = router.plan(&x_N0, &RouterContext { id_N: &id_N, ..RouterContext::default() }).unwrap();
        assert_eq!([plan.expert_A[4000], plan.expert_A[4001]], [plan.expert_A[7]; 2]);
        assert!(plan.load(4).iter().all(|load| (0.22..0.28).contains(load)), "{:?}", plan.load(4));
    }

    /// Splitmix64 of seed and id, computed by another program.
    #[test]
    fn experts_are_those_of_the_hash() {
        let id_N: Vec<u32> = (0..8).collect();
        let x_N0 = Tensor::zeros((8, 0), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let experts = |seed, n_experts| {
            let context = RouterContext { id_N: &id_N, ..RouterContext::default() };
            HashRouter { seed, n_experts }.plan(&x_N0, &context).unwrap().0.expert_A
        };
        assert_eq!(experts(0, 4), [0, 1, 1, 2, 2, 3, 2, 3]);
        assert_eq!(experts(7, 3), [1, 1, 0, 2, 1, 0, 1, 2]);
    }
}
