//! What changes a router's plan or adds to its losses: the seam ([`Modifier`]) and the one table of modifiers.
//!
//! A modifier is one file in `modifier/` and one row of the table below. They act in the order of the configuration, after any router;
//! neither the layer nor the router knows them.

use std::fmt::Debug;

use candle_core::Tensor;

use crate::config::{ModelConfig, MoeConfig, check};
use crate::draw::Stream;
use crate::error::Result;
use crate::methods::methods;
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext};

/// Changes what a router has decided.
pub trait Modifier: Send + Sync + Debug {
    /// `x_ND` are the tokens that enter the layer, float32.
    ///
    /// # Errors
    /// Whatever the device fails with; a plan that the modifier does not fit.
    fn modify(&self, x_ND: &Tensor, plan: &mut Plan, aux: &mut Aux, context: &RouterContext) -> Result<()>;

    /// Experts that a router may choose in this step; none for all.
    fn allowed_E(&self, _context: &RouterContext) -> Option<Vec<bool>> {
        None
    }
}

/// A modifier's options: what its row in the table must offer.
pub trait ModifierSpec: Default {
    const NAME: &'static str;
    /// The source of the method.
    const PAPER: &'static str;
    /// [`ModifierSpec::n_parameters`] as a formula.
    const PARAMETERS: &'static str = "0";
    /// [`ModifierSpec::is_causal`] in words.
    const CAUSAL: &'static str = "yes";

    fn parameters(&self) -> &'static str {
        Self::PARAMETERS
    }

    fn causal(&self) -> &'static str {
        Self::CAUSAL
    }

    /// Weights are asked for below the layer's scope.
    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Modifier>>;
    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()>;
    /// Whether what it does depends on the tokens' values or on parameters.
    fn reads_tokens(&self) -> bool {
        false
    }
    /// Whether it weighs the shared expert's output.
    fn weighs_shared(&self) -> bool {
        false
    }
    /// Whether parts of a batch may be trained on apart: what it does to a token depends on no other, and its loss is a mean over tokens.
    fn is_local(&self) -> bool {
        true
    }
    /// Whether a token's experts still depend on no later token when the model is measured or served.
    fn is_causal(&self) -> bool {
        true
    }
    fn n_parameters(&self, _model: &ModelConfig) -> usize {
        0
    }
}

methods! {
    /// The options of one modifier, tagged by its name (`kind = "eom"`).
    pub enum ModifierConfig: ModifierSpec {
        balance::Balance,
        z_loss::ZLoss,
        importance::Importance,
        capacity::Capacity,
        eom::Eom,
        fom::Fom,
        cmr::Cmr,
        residual::Residual,
        gate_drop::GateDrop,
        cluster::Cluster,
        expert_dropout::ExpertDropout,
    }

    pub fn build(model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Modifier>>;
    pub fn validate(model: &ModelConfig, moe: &MoeConfig) -> Result<()>;
    /// Whether what it does depends on the tokens' values or on parameters.
    pub fn reads_tokens() -> bool;
    /// Whether it weighs the shared expert's output.
    pub fn weighs_shared() -> bool;
    /// Whether what it does to a token depends on no other token while it trains.
    pub fn is_local() -> bool;
    /// Whether a token's experts still depend on no later token when the model is measured or served.
    pub fn is_causal() -> bool;
    pub fn n_parameters(model: &ModelConfig) -> usize;
    pub fn parameters() -> &'static str;
    pub fn causal() -> &'static str;
}

/// A router with what modifies it.
#[derive(Debug)]
pub(crate) struct Modified {
    pub(crate) router: Box<dyn Router>,
    pub(crate) modifiers: Vec<Box<dyn Modifier>>,
}

impl Router for Modified {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let allowed_E = self.modifiers.iter().filter_map(|modifier| modifier.allowed_E(context)).reduce(both);
        let context = RouterContext { allowed_E: allowed_E.as_deref(), ..*context };
        let (mut plan, mut aux) = self.router.plan(x_ND, &context)?;
        for modifier in &self.modifiers {
            modifier.modify(x_ND, &mut plan, &mut aux, &context)?;
        }
        Ok((plan, aux))
    }
}

fn both(a: Vec<bool>, b: Vec<bool>) -> Vec<bool> {
    a.into_iter().zip(b).map(|(a, b)| a && b).collect()
}

/// A chance below 1.
fn check_rate(p: f64, field: &'static str) -> Result<()> {
    check((0.0..1.0).contains(&p), field, p, "0 or more, below 1")
}

/// An error for a router that scores no experts.
fn needs_scores(moe: &MoeConfig, name: &str) -> Result<()> {
    let value = format!("{name} with {}", moe.router.name());
    check(moe.router.has_scores(), "moe.modifiers", value, "a router that scores experts by the tokens")
}

/// An error for a router that does not choose among some of the experts alone.
fn needs_choice(moe: &MoeConfig, name: &str) -> Result<()> {
    let value = format!("{name} with {}", moe.router.name());
    check(moe.router.may_be_restricted(), "moe.modifiers", value, "a router that can choose among some experts alone")
}

/// An error without a shared expert.
fn needs_shared(moe: &MoeConfig, name: &str) -> Result<()> {
    let value = format!("{name} with d_ff_shared = {}", moe.d_ff_shared);
    check(moe.d_ff_shared > 0, "moe.modifiers", value, "a shared expert")
}

/// While training keeps an assignment with the chance `1 - p`, by the number that `number` draws for it; else weighs all with `1 - p`.
fn mask(
    plan: &mut Plan,
    context: &RouterContext,
    p: f64,
    (purpose, number): (&str, impl Fn(&Stream, u32, u32) -> f32),
) -> Result<()> {
    let Some(draw) = context.draw else {
        return plan.scale(1.0 - p);
    };
    let stream = draw.stream(purpose);
    let assignments = plan.token_A.iter().zip(&plan.expert_A);
    let keeps: Vec<bool> = assignments.map(|(&token, &expert)| number(&stream, token, expert) >= p as f32).collect();
    plan.retain(&keeps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{Draw, StepKey};
    use candle_core::Device;

    /// Each of `n` tokens meets the first `s` experts, with like weights.
    pub(super) fn plan_of(n: u32, s: u32) -> Plan {
        let (token_A, expert_A) = ((0..n * s).map(|a| a / s).collect(), (0..n * s).map(|a| a % s).collect());
        let weight_A = Tensor::full(1.0 / s as f32, (n * s) as usize, &Device::Cpu).unwrap();
        Plan { token_A, expert_A, weight_A: Some(weight_A), shared_weight_N: None }
    }

    /// Runs `f` as in a step of training on `n` tokens.
    pub(super) fn with_draw(n: u32, f: impl FnOnce(&RouterContext)) {
        let draw = Draw::new(StepKey { seed: 1, step: 3 }, &(0..n).collect::<Vec<_>>(), n as usize);
        f(&RouterContext { draw: Some(draw.layer(0)), ..RouterContext::default() });
    }

    #[test]
    fn clashes_are_named() {
        let message = |router: &str, modifier: &str| {
            let mut config = crate::config::tests::tiny(Some(serde_json::from_str(router).unwrap()));
            config.moe.as_mut().unwrap().modifiers = vec![serde_json::from_str(modifier).unwrap()];
            config.validate().unwrap_err().to_string()
        };
        let hard = r#"{"kind": "pl_hard"}"#;
        let error = message(hard, r#"{"kind": "balance"}"#);
        assert!(error.contains("moe.modifiers = balance with pl_hard: expected a router that scores"), "{error}");
        let error = message(hard, r#"{"kind": "capacity"}"#);
        assert!(error.contains("capacity with pl_hard"), "{error}");
        let error = message(hard, r#"{"kind": "gate_drop"}"#);
        assert!(error.contains("gate_drop local with pl_hard"), "{error}");
        // A token of one language was given another's expert.
        let error = message(r#"{"kind": "pl_group"}"#, r#"{"kind": "gate_drop"}"#);
        assert!(error.contains("gate_drop local with pl_group: expected mode = \"skip\""), "{error}");
        let error = message(r#"{"kind": "token"}"#, r#"{"kind": "eom", "p": 1.0}"#);
        assert!(error.contains("moe.modifiers.eom.p = 1: expected 0 or more, below 1"), "{error}");
    }
}
