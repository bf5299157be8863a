//! The clustering loss: experts of one cluster are to be chosen alike, and the best cluster apart from the others.
//!
//! Xie et al. 2023 (MoEC, arXiv 2207.09094). Of the mean probabilities `P` of the experts: the mean over clusters of the variance within,
//! times `E²` so that it does not depend on the number of experts, divided by `exp(E (best - second))` of the clusters' means where `apart`
//! says so. (Their released code takes sums over tokens instead of means, so that its loss grows with the batch.)

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, needs_scores};
use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext};

/// Options of the modifier `cluster`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Number of clusters: neighbours in the order of experts.
    pub clusters: usize,
    pub coefficient: f64,
    /// Whether the best cluster is to be apart from the second.
    pub apart: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster { clusters: 2, coefficient: 0.01, apart: false }
    }
}

impl ModifierSpec for Cluster {
    const NAME: &'static str = "cluster";
    const PAPER: &'static str = "Xie et al. 2023, arXiv 2207.09094";

    fn build(&self, _model: &ModelConfig, _moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        Ok(Box::new(self.clone()))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        check_clusters(self.clusters, moe, "moe.modifiers.cluster.clusters")?;
        needs_scores(moe, Self::NAME)
    }

    fn is_local(&self) -> bool {
        // The loss is a variance of means.
        false
    }
}

/// Clusters must be as large as each other.
pub(super) fn check_clusters(clusters: usize, moe: &MoeConfig, field: &'static str) -> Result<()> {
    let expected = format!("a divisor of n_experts = {}", moe.n_experts);
    check(clusters > 0 && moe.n_experts.is_multiple_of(clusters), field, clusters, &expected)
}

impl Modifier for Cluster {
    fn modify(&self, _x_ND: &Tensor, _plan: &mut Plan, aux: &mut Aux, _context: &RouterContext) -> Result<()> {
        let Some(scores) = &aux.scores else { return Ok(()) };
        let loss = self.loss(&scores.probs_NE)?;
        aux.add(loss)
    }
}

impl Cluster {
    fn loss(&self, probs_NE: &Tensor) -> Result<Tensor> {
        let e = probs_NE.dim(1)? as f64;
        let mean_CE = probs_NE.mean(0)?.reshape((self.clusters, ()))?;
        let mean_C = mean_CE.mean_keepdim(1)?;
        let within = mean_CE.broadcast_sub(&mean_C)?.sqr()?.mean(D::Minus1)?.mean_all()?;
        let within = (within * (e * e * self.coefficient))?;
        if !self.apart || self.clusters < 2 {
            return Ok(within);
        }
        let mean_C = mean_C.squeeze(1)?;
        let mut order: Vec<(u32, f32)> = (0..).zip(mean_C.to_vec1::<f32>()?).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        let of = |cluster: u32| mean_C.narrow(0, cluster as usize, 1);
        let gap = ((of(order[0].0)? - of(order[1].0)?)? * e)?.squeeze(0)?;
        Ok(within.div(&gap.exp()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_loss_is_the_variance_within_clusters() {
        let probs_NE =
            Tensor::new(&[[0.1f32, 0.3, 0.4, 0.2], [0.3, 0.1, 0.2, 0.4], [0.2, 0.2, 0.5, 0.1]], &Device::Cpu);
        let loss = |apart| {
            let cluster = Cluster { clusters: 2, coefficient: 1.0, apart };
            cluster.loss(probs_NE.as_ref().unwrap()).unwrap().to_scalar::<f32>().unwrap()
        };
        // Means 0.2, 0.2 and 1.1/3, 0.7/3: variances 0 and (0.2/3)², times 16, halved.
        let within = 16.0 * (0.2f32 / 3.0).powi(2) / 2.0;
        assert!((loss(false) - within).abs() < 1e-5, "{} {within}", loss(false));
        assert!((loss(true) - within / (4.0f32 * 0.1).exp()).abs() < 1e-5, "{}", loss(true));
    }
}
