//! Expert output masking: while training, the output of each expert for each token is zero by chance.
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

/// Options of the modifier `eom`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eom {
    /// Chance of a zero.
    pub p: f64,
}

impl Default for Eom {
    fn default() -> Self {
        Eom { p: 0.2 }
    }
}

impl ModifierSpec for Eom {
    const NAME: &'static str = "eom";
    const PAPER: &'static str = "Elbayad et al. 2023, arXiv 2212.07571";

    fn build(&self, _model: &ModelConfig, _moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(self.clone()))
    }

    fn validate(&self, _model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        check_rate(self.p, "moe.modifiers.eom.p")
    }
}

impl Modifier for Eom {
    fn modify(&self, _x_ND: &Tensor, plan: &mut Plan, _aux: &mut Aux, context: &RouterContext) -> Result<()> {
        mask(plan, context, self.p, ("eom", |stream, token, expert| stream.token(token as usize, expert as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plan_of, with_draw};
    use super::*;

    #[test]
    fn outputs_are_masked_one_by_one_while_training_and_weighed_afterwards() {
        let x_ND = crate::ops::tests::values(&[1000, 2], 1);
        let eom = Eom { p: 0.2 };
        let mut plan = plan_of(1000, 2);
        with_draw(1000, |context| eom.modify(&x_ND, &mut plan, &mut Aux::default(), context).unwrap());
        let kept = plan.token_A.len();
        assert!((1550..1650).contains(&kept), "{kept} of 2000");
        let alone = (0..1000).filter(|token| plan.token_A.iter().filter(|of| *of == token).count() == 1).count();
        assert!((280..360).contains(&alone), "{alone} of 1000 tokens have one of two experts: 320 expected");

        let mut plan = plan_of(3, 2);
        eom.modify(&x_ND, &mut plan, &mut Aux::default(), &RouterContext::default()).unwrap();
        let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        assert!(weight_A.iter().all(|weight| (weight - 0.4).abs() < 1e-6), "{weight_A:?}");
    }
}
