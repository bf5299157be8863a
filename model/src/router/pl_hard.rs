//! PL-MoE, hard: the programming language of a token is its expert.
//!
//! Gong et al. 2022 (MultiCoder, arXiv 2212.09666) route by programming language; the paper's layer is not public in detail, this is the
//! reading `pl_hard` of this project: one expert, weight 1, no router parameters, no router kernel. One language's path through the
//! model is an ordinary dense decoder. A token of unknown language meets every expert with weight 1/E.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, UNKNOWN_LANGUAGE};
use crate::error::{Error, Result};
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec};

/// No options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlHard {}

impl RouterSpec for PlHard {
    const NAME: &'static str = "pl_hard";
    const PAPER: &'static str = "Gong et al. 2022, arXiv 2212.09666 (reading: one expert per language)";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "0";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Router>> {
        Ok(Box::new(PlHardRouter { expert_of_language: model.expert_of_language_in(moe), n_experts: moe.n_experts }))
    }

    fn validate(&self, _model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        Ok(())
    }

    fn reads_tokens(&self) -> bool {
        false
    }

    fn is_by_language(&self) -> bool {
        true
    }

    fn max_assignments(&self, language_N: &[u32], moe: &MoeConfig) -> usize {
        let n_unknown = language_N.iter().filter(|language| **language == UNKNOWN_LANGUAGE).count();
        language_N.len() + n_unknown * (moe.n_experts - 1)
    }

    fn n_selected(&self) -> usize {
        1
    }

    fn n_parameters(&self, _model: &ModelConfig, _moe: &MoeConfig) -> usize {
        0
    }
}

/// The table from language to expert.
#[derive(Debug)]
pub(super) struct PlHardRouter {
    pub(super) expert_of_language: Vec<usize>,
    pub(super) n_experts: usize,
}

impl Router for PlHardRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let n = context.language_N.len();
        let (mut token_A, mut expert_A) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut weight_A = Vec::with_capacity(n);
        for (token, &language) in context.language_N.iter().enumerate() {
            if language == UNKNOWN_LANGUAGE {
                token_A.extend(std::iter::repeat_n(token as u32, self.n_experts));
                expert_A.extend(0..self.n_experts as u32);
                weight_A.extend(std::iter::repeat_n(1.0 / self.n_experts as f32, self.n_experts));
                continue;
            }
            token_A.push(token as u32);
            expert_A.push(self.expert_of(language)? as u32);
            weight_A.push(1.0);
        }
        let weight_A = match token_A.len() == n {
            true => None,
            false => Some(Tensor::from_vec(weight_A, token_A.len(), x_ND.device())?),
        };
        Ok((Plan { token_A, expert_A, weight_A, shared_weight_N: None }, Aux::default()))
    }
}

impl PlHardRouter {
    pub(super) fn expert_of(&self, language: u32) -> Result<usize> {
        self.expert_of_language.get(language as usize).copied().ok_or_else(|| {
            let n = self.expert_of_language.len();
            Error::Input(format!("language index {language}: expected one below {n} or UNKNOWN_LANGUAGE"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn four_tokens_four_experts() {
        let router = PlHardRouter { expert_of_language: vec![2, 0], n_experts: 4 };
        let x_ND = Tensor::zeros((4, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        let plan = |language_N: &[u32]| {
            router.plan(&x_ND, &RouterContext { language_N, ..RouterContext::default() }).map(|(plan, _)| plan)
        };

        let known = plan(&[1, 0, 0, 1]).unwrap();
        assert_eq!((known.token_A, known.expert_A), (vec![0, 1, 2, 3], vec![0, 2, 2, 0]));
        assert!(known.weight_A.is_none());

        let mixed = plan(&[0, UNKNOWN_LANGUAGE, 0, 0]).unwrap();
        assert_eq!(mixed.token_A, [0, 1, 1, 1, 1, 2, 3]);
        assert_eq!(mixed.expert_A, [2, 0, 1, 2, 3, 2, 2]);
        let weights = mixed.weight_A.unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(weights, [1.0, 0.25, 0.25, 0.25, 0.25, 1.0, 1.0]);

        let wrong = plan(&[0, 0, 7, 0]).err().unwrap().to_string();
        assert!(wrong.contains("language index 7"), "{wrong}");
    }
}
