//! Capacity: an expert computes at most its share of the tokens times a factor; those beyond it pass by.
//!
//! Fedus et al. 2022 (arXiv 2101.03961, eq. 3); by probability instead of in the order of the batch: batch-prioritised routing (Riquelme
//! et al. 2021, arXiv 2106.05974, §4.1). Who is left out depends on other tokens of the batch, so a model that does so when it is measured
//! is refused by serving; by default it does so while training alone.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec};
use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext};

/// Who comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// The earlier token of the batch.
    #[default]
    Order,
    /// The one with the larger weight.
    Probability,
}

/// Options of the modifier `capacity`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Factor while training.
    pub train: f64,
    /// Factor when measured; 0 for no limit.
    pub eval: f64,
    /// Tokens that an expert may have in any case.
    pub least: usize,
    pub priority: Priority,
}

impl Default for Capacity {
    fn default() -> Self {
        Capacity { train: 1.25, eval: 0.0, least: 4, priority: Priority::Order }
    }
}

impl ModifierSpec for Capacity {
    const NAME: &'static str = "capacity";
    const PAPER: &'static str = "Fedus et al. 2022, arXiv 2101.03961, eq. 3; Riquelme et al. 2021, arXiv 2106.05974";
    const CAUSAL: &'static str = "with `eval = 0`";

    fn build(&self, _model: &ModelConfig, moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(Limit { spec: self.clone(), n_experts: moe.n_experts }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        check(self.train > 0.0, "moe.modifiers.capacity.train", self.train, "a positive number")?;
        check(self.eval >= 0.0, "moe.modifiers.capacity.eval", self.eval, "a positive number, or 0 for no limit")?;
        let expected = "a router whose experts do not follow from the language, for its load is that of the data";
        let by_language = moe.router.is_by_language();
        check(!by_language, "moe.modifiers", format!("capacity with {}", moe.router.name()), expected)
    }

    fn is_local(&self) -> bool {
        false
    }

    fn is_causal(&self) -> bool {
        self.eval == 0.0
    }
}

#[derive(Debug)]
struct Limit {
    spec: Capacity,
    n_experts: usize,
}

impl Modifier for Limit {
    fn modify(&self, x_ND: &Tensor, plan: &mut Plan, aux: &mut Aux, context: &RouterContext) -> Result<()> {
        let factor = if context.draw.is_some() { self.spec.train } else { self.spec.eval };
        if factor == 0.0 {
            return Ok(());
        }
        let share = x_ND.dim(0)?.div_ceil(self.n_experts) as f64;
        let capacity = ((share * factor).ceil() as usize).max(self.spec.least);
        let mut order_A: Vec<usize> = (0..plan.token_A.len()).collect();
        if let (Priority::Probability, Some(weight_A)) = (self.spec.priority, &plan.weight_A) {
            let weight_A = weight_A.to_vec1::<f32>()?;
            order_A.sort_by(|&a, &b| weight_A[b].total_cmp(&weight_A[a]));
        }
        let mut count_E = vec![0; self.n_experts];
        let mut keeps = vec![false; plan.token_A.len()];
        for a in order_A {
            let count = &mut count_E[plan.expert_A[a] as usize];
            *count += 1;
            keeps[a] = *count <= capacity;
        }
        let n_left_out = keeps.iter().filter(|keeps| !**keeps).count();
        aux.overflow = n_left_out as f32 / keeps.len().max(1) as f32;
        plan.retain(&keeps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{Draw, StepKey};
    use candle_core::{DType, Device};

    fn kept(priority: Priority, training: bool) -> Vec<u32> {
        let spec = Capacity { train: 1.0, least: 1, priority, ..Capacity::default() };
        let x_ND = Tensor::zeros((6, 1), DType::F32, &Device::Cpu).unwrap();
        let weight_A = Some(Tensor::new(&[0.1f32, 0.2, 0.9, 0.3, 0.5, 0.4], &Device::Cpu).unwrap());
        let expert_A = vec![0, 0, 0, 0, 1, 0];
        let mut plan = Plan { token_A: (0..6).collect(), expert_A, weight_A, shared_weight_N: None };
        let draw = Draw::new(StepKey { seed: 1, step: 0 }, &[0; 6], 6);
        let context = RouterContext { draw: training.then(|| draw.layer(0)), ..RouterContext::default() };
        Limit { spec, n_experts: 2 }.modify(&x_ND, &mut plan, &mut Aux::default(), &context).unwrap();
        assert_eq!(plan.weight_A.unwrap().dims(), [plan.token_A.len()]);
        plan.token_A
    }

    #[test]
    fn an_expert_takes_three_of_six_tokens_the_first_or_the_likeliest() {
        assert_eq!(kept(Priority::Order, true), [0, 1, 2, 4]);
        assert_eq!(kept(Priority::Probability, true), [2, 3, 4, 5]);
        assert_eq!(kept(Priority::Order, false), [0, 1, 2, 3, 4, 5]);
    }
}
