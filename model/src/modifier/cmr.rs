//! Conditional routing: a gate shares a token out between the shared expert and the others, within a budget.
//!
//! Elbayad, Sun and Bhosale 2023 (arXiv 2212.07571): `y = (1 - g) FFN_shared(x) + g MoE(x)`, `g = σ(w·x)`, and the loss
//! `coefficient · |mean(g) - budget|`; languages with a budget of their own count apart, each by its share of the tokens. While training `g` is zero by chance: a plain mask, for ordinary dropout (as in their code) lets it
//! exceed one.

use std::collections::BTreeMap;

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, check_rate, needs_shared};
use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::{Init, Params};
use crate::router::scores::sigmoid;
use crate::router::{Aux, Plan, RouterContext};

/// Options of the modifier `cmr`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cmr {
    /// Chance that a token meets the shared expert alone, while training.
    pub p: f64,
    /// What the gate is to be on average.
    pub budget: f64,
    /// The same for languages that have one of their own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub budgets: BTreeMap<String, f64>,
    /// Of the loss for missing it.
    pub coefficient: f64,
}

impl Default for Cmr {
    fn default() -> Self {
        Cmr { p: 0.1, budget: 0.8, budgets: BTreeMap::new(), coefficient: 0.1 }
    }
}

impl ModifierSpec for Cmr {
    const NAME: &'static str = "cmr";
    const PAPER: &'static str = "Elbayad et al. 2023, arXiv 2212.07571";
    const PARAMETERS: &'static str = "D";

    fn build(&self, model: &ModelConfig, _moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Modifier>> {
        let w_1D = params.get("modifiers.cmr.weight", &[1, model.d_model], Init::Zero)?;
        let own = |name: &String| self.budgets.get(name).copied();
        Ok(Box::new(Gate { w_1D, spec: self.clone(), budgets: model.languages.iter().map(own).collect() }))
    }

    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        check_rate(self.p, "moe.modifiers.cmr.p")?;
        check((0.0..=1.0).contains(&self.budget), "moe.modifiers.cmr.budget", self.budget, "0 to 1")?;
        for (name, budget) in &self.budgets {
            let known = format!("names of languages = {:?}", model.languages);
            check(model.languages.contains(name), "moe.modifiers.cmr.budgets", name, &known)?;
            let value = format!("{name} = {budget}");
            check((0.0..=1.0).contains(budget), "moe.modifiers.cmr.budgets", value, "0 to 1")?;
        }
        needs_shared(moe, Self::NAME)
    }

    fn reads_tokens(&self) -> bool {
        true
    }

    fn weighs_shared(&self) -> bool {
        true
    }

    fn n_parameters(&self, model: &ModelConfig) -> usize {
        model.d_model
    }

    fn is_local(&self) -> bool {
        // The loss is a mean's distance.
        false
    }
}

#[derive(Debug)]
struct Gate {
    w_1D: Tensor,
    spec: Cmr,
    /// By language, its own budget.
    budgets: Vec<Option<f64>>,
}

impl Gate {
    /// How far the gate is from its budgets, on average. Shape: `N` -> a scalar.
    fn miss(&self, gate_N: &Tensor, language_N: &[u32]) -> Result<Tensor> {
        if self.spec.budgets.is_empty() {
            return Ok(gate_N.mean_all()?.affine(1.0, -self.spec.budget)?.abs()?);
        }
        let own = |language: u32| self.budgets.get(language as usize).copied().flatten();
        // Languages with the common budget are one group.
        let mut groups: BTreeMap<Option<u32>, Vec<u32>> = BTreeMap::new();
        for (token, &language) in (0..).zip(language_N) {
            groups.entry(own(language).map(|_| language)).or_default().push(token);
        }
        let n = language_N.len() as f64;
        let mut sum = Tensor::zeros((), gate_N.dtype(), gate_N.device())?;
        for (language, tokens) in groups {
            let budget = language.and_then(own).unwrap_or(self.spec.budget);
            let share = tokens.len() as f64 / n;
            let mean = gate_N.index_select(&Tensor::new(tokens, gate_N.device())?, 0)?.mean_all()?;
            sum = (sum + (mean.affine(1.0, -budget)?.abs()? * share)?)?;
        }
        Ok(sum)
    }
}

impl Modifier for Gate {
    fn modify(&self, x_ND: &Tensor, plan: &mut Plan, aux: &mut Aux, context: &RouterContext) -> Result<()> {
        let gate_N = sigmoid(&x_ND.broadcast_mul(&self.w_1D)?.sum(D::Minus1)?)?;
        aux.add((self.miss(&gate_N, context.language_N)? * self.spec.coefficient)?)?;
        let gate_N = match context.draw {
            Some(draw) => {
                let stream = draw.stream("cmr");
                let keeps = |n: usize| f32::from(u8::from(stream.token(n, 0) >= self.spec.p as f32));
                let mask_N: Vec<f32> = (0..gate_N.elem_count()).map(keeps).collect();
                gate_N.mul(&Tensor::new(mask_N, x_ND.device())?)?
            }
            None => gate_N,
        };
        plan.share_out(&gate_N)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plan_of, with_draw};
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_gate_and_what_is_left_add_up_to_one_also_under_the_mask() {
        let w_1D = Tensor::new(&[[1f32, 0.0]], &Device::Cpu).unwrap();
        let gate = Gate { w_1D, spec: Cmr { p: 0.5, ..Cmr::default() }, budgets: Vec::new() };
        let x_ND = crate::ops::tests::values(&[200, 2], 1);
        let (mut plan, mut aux) = (plan_of(200, 2), Aux::default());
        with_draw(200, |context| gate.modify(&x_ND, &mut plan, &mut aux, context).unwrap());
        let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        let shared_N = plan.shared_weight_N.unwrap().to_vec1::<f32>().unwrap();
        for (n, shared) in shared_N.iter().enumerate() {
            assert!((weight_A[2 * n] + weight_A[2 * n + 1] + shared - 1.0).abs() < 1e-6);
        }
        let masked = shared_N.iter().filter(|shared| **shared == 1.0).count();
        assert!((70..130).contains(&masked), "{masked} of 200 meet the shared expert alone");
        // |mean of sigmoids - 0.8| · 0.1, of the gate before the mask.
        let x = x_ND.to_vec2::<f32>().unwrap();
        let mean = x.iter().map(|x| 1.0 / (1.0 + (-x[0]).exp())).sum::<f32>() / 200.0;
        let loss = aux.loss.unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 0.1 * (mean - 0.8).abs()).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn a_language_has_a_budget_of_its_own() {
        let budgets = BTreeMap::from([("lua".to_owned(), 0.2)]);
        let spec = Cmr { budgets, ..Cmr::default() };
        let w_1D = Tensor::zeros((1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let gate = Gate { w_1D, spec, budgets: vec![None, Some(0.2)] };
        let gate_N = Tensor::new(&[0.5f32, 0.9, 0.4, 0.1], &Device::Cpu).unwrap();
        let miss = gate.miss(&gate_N, &[0, crate::UNKNOWN_LANGUAGE, 1, 1]).unwrap().to_scalar::<f32>().unwrap();
        // (0.5 + 0.9) / 2 is 0.1 from 0.8, (0.4 + 0.1) / 2 is 0.05 from 0.2.
        assert!((miss - 0.075).abs() < 1e-6, "{miss}");
        let mut config = crate::config::tests::tiny(Some(crate::RouterConfig::all().remove(4)));
        let modifier = serde_json::from_str(r#"{"kind": "cmr", "budgets": {"cobol": 0.5}}"#).unwrap();
        config.moe.as_mut().unwrap().modifiers = vec![modifier];
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("moe.modifiers.cmr.budgets = cobol"), "{error}");
    }
}
