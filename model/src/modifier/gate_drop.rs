//! Gating dropout: in some steps of training no token travels to experts elsewhere.
//!
//! Liu et al. 2022 (arXiv 2205.14336). One coin that all ranks throw alike, for the step or for each layer. Heads: tokens stay with the
//! experts of their own rank (`local`: by the same weight those with the number that is left over, as the released code of NLLB does) or
//! meet no expert (`skip`). Of a model on one rank all experts are local, and `local` changes nothing.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, check_rate};
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
    pub decision: Decision,
}

impl Default for GateDrop {
    fn default() -> Self {
        GateDrop { p: 0.3, mode: Mode::Local, decision: Decision::Step }
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
        let fits = self.mode == Mode::Skip || !moe.router.is_by_language();
        let value = format!("gate_drop local with {}", moe.router.name());
        check(fits, "moe.modifiers", value, "mode = \"skip\", for a language's tokens have no other expert")
    }
}

impl Modifier for GateDrop {
    fn modify(&self, _x_ND: &Tensor, plan: &mut Plan, _aux: &mut Aux, context: &RouterContext) -> Result<()> {
        let Some(draw) = context.draw else { return Ok(()) };
        let stream = draw.stream("gate drop");
        let coin = match self.decision {
            Decision::Step => stream.step(),
            Decision::Layer => stream.layer(),
        };
        if coin >= self.p as f32 {
            return Ok(());
        }
        match self.mode {
            Mode::Skip => plan.drop_assignments(),
            Mode::Local => {
                let Some(exchange) = context.exchange else { return Ok(()) };
                let Some(owner_E) = exchange.owner_of_expert() else { return Ok(()) };
                let mine: Vec<u32> =
                    (0..owner_E.len() as u32).filter(|&e| owner_E[e as usize] == exchange.rank()).collect();
                plan.expert_A.iter_mut().for_each(|expert| *expert = mine[*expert as usize % mine.len().max(1)]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan_of;
    use super::*;
    use crate::draw::{Draw, StepKey};

    #[test]
    fn three_steps_of_ten_are_skipped_by_all_layers_or_by_some() {
        let x_ND = crate::ops::tests::values(&[4, 2], 1);
        let dropped = |decision: Decision, layer: usize| -> Vec<bool> {
            let modifier = GateDrop { p: 0.3, mode: Mode::Skip, decision };
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
}
