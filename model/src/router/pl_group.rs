//! PL-group: each language has experts of its own, and each token chooses among them.
//!
//! Reading `pl_group` of MultiCoder (Gong et al. 2022, arXiv 2212.09666): SMILE's two levels (He et al. 2022, arXiv 2212.05191) with the
//! first one given. Others' experts are masked before the softmax; the balance loss is over a language's own experts alone, for one over
//! all of them would fight the routing. A token of unknown language chooses among all.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, UNKNOWN_LANGUAGE, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, Scores, scores};

/// Options of the `pl_group` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlGroup {
    /// Experts that a language has.
    pub experts_per_language: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Coefficient of the balance loss within each group.
    pub balance_loss: f64,
}

impl Default for PlGroup {
    fn default() -> Self {
        PlGroup { experts_per_language: 2, top_k: 1, balance_loss: 0.01 }
    }
}

impl RouterSpec for PlGroup {
    const NAME: &'static str = "pl_group";
    const PAPER: &'static str = "Gong et al. 2022, arXiv 2212.09666 (reading: experts per language)";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "D·E";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let w_ED = scores::weight(model, moe, 1.0, params)?;
        let n_groups = moe.n_experts / self.experts_per_language;
        let group_of_language = model.expert_of_language_in(moe).iter().map(|expert| expert % n_groups).collect();
        Ok(Box::new(PlGroupRouter { w_ED, spec: self.clone(), group_of_language }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let (e, own) = (moe.n_experts, self.experts_per_language);
        let expected = format!("a divisor of n_experts = {e}");
        check(own > 0 && e.is_multiple_of(own), "moe.router.experts_per_language", own, &expected)?;
        let expected = format!("between 1 and experts_per_language = {own}");
        check((1..=own).contains(&self.top_k), "moe.router.top_k", self.top_k, &expected)
    }

    fn is_confined(&self) -> bool {
        true
    }

    fn may_be_restricted(&self) -> bool {
        // The group is chosen whichever of its experts may be.
        false
    }

    fn n_selected(&self) -> usize {
        self.top_k
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        model.d_model * moe.n_experts
    }
}

#[derive(Debug)]
struct PlGroupRouter {
    w_ED: Tensor,
    spec: PlGroup,
    group_of_language: Vec<usize>,
}

impl Router for PlGroupRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let logits_NE = scores::logits(x_ND, &self.w_ED)?;
        let (n, e) = logits_NE.dims2()?;
        let own = self.spec.experts_per_language;
        let group = |language: u32| self.group_of_language.get(language as usize).copied();
        let mask = context.language_N.iter().flat_map(|&language| {
            let group = group(language);
            (0..e).map(move |expert| if group.is_none_or(|group| expert / own == group) { 0f32 } else { -1e9 })
        });
        let mask_NE = Tensor::from_vec(mask.collect::<Vec<f32>>(), (n, e), x_ND.device())?;
        let scores = Scores::new((logits_NE + mask_NE)?, context)?;
        let plan = scores.likeliest(self.spec.top_k)?;
        let loss = self.balance_loss(&scores, &plan, context)?;
        Ok((plan, Aux { loss: Some(loss), scores: Some(scores), overflow: 0.0 }))
    }
}

impl PlGroupRouter {
    /// Over groups, weighted by their share `s_g` of the tokens: `coefficient · Σ_g s_g · own · Σ_{e in g} (f_e / s_g)(P_e / s_g)`, with `f`
    /// and `P` over all tokens; the coefficient itself where each group is even. Tokens of unknown language count as nothing.
    fn balance_loss(&self, scores: &Scores, plan: &Plan, context: &RouterContext) -> Result<Tensor> {
        let (n, e) = scores.probs_NE.dims2()?;
        let own = self.spec.experts_per_language;
        let is_known = |token: u32| context.language_N[token as usize] != UNKNOWN_LANGUAGE;
        let assignments = plan.token_A.iter().zip(&plan.expert_A);
        let known: Vec<u32> = assignments.filter(|(token, _)| is_known(**token)).map(|(_, &expert)| expert).collect();
        let share_E = context.shares(&known, e)?;
        let factor = |expert: usize| {
            let group = expert / own * own;
            let share: f32 = share_E[group..group + own].iter().sum();
            if share > 0.0 { own as f32 * share_E[expert] / share } else { 0.0 }
        };
        let factor_E = Tensor::from_vec((0..e).map(factor).collect::<Vec<f32>>(), e, scores.probs_NE.device())?;
        let known_N: Vec<f32> =
            context.language_N.iter().map(|&l| f32::from(u8::from(l != UNKNOWN_LANGUAGE))).collect();
        let known_N = Tensor::new(known_N, scores.probs_NE.device())?;
        let balance_N = scores.probs_NE.broadcast_mul(&factor_E)?.sum(D::Minus1)?;
        Ok((balance_N.mul(&known_N)?.sum_all()? * (self.spec.balance_loss / n as f64))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn tokens_choose_within_the_group_of_their_language() {
        // The router's rows are unit vectors: a token's logits are its own coordinates.
        let w_ED = Tensor::eye(4, DType::F32, &Device::Cpu).unwrap();
        let spec = PlGroup { experts_per_language: 2, top_k: 1, balance_loss: 0.01 };
        let router = PlGroupRouter { w_ED, spec, group_of_language: vec![1, 0] };
        let x_ND =
            Tensor::new(&[[9f32, 0.0, 1.0, 0.0], [9.0, 0.0, 1.0, 3.0], [0.0, 2.0, 0.0, 7.0]], &Device::Cpu).unwrap();
        let context = RouterContext { language_N: &[0, 0, 1], ..RouterContext::default() };
        let (plan, aux) = router.plan(&x_ND, &context).unwrap();
        assert_eq!(plan.expert_A, [2, 3, 1]);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let expected = [sigmoid(1.0), sigmoid(2.0), sigmoid(2.0)];
        let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        assert!(weight_A.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6), "{weight_A:?}");
        // Each expert of the first language has half of its tokens; the other language's one has all, whose probability is sigmoid(2).
        let first = 2.0 / 3.0;
        let second = 2.0 * sigmoid(2.0) / 3.0;
        let loss = aux.loss.unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 0.01 * (first + second)).abs() < 1e-6, "{loss}");
    }
}
