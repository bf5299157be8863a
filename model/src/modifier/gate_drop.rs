//! Gating dropout: in some steps of training no token travels to experts elsewhere.
//!
//! Liu et al. 2022 (arXiv 2205.14336). One coin that all ranks throw alike, for the step or for each layer. Heads: tokens stay with the
//! experts of their own rank (`local`) or meet no expert (`skip`). Which local expert a token meets is a rule of ours to choose: the one at
//! the same place among its rank's, by the weight of the one that was meant (`alias`, as the released code of NLLB does), or that which the
//! router likes best among them (`reroute`). Of a model on one rank all experts are local, and `local` changes nothing.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, check_rate, needs_choice};
use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext};

/// What a token meets instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Experts of its own rank.
    #[default]
    Local,
    /// None.
    Skip,
}

/// Which of its own rank's experts a token meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The one with the number that is left over, by the weight of the one that was meant; losses are those of what was meant.
    #[default]
    Alias,
    /// The likeliest of them, as if there were no others.
    Reroute,
}

/// For what a coin is thrown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    #[default]
    Step,
    Layer,
}

/// Options of the modifier `gate_drop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateDrop {
    /// Chance that tokens do not travel.
    pub p: f64,
    pub mode: Mode,
    /// With `mode = "local"`.
    pub rule: Rule,
    pub decision: Decision,
}

impl Default for GateDrop {
    fn default() -> Self {
        GateDrop { p: 0.3, mode: Mode::Local, rule: Rule::Alias, decision: Decision::Step }
    }
}

impl ModifierSpec for GateDrop {
    const NAME: &'static str = "gate_drop";
    const PAPER: &'static str = "Liu et al. 2022, arXiv 2205.14336";

    fn build(&self, _model: &ModelConfig, _moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(self.clone()))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        check_rate(self.p, "moe.modifiers.gate_drop.p")?;
        if self.mode == Mode::Local && self.rule == Rule::Reroute {
            needs_choice(moe, "gate_drop reroute")?;
            let (n, drops) =
                (moe.router.n_selected(), moe.modifiers.iter().any(|other| other.name() == "expert_dropout"));
            check(
                n == 1,
                "moe.modifiers",
                format!("gate_drop reroute with {n} experts a token"),
                "one expert a token",
            )?;
            check(
                !drops,
                "moe.modifiers",
                "gate_drop reroute with expert_dropout",
                "one of them: both may leave a rank no expert",
            )?;
        }
        let fits = self.mode == Mode::Skip || !moe.router.is_confined();
        let value = format!("gate_drop local with {}", moe.router.name());
        check(fits, "moe.modifiers", value, "mode = \"skip\", for a language's tokens have no other expert")
    }
}

impl GateDrop {
    fn is_dropped(&self, context: &RouterContext) -> bool {
        let Some(draw) = context.draw else { return false };
        let stream = draw.stream("gate drop");
        let coin = match self.decision {
            Decision::Step => stream.step(),
            Decision::Layer => stream.layer(),
        };
        coin < self.p as f32
    }
}

/// The rank of each expert and the rank here, where experts are on several.
fn owners<'a>(context: &RouterContext<'a>) -> Option<(&'a [usize], usize)> {
    let exchange = context.exchange?;
    Some((exchange.owner_of_expert()?, exchange.rank()))
}

impl Modifier for GateDrop {
    fn modify(&self, _x_ND: &Tensor, plan: &mut Plan, _aux: &mut Aux, context: &RouterContext) -> Result<()> {
        match (self.mode, self.rule, owners(context)) {
            _ if !self.is_dropped(context) => {}
            (Mode::Skip, ..) => plan.drop_assignments(),
            (Mode::Local, Rule::Alias, Some((owner_E, rank))) => {
                let mine: Vec<u32> = (0..owner_E.len() as u32).filter(|&e| owner_E[e as usize] == rank).collect();
                if mine.is_empty() {
                    plan.drop_assignments();
                }
                plan.expert_A.iter_mut().for_each(|expert| *expert = mine[*expert as usize % mine.len()]);
            }
            (Mode::Local, ..) => {}
        }
        Ok(())
    }

    fn allowed_E(&self, context: &RouterContext) -> Option<Vec<bool>> {
        let is_rerouted = self.mode == Mode::Local && self.rule == Rule::Reroute && self.is_dropped(context);
        let (owner_E, rank) = owners(context).filter(|_| is_rerouted)?;
        Some(owner_E.iter().map(|owner| *owner == rank).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan_of;
    use super::*;
    use crate::draw::{Draw, StepKey};
    use crate::exchange::tests::FakeRank;

    #[test]
    fn three_steps_of_ten_are_skipped_by_all_layers_or_by_some() {
        let x_ND = crate::ops::tests::values(&[4, 2], 1);
        let dropped = |decision: Decision, layer: usize| -> Vec<bool> {
            let modifier = GateDrop { mode: Mode::Skip, decision, ..GateDrop::default() };
            let is_dropped = |step: u64| {
                let draw = Draw::new(StepKey { seed: 1, step }, &[1, 2, 3, 4], 4);
                let context = RouterContext { draw: Some(draw.layer(layer)), ..RouterContext::default() };
                let mut plan = plan_of(4, 1);
                modifier.modify(&x_ND, &mut plan, &mut Aux::default(), &context).unwrap();
                plan.token_A.is_empty()
            };
            (0..1000).map(is_dropped).collect()
        };
        let steps = dropped(Decision::Step, 0);
        let n = steps.iter().filter(|dropped| **dropped).count();
        assert!((260..340).contains(&n), "{n} of 1000");
        assert_eq!(steps, dropped(Decision::Step, 1));
        assert_ne!(dropped(Decision::Layer, 0), dropped(Decision::Layer, 1));
    }

    #[test]
    fn tokens_stay_with_experts_of_their_own_rank_by_either_rule() {
        let draw = Draw::new(StepKey { seed: 1, step: 0 }, &[1, 2, 3, 4], 4);
        let second = FakeRank { rank: 1, owner_of_expert: vec![0, 0, 1, 1] };
        let context = RouterContext { draw: Some(draw.layer(0)), exchange: Some(&second), ..RouterContext::default() };
        let modifier = |rule| GateDrop { p: 0.999, rule, ..GateDrop::default() };
        let mut plan = plan_of(4, 1);
        plan.expert_A = vec![0, 1, 2, 3];
        let (x_ND, mut aux) = (crate::ops::tests::values(&[4, 2], 1), Aux::default());
        modifier(Rule::Alias).modify(&x_ND, &mut plan, &mut aux, &context).unwrap();
        assert_eq!(plan.expert_A, [2, 3, 2, 3]);
        assert!(modifier(Rule::Alias).allowed_E(&context).is_none());
        assert_eq!(modifier(Rule::Reroute).allowed_E(&context), Some(vec![false, false, true, true]));
        let alone = RouterContext { exchange: None, ..context };
        assert!(modifier(Rule::Reroute).allowed_E(&alone).is_none());
        let measured = RouterContext { draw: None, ..context };
        assert!(modifier(Rule::Reroute).allowed_E(&measured).is_none());
    }
}
