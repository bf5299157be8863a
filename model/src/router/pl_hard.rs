//! PL-MoE, hard: the programming language of a token is its expert.
//!
//! Gong et al. 2022 (MultiCoder, arXiv 2212.09666) route by programming language; the paper's layer is not public in detail, this is the
//! reading `pl_hard` of this project: one expert, weight 1, no router parameters, no router kernel. One language's path through the
//! model is an ordinary dense decoder. A token of unknown language meets every expert with weight 1/E, or one language's.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, UNKNOWN_LANGUAGE, check};
use crate::error::{Error, Result};
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec};

/// Which experts a token of unknown language meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// The shared one alone.
    Shared,
    /// All of them, with like weights.
    Mean,
    /// That of a language of the model.
    Language(String),
}

impl Unknown {
    /// # Errors
    /// [`crate::Error::Config`] for a language that the model does not have.
    pub(super) fn validate(&self, model: &ModelConfig) -> Result<()> {
        let Unknown::Language(name) = self else { return Ok(()) };
        let expected = format!("one of {}", model.languages.join(", "));
        check(model.languages.contains(name), "moe.router.unknown", name, &expected)
    }

    /// The experts.
    pub(super) fn experts(&self, model: &ModelConfig, moe: &MoeConfig) -> Vec<u32> {
        match self {
            Unknown::Shared => Vec::new(),
            Unknown::Mean => (0..moe.n_experts as u32).collect(),
            Unknown::Language(name) => {
                let named =
                    model.languages.iter().zip(model.expert_of_language_in(moe)).find(|(known, _)| *known == name);
                named.map(|(_, expert)| expert as u32).into_iter().collect()
            }
        }
    }

    /// The most assignments that tokens of these languages have.
    pub(super) fn max_assignments(&self, language_N: &[u32], moe: &MoeConfig) -> usize {
        let n_unknown = language_N.iter().filter(|language| **language == UNKNOWN_LANGUAGE).count();
        let of_each = if *self == Unknown::Mean { moe.n_experts } else { 1 };
        language_N.len() - n_unknown + n_unknown * of_each
    }
}

/// Options of the `pl_hard` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlHard {
    /// Which experts a token of unknown language meets; one at least.
    pub unknown: Unknown,
}

impl Default for PlHard {
    fn default() -> Self {
        PlHard { unknown: Unknown::Mean }
    }
}

impl RouterSpec for PlHard {
    const NAME: &'static str = "pl_hard";
    const PAPER: &'static str = "Gong et al. 2022, arXiv 2212.09666 (reading: one expert per language)";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "0";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Router>> {
        Ok(Box::new(PlHardRouter::new(model, moe, &self.unknown)))
    }

    fn validate(&self, model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        let expected = "`mean` or a language: pl_hard has no shared expert of its own";
        check(self.unknown != Unknown::Shared, "moe.router.unknown", "shared", expected)?;
        self.unknown.validate(model)
    }

    fn reads_tokens(&self) -> bool {
        false
    }

    fn is_by_language(&self) -> bool {
        true
    }

    fn max_assignments(&self, language_N: &[u32], moe: &MoeConfig) -> usize {
        self.unknown.max_assignments(language_N, moe)
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
    /// Those that a token of unknown language meets.
    pub(super) of_unknown: Vec<u32>,
}

impl Router for PlHardRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let (token_A, expert_A, weight_A) = self.assignments(context.language_N)?;
        let weight_A = match weight_A.iter().all(|weight| *weight == 1.0) {
            true => None,
            false => Some(Tensor::from_vec(weight_A, token_A.len(), x_ND.device())?),
        };
        Ok((Plan { token_A, expert_A, weight_A, shared_weight_N: None }, Aux::default()))
    }
}

impl PlHardRouter {
    pub(super) fn new(model: &ModelConfig, moe: &MoeConfig, unknown: &Unknown) -> PlHardRouter {
        PlHardRouter { expert_of_language: model.expert_of_language_in(moe), of_unknown: unknown.experts(model, moe) }
    }

    /// Tokens, experts and weights of all assignments.
    pub(super) fn assignments(&self, language_N: &[u32]) -> Result<(Vec<u32>, Vec<u32>, Vec<f32>)> {
        let n = language_N.len();
        let (mut token_A, mut expert_A) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut weight_A = Vec::with_capacity(n);
        for (token, &language) in (0u32..).zip(language_N) {
            if language == UNKNOWN_LANGUAGE {
                let n_experts = self.of_unknown.len();
                token_A.extend(std::iter::repeat_n(token, n_experts));
                expert_A.extend(&self.of_unknown);
                weight_A.extend(std::iter::repeat_n(1.0 / n_experts as f32, n_experts));
                continue;
            }
            token_A.push(token);
            expert_A.push(self.expert_of(language)? as u32);
            weight_A.push(1.0);
        }
        Ok((token_A, expert_A, weight_A))
    }

    fn expert_of(&self, language: u32) -> Result<usize> {
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
        let router = PlHardRouter { expert_of_language: vec![2, 0], of_unknown: vec![0, 1, 2, 3] };
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

    #[test]
    fn a_token_of_unknown_language_meets_those_that_the_option_names() {
        let mut config = crate::config::tests::tiny(Some(serde_json::from_str(r#"{"kind": "pl_hard"}"#).unwrap()));
        let language = config.languages[1].clone();
        let experts = |unknown: Unknown| {
            let moe = config.moe.as_ref().unwrap();
            let router = PlHardRouter::new(&config, moe, &unknown);
            let language_N = [UNKNOWN_LANGUAGE, 0];
            let (token_A, expert_A, weight_A) = router.assignments(&language_N).unwrap();
            assert!(token_A.len() <= unknown.max_assignments(&language_N, moe), "{unknown:?}");
            let of_first = token_A.iter().filter(|token| **token == 0).count();
            (expert_A[..of_first].to_vec(), weight_A[..of_first].to_vec())
        };
        let own = config.expert_of_language()[1] as u32;
        assert_eq!(experts(Unknown::Shared), (vec![], vec![]));
        assert_eq!(experts(Unknown::Language(language)), (vec![own], vec![1.0]));
        let all = experts(Unknown::Mean);
        assert_eq!((all.0.len(), all.1.iter().sum::<f32>()), (config.moe.as_ref().unwrap().n_experts, 1.0));

        let mut message = |router: &str| {
            config.moe.as_mut().unwrap().router = serde_json::from_str(router).unwrap();
            config.validate().unwrap_err().to_string()
        };
        let error = message(r#"{"kind": "pl_hard", "unknown": {"language": "cobol"}}"#);
        assert!(error.contains("moe.router.unknown = cobol: expected one of"), "{error}");
        let error = message(r#"{"kind": "pl_hard", "unknown": "shared"}"#);
        assert!(error.contains("moe.router.unknown = shared: expected `mean` or a language"), "{error}");
    }
}
