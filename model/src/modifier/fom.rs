//! Final output masking: while training, what all its experts together say of a token is zero by chance. A shared expert still speaks.
//!
//! Elbayad, Sun and Bhosale 2023 (arXiv 2212.07571). Not inverted dropout: what is left is not scaled up, and a measured model weighs every
//! output with `1 - p`, as in their code.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, check_rate, mask};
use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext};

/// Options of the modifier `fom`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fom {
    /// Chance of a zero.
    pub p: f64,
}

impl Default for Fom {
    fn default() -> Self {
        Fom { p: 0.2 }
    }
}

impl ModifierSpec for Fom {
    const NAME: &'static str = "fom";
    const PAPER: &'static str = "Elbayad et al. 2023, arXiv 2212.07571";

    fn build(&self, _model: &ModelConfig, _moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(self.clone()))
    }

    fn validate(&self, _model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        check_rate(self.p, "moe.modifiers.fom.p")
    }
}

impl Modifier for Fom {
    fn modify(&self, _x_ND: &Tensor, plan: &mut Plan, _aux: &mut Aux, context: &RouterContext) -> Result<()> {
        mask(plan, context, self.p, ("fom", |stream, token, _| stream.token(token as usize, 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plan_of, with_draw};
    use super::*;

    #[test]
    fn a_token_loses_all_its_experts_or_none() {
        let x_ND = crate::ops::tests::values(&[1000, 2], 1);
        let mut plan = plan_of(1000, 2);
        with_draw(1000, |context| Fom { p: 0.2 }.modify(&x_ND, &mut plan, &mut Aux::default(), context).unwrap());
        assert!((1540..1660).contains(&plan.token_A.len()), "{} of 2000", plan.token_A.len());
        assert!(plan.token_A.chunks(2).all(|pair| pair[0] == pair[1]), "{:?}", plan.token_A);
    }
}
