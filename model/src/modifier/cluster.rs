//! The clustering loss: experts of one cluster are to be chosen alike, and the best cluster apart from the others.
//!
//! Xie et al. 2023 (MoEC, arXiv 2207.09094). Clusters are neighbours in the order of experts, or the experts of families of languages. Of the
//! mean probabilities `P` of the experts: the mean over clusters of the variance within, times `E²` so that it does not depend on the number of experts, divided by `exp(E (best - second))` of the clusters' means where `apart`
//! says so. (Their released code takes sums over tokens instead of means, so that its loss grows with the batch.)

use std::collections::BTreeSet;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Modifier, ModifierSpec, needs_scores};
use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, RouterContext};

/// Which experts belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Clusters {
    /// So many of as many neighbours.
    Number(usize),
    /// Those of the languages of each family; experts of no language are one more.
    Families(Vec<Vec<String>>),
}

impl Clusters {
    /// # Errors
    /// [`crate::Error::Config`] for clusters that are not as large as each other; a language that the model does not have; an expert of
    /// languages of two families.
    pub(super) fn check(&self, model: &ModelConfig, moe: &MoeConfig, field: &'static str) -> Result<()> {
        let families = match self {
            Clusters::Number(n) => {
                let expected = format!("a divisor of n_experts = {}", moe.n_experts);
                return check(*n > 0 && moe.n_experts.is_multiple_of(*n), field, n, &expected);
            }
            Clusters::Families(families) => families,
        };
        check(!families.is_empty(), field, "[]", "one family of languages at least")?;
        let unknown = families.iter().flatten().find(|name| !model.languages.contains(name));
        let expected = format!("languages of the model: {}", model.languages.join(", "));
        check(unknown.is_none(), field, unknown.map_or("", |name| name), &expected)?;
        let all: Vec<usize> = self.members(model, moe).into_iter().flatten().collect();
        let expected = "each expert in one family, and a language in each family";
        let is_divided = all.len() == moe.n_experts && families.iter().all(|family| !family.is_empty());
        check(is_divided, field, format!("{families:?}"), expected)
    }

    /// The experts of each cluster.
    pub(super) fn members(&self, model: &ModelConfig, moe: &MoeConfig) -> Vec<Vec<usize>> {
        let families = match self {
            Clusters::Number(n) => {
                let all: Vec<usize> = (0..moe.n_experts).collect();
                return all.chunks(moe.n_experts / n.max(&1)).map(<[usize]>::to_vec).collect();
            }
            Clusters::Families(families) => families,
        };
        let expert_of_language = model.expert_of_language_in(moe);
        let experts = |family: &Vec<String>| -> BTreeSet<usize> {
            let named = model.languages.iter().zip(&expert_of_language).filter(|(name, _)| family.contains(name));
            named.map(|(_, &expert)| expert).collect()
        };
        let mut members: Vec<Vec<usize>> =
            families.iter().map(|family| experts(family).into_iter().collect()).collect();
        let rest: Vec<usize> =
            (0..moe.n_experts).filter(|expert| !members.iter().flatten().any(|e| e == expert)).collect();
        members.extend((!rest.is_empty()).then_some(rest));
        members
    }
}

/// Options of the modifier `cluster`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// A number of clusters, or families of languages.
    pub clusters: Clusters,
    pub coefficient: f64,
    /// Whether the best cluster is to be apart from the second.
    pub apart: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster { clusters: Clusters::Number(2), coefficient: 0.01, apart: false }
    }
}

impl ModifierSpec for Cluster {
    const NAME: &'static str = "cluster";
    const PAPER: &'static str = "Xie et al. 2023, arXiv 2207.09094";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, _params: &mut Params) -> Result<Box<dyn Modifier>> {
        let members = self.clusters.members(model, moe);
        let members = members.into_iter().map(|members| members.into_iter().map(|e| e as u32).collect()).collect();
        Ok(Box::new(ClusterLoss { members, coefficient: self.coefficient, apart: self.apart }))
    }

    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        self.clusters.check(model, moe, "moe.modifiers.cluster.clusters")?;
        needs_scores(moe, Self::NAME)
    }

    fn is_local(&self) -> bool {
        // The loss is a variance of means.
        false
    }
}

/// The experts of each cluster, and what the loss is.
#[derive(Debug)]
struct ClusterLoss {
    members: Vec<Vec<u32>>,
    coefficient: f64,
    apart: bool,
}

impl Modifier for ClusterLoss {
    fn modify(&self, _x_ND: &Tensor, _plan: &mut Plan, aux: &mut Aux, _context: &RouterContext) -> Result<()> {
        let Some(scores) = &aux.scores else { return Ok(()) };
        let loss = self.loss(&scores.probs_NE)?;
        aux.add(loss)
    }
}

impl ClusterLoss {
    fn loss(&self, probs_NE: &Tensor) -> Result<Tensor> {
        let (e, mean_E) = (probs_NE.dim(1)? as f64, probs_NE.mean(0)?);
        let (mut means, mut variances) = (Vec::new(), Vec::new());
        for members in &self.members {
            let of_cluster = mean_E.index_select(&Tensor::new(members.as_slice(), mean_E.device())?, 0)?;
            let mean = of_cluster.mean_keepdim(0)?;
            variances.push(of_cluster.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?);
            means.push(mean);
        }
        let within = (Tensor::cat(&variances, 0)?.mean_all()? * (e * e * self.coefficient))?;
        if !self.apart || means.len() < 2 {
            return Ok(within);
        }
        let host: Vec<f32> = Tensor::cat(&means, 0)?.to_vec1()?;
        let mut order: Vec<usize> = (0..host.len()).collect();
        order.sort_by(|&a, &b| host[b].total_cmp(&host[a]));
        let gap = ((&means[order[0]] - &means[order[1]])? * e)?.squeeze(0)?;
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
            let cluster = ClusterLoss { members: vec![vec![0, 1], vec![2, 3]], coefficient: 1.0, apart };
            cluster.loss(probs_NE.as_ref().unwrap()).unwrap().to_scalar::<f32>().unwrap()
        };
        // Means 0.2, 0.2 and 1.1/3, 0.7/3: variances 0 and (0.2/3)², times 16, halved.
        let within = 16.0 * (0.2f32 / 3.0).powi(2) / 2.0;
        assert!((loss(false) - within).abs() < 1e-5, "{} {within}", loss(false));
        assert!((loss(true) - within / (4.0f32 * 0.1).exp()).abs() < 1e-5, "{}", loss(true));
    }

    #[test]
    fn families_are_the_experts_of_their_languages() {
        let mut config = crate::config::tests::tiny(Some(serde_json::from_str(r#"{"kind": "token"}"#).unwrap()));
        let members = |clusters: &str| {
            let clusters: Clusters = serde_json::from_str(clusters).unwrap();
            clusters.members(&config, config.moe.as_ref().unwrap())
        };
        // Experts of python, lua and go, and one of no language.
        assert_eq!(members("2"), [[0, 1], [2, 3]]);
        assert_eq!(members(r#"[["python", "go"], ["lua"]]"#), [vec![0, 2], vec![1], vec![3]]);

        let mut message = |clusters: &str| {
            let modifier = format!(r#"{{"kind": "cluster", "clusters": {clusters}}}"#);
            config.moe.as_mut().unwrap().modifiers = vec![serde_json::from_str(&modifier).unwrap()];
            config.validate().err().map_or_else(String::new, |error| error.to_string())
        };
        assert_eq!(message(r#"[["python", "go"], ["lua"]]"#), "");
        assert!(message("3").contains("moe.modifiers.cluster.clusters = 3: expected a divisor of n_experts = 4"));
        assert!(
            message(r#"[["cobol"]]"#).contains("clusters = cobol: expected languages of the model: python, lua, go")
        );
        assert!(message(r#"[["python"], ["python", "lua"]]"#).contains("expected each expert in one family"));
        assert!(message("[[]]").contains("a language in each family") && message("[]").contains("one family"));
    }
}
