//! PL-MoE with a shared expert: every token meets the shared network and the expert of its language.
//!
//! Reading `pl_shared` of MultiCoder (Gong et al. 2022, arXiv 2212.09666); the residual form follows Rajbhandari et al. 2022
//! (arXiv 2201.05596, PR-MoE). Low-resource languages borrow from the shared network. A token of unknown language meets the shared
//! expert alone, or what `unknown` says.

use candle_core::{D, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::ops::gather_rows;
use crate::params::{Init, Params};
use crate::router::pl_hard::{PlHardRouter, Unknown};
use crate::router::scores::sigmoid;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec};

/// How the shared expert's output and the language's are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Both with weight 1.
    #[default]
    Sum,
    /// Both with weight 1/2.
    Half,
    /// `sigmoid(v·x)` and `1 - sigmoid(v·x)`, learned.
    Sigmoid,
}

/// Options of the `pl_shared` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlShared {
    pub combine: Combine,
    /// Which experts a token of unknown language meets beside the shared one.
    pub unknown: Unknown,
}

impl Default for PlShared {
    fn default() -> Self {
        PlShared { combine: Combine::Sum, unknown: Unknown::Shared }
    }
}

impl RouterSpec for PlShared {
    const NAME: &'static str = "pl_shared";
    const PAPER: &'static str =
        "Gong et al. 2022, arXiv 2212.09666; residual form Rajbhandari et al. 2022, arXiv 2201.05596";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "0; D with `sigmoid`";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let by_language = PlHardRouter::new(model, moe, &self.unknown);
        let v_1D = match self.combine {
            Combine::Sigmoid => Some(params.get("router.weight", &[1, model.d_model], Init::Zero)?),
            Combine::Sum | Combine::Half => None,
        };
        Ok(Box::new(PlSharedRouter { by_language, combine: self.combine, v_1D }))
    }

    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let expected = "a positive width: pl_shared has a shared expert";
        check(moe.d_ff_shared > 0, "moe.d_ff_shared", moe.d_ff_shared, expected)?;
        self.unknown.validate(model)
    }

    fn max_assignments(&self, language_N: &[u32], moe: &MoeConfig) -> usize {
        self.unknown.max_assignments(language_N, moe)
    }

    fn reads_tokens(&self) -> bool {
        self.combine == Combine::Sigmoid
    }

    fn is_by_language(&self) -> bool {
        true
    }

    fn meets_unknown(&self) -> bool {
        self.unknown != Unknown::Shared
    }

    fn n_selected(&self) -> usize {
        1
    }

    fn weighs_shared(&self) -> bool {
        self.reads_tokens()
    }

    fn n_parameters(&self, model: &ModelConfig, _moe: &MoeConfig) -> usize {
        if self.combine == Combine::Sigmoid { model.d_model } else { 0 }
    }
}

#[derive(Debug)]
struct PlSharedRouter {
    by_language: PlHardRouter,
    combine: Combine,
    v_1D: Option<Tensor>,
}

impl Router for PlSharedRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let (token_A, expert_A, part_A) = self.by_language.assignments(context.language_N)?;
        let (weight_A, shared_weight_N) = self.weights(x_ND, context.language_N.len(), (&token_A, &part_A))?;
        Ok((Plan { token_A, expert_A, weight_A, shared_weight_N }, Aux::default()))
    }
}

impl PlSharedRouter {
    /// Weights of the experts' and of the shared outputs, where `part_A` is what each assignment has of its token's; a token without an
    /// expert keeps all of the shared one.
    fn weights(
        &self,
        x_ND: &Tensor,
        n: usize,
        (token_A, part_A): (&[u32], &[f32]),
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x_ND.device();
        let is_whole = part_A.iter().all(|part| *part == 1.0);
        let parts = || Tensor::new(part_A, device);
        let share_N = match (self.combine, &self.v_1D) {
            (Combine::Half, _) => Tensor::full(0.5f32, n, device)?,
            (Combine::Sigmoid, Some(v_1D)) => sigmoid(&x_ND.broadcast_mul(v_1D)?.sum(D::Minus1)?)?,
            _ if is_whole => return Ok((None, None)),
            _ => return Ok((Some(parts()?), None)),
        };
        let mut met_N = vec![0f32; n];
        token_A.iter().for_each(|&token| met_N[token as usize] = 1.0);
        let weight_N = share_N.affine(-1.0, 1.0)?.mul(&Tensor::new(met_N, device)?)?;
        let idx_A = Tensor::new(token_A, &Device::Cpu)?;
        let weight_A = match token_A.is_empty() {
            true => None,
            false => Some(gather_rows(&weight_N.unsqueeze(1)?, &idx_A)?.squeeze(1)?),
        };
        let weight_A =
            weight_A.map(|weight_A| if is_whole { Ok(weight_A) } else { weight_A.mul(&parts()?) }).transpose()?;
        Ok((weight_A, Some(weight_N.affine(-1.0, 1.0)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UNKNOWN_LANGUAGE;
    use candle_core::Device;

    fn plan(combine: Combine, v: f32, of_unknown: &[u32]) -> Plan {
        let by_language = PlHardRouter { expert_of_language: vec![3, 1], of_unknown: of_unknown.to_vec() };
        let v_1D = Some(Tensor::full(v, (1, 2), &Device::Cpu).unwrap());
        let x_ND = Tensor::new(&[[1f32, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let router = PlSharedRouter { by_language, combine, v_1D };
        router
            .plan(&x_ND, &RouterContext { language_N: &[0, UNKNOWN_LANGUAGE, 1, 0], ..RouterContext::default() })
            .unwrap()
            .0
    }

    #[test]
    fn four_tokens_four_experts() {
        let sum = plan(Combine::Sum, 0.0, &[]);
        assert_eq!((sum.token_A, sum.expert_A), (vec![0, 2, 3], vec![3, 1, 3]));
        assert!(sum.weight_A.is_none() && sum.shared_weight_N.is_none());
        let sum = plan(Combine::Sum, 0.0, &[0, 1]);
        assert_eq!((sum.token_A, sum.expert_A), (vec![0, 1, 1, 2, 3], vec![3, 0, 1, 1, 3]));
        assert_eq!(sum.weight_A.unwrap().to_vec1::<f32>().unwrap(), [1.0, 0.5, 0.5, 1.0, 1.0]);
        assert!(sum.shared_weight_N.is_none());
    }

    #[test]
    fn weights_of_expert_and_shared_add_up_to_one() {
        for (combine, v) in [(Combine::Half, 0.0), (Combine::Sigmoid, 0.0), (Combine::Sigmoid, 2.0)] {
            for of_unknown in [&[][..], &[2], &[0, 1, 2, 3]] {
                let plan = plan(combine, v, of_unknown);
                let mut sum_N = plan.shared_weight_N.unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(sum_N[1] == 1.0, of_unknown.is_empty(), "no expert: all of the shared one");
                let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
                plan.token_A.iter().zip(weight_A).for_each(|(&token, weight)| sum_N[token as usize] += weight);
                assert!(sum_N.iter().all(|sum| (sum - 1.0).abs() < 1e-6), "{combine:?}, {of_unknown:?}: {sum_N:?}");
            }
        }
        let gate = plan(Combine::Sigmoid, 2.0, &[]).shared_weight_N.unwrap().to_vec1::<f32>().unwrap();
        assert!((gate[0] - 0.880_797).abs() < 1e-5 && (gate[3] - 0.5).abs() < 1e-6, "{gate:?}");
    }
}
