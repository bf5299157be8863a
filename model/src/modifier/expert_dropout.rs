//! Cluster-level expert dropout: while training some experts of each cluster may not be chosen, and the others take their tokens.
//!
//! Xie et al. 2023 (MoEC, arXiv 2207.09094): a share of each cluster's experts, at least one of which survives, drawn anew from time to
//! time. (Their released code draws among all experts, and while the model is measured, too.)

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::cluster::Clusters;
use super::{Modifier, ModifierSpec, check_rate, needs_choice};
use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext};

/// Options of the modifier `expert_dropout`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpertDropout {
    /// A number of clusters, or families of languages.
    pub clusters: Clusters,
    /// Share of a cluster's experts that may not be chosen.
    pub rate: f64,
    /// Steps until others are drawn.
    pub period: u64,
}

impl Default for ExpertDropout {
    fn default() -> Self {
        ExpertDropout { clusters: Clusters::Number(2), rate: 0.5, period: 250 }
    }
}

impl ModifierSpec for ExpertDropout {
    const NAME: &'static str = "expert_dropout";
    const PAPER: &'static str = "Xie et al. 2023, arXiv 2207.09094";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(Dropout { spec: self.clone(), members: self.clusters.members(model, moe) }))
    }

    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        self.clusters.check(model, moe, "moe.modifiers.expert_dropout.clusters")?;
        check_rate(self.rate, "moe.modifiers.expert_dropout.rate")?;
        check(self.period > 0, "moe.modifiers.expert_dropout.period", self.period, "a positive number of steps")?;
        needs_choice(moe, Self::NAME)
    }
}

#[derive(Debug)]
struct Dropout {
    spec: ExpertDropout,
    /// The experts of each cluster.
    members: Vec<Vec<usize>>,
}

impl Modifier for Dropout {
    fn modify(&self, _: &Tensor, _: &mut Plan, _: &mut Aux, _: &RouterContext) -> Result<()> {
        Ok(())
    }

    fn allowed_E(&self, context: &RouterContext) -> Option<Vec<bool>> {
        let stream = context.draw?.stream("expert dropout");
        let mut allowed_E = vec![true; self.members.iter().map(Vec::len).sum()];
        for members in &self.members {
            let n_dropped = ((members.len() as f64 * self.spec.rate).round() as usize).min(members.len() - 1);
            let mut order = members.clone();
            let number = |expert: usize| stream.period(self.spec.period, expert as u64);
            order.sort_by(|&a, &b| number(a).total_cmp(&number(b)));
            order[..n_dropped].iter().for_each(|&expert| allowed_E[expert] = false);
        }
        Some(allowed_E)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{Draw, StepKey};

    #[test]
    fn of_each_cluster_half_survive_for_a_while_and_all_when_measured() {
        let members = [0, 4].map(|first| (first..first + 4).collect()).to_vec();
        let dropout =
            |rate| Dropout { spec: ExpertDropout { rate, ..ExpertDropout::default() }, members: members.clone() };
        let allowed = |rate, step| {
            let draw = Draw::new(StepKey { seed: 1, step }, &[1], 1);
            dropout(rate).allowed_E(&RouterContext { draw: Some(draw.layer(0)), ..RouterContext::default() }).unwrap()
        };
        let survivors =
            |allowed_E: &[bool]| [0, 4].map(|first| allowed_E[first..first + 4].iter().filter(|x| **x).count());
        assert_eq!(survivors(&allowed(0.5, 0)), [2, 2]);
        assert_eq!(survivors(&allowed(0.99, 0)), [1, 1]);
        assert_eq!(allowed(0.5, 0), allowed(0.5, 249));
        assert!((1..8).any(|period| allowed(0.5, 250 * period) != allowed(0.5, 0)));
        assert_eq!(dropout(0.5).allowed_E(&RouterContext::default()), None);
    }
}
