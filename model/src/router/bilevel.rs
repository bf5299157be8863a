//! Two levels: a token chooses a group of experts, then an expert of the group.
//!
//! He et al. 2022 (SMILE, arXiv 2212.05191): weight `p_i q_j`; `α G Σ_i f_i P_i + β m Σ_j f_j Q_j`, with the loads and mean probabilities
//! of the `G` groups, and of the `m` places in a group over all groups. Experts of a group lie side by side, so that a group is a node.

use candle_core::{D, Tensor};
use candle_nn::ops::softmax;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::{Init, Params};
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, Scores, losses, scores};

/// Options of the `bilevel` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bilevel {
    /// Number of groups.
    pub groups: usize,
    /// Coefficient of the balance loss of each level.
    pub balance_loss: f64,
}

impl Default for Bilevel {
    fn default() -> Self {
        Bilevel { groups: 2, balance_loss: 0.005 }
    }
}

impl RouterSpec for Bilevel {
    const NAME: &'static str = "bilevel";
    const PAPER: &'static str = "He et al. 2022, arXiv 2212.05191";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "D·(groups + E / groups)";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let init = Init::Normal(1.0 / (model.d_model as f64).sqrt());
        let w_GD = params.get("router.groups.weight", &[self.groups, model.d_model], init)?;
        let w_JD = params.get("router.weight", &[moe.n_experts / self.groups, model.d_model], init)?;
        Ok(Box::new(BilevelRouter { w_GD, w_JD, balance_loss: self.balance_loss }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let expected = format!("a divisor of n_experts = {}", moe.n_experts);
        let divides = self.groups > 0 && moe.n_experts.is_multiple_of(self.groups);
        check(divides, "moe.router.groups", self.groups, &expected)
    }

    fn may_be_restricted(&self) -> bool {
        // The group is chosen whichever of its experts may be.
        false
    }

    fn n_selected(&self) -> usize {
        1
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        model.d_model * (self.groups + moe.n_experts / self.groups)
    }
}

#[derive(Debug)]
struct BilevelRouter {
    /// Here G are the groups, and J the places in one.
    w_GD: Tensor,
    w_JD: Tensor,
    balance_loss: f64,
}

impl Router for BilevelRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let (logits_NG, logits_NJ) = (scores::logits(x_ND, &self.w_GD)?, scores::logits(x_ND, &self.w_JD)?);
        let (p_NG, q_NJ) = (softmax(&logits_NG, D::Minus1)?, softmax(&logits_NJ, D::Minus1)?);
        let (n, g) = p_NG.dims2()?;
        let j = q_NJ.dim(1)?;
        // The product of two softmaxes is the softmax of the sums.
        let logits_NE = logits_NG.unsqueeze(2)?.broadcast_add(&logits_NJ.unsqueeze(1)?)?.reshape((n, g * j))?;
        let scores = Scores::new(logits_NE, context)?;
        let (group_N, probs_NE) = (scores::top_k(&scores::host(&p_NG)?, g, 1), scores::host(&scores.probs_NE)?);
        let of_group =
            |(n, &group): (usize, &u32)| scores::top_k(&probs_NE[(n * g + group as usize) * j..][..j], j, 1)[0];
        let place_N: Vec<u32> = group_N.iter().enumerate().map(of_group).collect();
        let expert_A: Vec<u32> = group_N.iter().zip(&place_N).map(|(group, place)| group * j as u32 + place).collect();
        let token_A: Vec<u32> = (0..n as u32).collect();
        let weight_A = Some(scores.probs_of(&token_A, &expert_A)?);
        let mut aux = Aux::default();
        aux.add(losses::balance(&p_NG, &context.shares(&group_N, g)?, self.balance_loss)?)?;
        aux.add(losses::balance(&q_NJ, &context.shares(&place_N, j)?, self.balance_loss)?)?;
        aux.scores = Some(scores);
        Ok((Plan { token_A, expert_A, weight_A, shared_weight_N: None }, aux))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// With routers whose rows are unit vectors of different coordinates, two levels are one: the sums of their logits.
    #[test]
    fn two_levels_are_flat_routing_by_the_sums_of_their_logits() {
        let eye = Tensor::eye(5, DType::F32, &Device::Cpu).unwrap();
        let (w_GD, w_JD) = (eye.narrow(0, 0, 2).unwrap(), eye.narrow(0, 2, 3).unwrap());
        let router = BilevelRouter { w_GD: w_GD.clone(), w_JD: w_JD.clone(), balance_loss: 0.0 };
        let x_ND = crate::ops::tests::values(&[40, 5], 9);
        let (two, _) = router.plan(&x_ND, &RouterContext::default()).unwrap();
        let flat = w_GD.unsqueeze(1).unwrap().broadcast_add(&w_JD.unsqueeze(0).unwrap()).unwrap();
        let w_ED = flat.reshape((6, 5)).unwrap();
        let scores = Scores::new(scores::logits(&x_ND, &w_ED).unwrap(), &RouterContext::default()).unwrap();
        let one = scores.likeliest(1).unwrap();
        assert_eq!((&two.token_A, &two.expert_A), (&one.token_A, &one.expert_A));
        let weights = |plan: Plan| plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        assert!(weights(two).iter().zip(weights(one)).all(|(two, one)| (two - one).abs() < 1e-6));
    }
}
