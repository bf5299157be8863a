//! Who trains which sequence and who owns which expert. Every rank computes the same layout from the configuration alone.

use multicoder_model::CodeLm;

use super::wire::even_spans;
use super::{Mode, ParallelConfig};
use crate::config::RunConfig;
use crate::data::packer::Sequence;

/// What falls to one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    rank: usize,
    world: usize,
    /// The rank that trains a language, where languages decide; by index into the texts.
    rank_of_language: Option<Vec<usize>>,
    /// The rank that has each expert; `None` where all have all.
    pub(super) owner_of_expert: Option<Vec<usize>>,
    /// The rank that has each parameter, in the model's order; `None` for one that all have.
    owner_of_parameter: Vec<Option<usize>>,
}

impl Layout {
    /// The layout of a run over `world` ranks whose languages are drawn with `language_probs`, in the order of the texts.
    pub fn new(config: &RunConfig, lm: &CodeLm, language_probs: &[f64], rank: usize, world: usize) -> Layout {
        let n_experts = config.model.moe.as_ref().map_or(0, |moe| moe.n_experts);
        let ParallelConfig { mode, .. } = config.parallel;
        let experts = experts_of_texts(config);
        let owner_of_expert = match mode {
            Mode::Single | Mode::Data => None,
            Mode::Expert => Some(even_owners(n_experts, world)),
            Mode::LanguageOwned => Some(balanced_owners(&expert_loads(&experts, language_probs, n_experts), world)),
        };
        let rank_of_language = match (&owner_of_expert, mode) {
            (Some(owners), Mode::LanguageOwned) => Some(experts.iter().map(|&expert| owners[expert]).collect()),
            _ => None,
        };
        let owner = |name: &str| Some(owner_of_expert.as_ref()?[expert_of_parameter(name)?]);
        let owner_of_parameter = lm.parameters().iter().map(|(name, _)| owner(name)).collect();
        Layout { rank, world, rank_of_language, owner_of_expert, owner_of_parameter }
    }

    /// This rank's part of a micro-step.
    pub fn deal(&self, sequences: &[Sequence]) -> Vec<Sequence> {
        let rank_of = |(idx, sequence): (usize, &Sequence)| match &self.rank_of_language {
            Some(ranks) => ranks[sequence.language_idx],
            None => idx % self.world,
        };
        let mine = sequences.iter().enumerate().filter(|item| rank_of(*item) == self.rank);
        mine.map(|(_, sequence)| sequence.clone()).collect()
    }

    /// The rank that alone has parameter `idx`; `None` for one that all have.
    pub fn owner(&self, idx: usize) -> Option<usize> {
        self.owner_of_parameter[idx]
    }

    /// Whether all ranks have parameter `idx`.
    pub fn is_shared(&self, idx: usize) -> bool {
        self.owner(idx).is_none()
    }

    /// Whether this rank alone has parameter `idx`.
    pub fn is_mine(&self, idx: usize) -> bool {
        self.owner(idx) == Some(self.rank)
    }

    /// Whether any parameter belongs to one rank alone.
    pub fn has_owners(&self) -> bool {
        self.owner_of_expert.is_some()
    }
}

/// The expert of each language of the texts. Languages that the model does not know are refused where this decides.
fn experts_of_texts(config: &RunConfig) -> Vec<usize> {
    let experts = config.model.expert_of_language();
    let expert = |name: &String| experts.get(config.model.language_index(Some(name)) as usize).copied().unwrap_or(0);
    config.data.languages.iter().map(expert).collect()
}

/// Share of the sequences that each expert trains on.
fn expert_loads(experts: &[usize], language_probs: &[f64], n_experts: usize) -> Vec<f64> {
    let mut loads = vec![0.0; n_experts];
    experts.iter().zip(language_probs).for_each(|(&expert, prob)| loads[expert] += prob);
    loads
}

/// Experts in equal numbers, neighbours together.
fn even_owners(n_experts: usize, world: usize) -> Vec<usize> {
    let spans = even_spans(n_experts, world).into_iter().enumerate();
    spans.flat_map(|(rank, span)| std::iter::repeat_n(rank, span.len())).collect()
}

/// The heaviest expert first, each to the rank that has least so far (Graham 1969: at most 4/3 of the best balance).
fn balanced_owners(loads: &[f64], world: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]).then(a.cmp(&b)));
    // Experts without text go where the fewest experts are.
    let mut of_rank = vec![(0.0, 0usize); world];
    let mut owners = vec![0; loads.len()];
    for expert in order {
        let by_load = |a: &usize, b: &usize| {
            let ((load_a, n_a), (load_b, n_b)) = (of_rank[*a], of_rank[*b]);
            if loads[expert] > 0.0 { f64::total_cmp(&load_a, &load_b).then(n_a.cmp(&n_b)) } else { n_a.cmp(&n_b) }
        };
        let rank = (0..world).min_by(by_load).unwrap_or(0);
        owners[expert] = rank;
        of_rank[rank] = (of_rank[rank].0 + loads[expert], of_rank[rank].1 + 1);
    }
    owners
}

/// The expert whose weight the name is of.
fn expert_of_parameter(name: &str) -> Option<usize> {
    name.split_once(".experts.")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_balanced() {
        assert_eq!(balanced_owners(&[0.4, 0.1, 0.3, 0.2], 2), [0, 0, 1, 1]);
        assert_eq!(balanced_owners(&[0.0, 0.6, 0.0, 0.4], 2), [0, 0, 1, 1]);
        // More ranks than languages with text: the others have no tokens, and take part all the same.
        assert_eq!(balanced_owners(&[0.7, 0.3], 4), [0, 1]);
        assert_eq!(even_owners(4, 3), [0, 1, 2, 2]);
        assert_eq!(even_owners(2, 4), [1, 3]);
    }

    #[test]
    fn parameters_of_experts_are_known_by_name() {
        assert_eq!(expert_of_parameter("model.layers.3.mlp.experts.12.up_proj.weight"), Some(12));
        assert_eq!(expert_of_parameter("model.layers.3.mlp.shared_expert.up_proj.weight"), None);
    }
}
