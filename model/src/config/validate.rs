//! Whether the fields of a configuration describe a model.

use super::{ModelConfig, MoeConfig, MoeLayers, check};
use crate::copy::CopyConfig;
use crate::error::Result;
use crate::modifier::ModifierConfig;

/// Beyond any layer's.
const MAX_EXPERTS: usize = 1 << 14;

impl ModelConfig {
    /// Checks that the sizes describe a model.
    ///
    /// # Errors
    /// [`Error::Config`] with the first field that is wrong.
    pub fn validate(&self) -> Result<()> {
        // The most is beyond any model: sizes without a limit would be what a damaged file takes the program down with.
        for (field, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("d_model", self.d_model, 1 << 20),
            ("n_layers", self.n_layers, 1 << 10),
            ("n_heads", self.n_heads, 1 << 12),
            ("n_kv_heads", self.n_kv_heads, 1 << 12),
            ("d_head", self.d_head, 1 << 12),
            ("d_ff", self.d_ff, 1 << 22),
            ("context_tokens", self.context_tokens, 1 << 20),
        ] {
            check(value > 0, field, value, "a positive number")?;
            check(value <= most, field, value, &format!("at most {most}"))?;
        }
        // What is computed or kept for every position.
        let (positions, most) = (self.context_tokens * self.d_head, 1usize << 28);
        check(positions <= most, "context_tokens", self.context_tokens, &format!("at most {}", most / self.d_head))?;
        let (cached, most) = (positions * self.n_layers * self.n_kv_heads, 1usize << 34);
        let fits = format!("at most {}, or fewer layers and heads", most / (cached / self.context_tokens).max(1));
        check(cached <= most, "context_tokens", self.context_tokens, &fits)?;
        self.check_width("d_ff", self.d_ff)?;
        check(self.bigram_buckets <= 1 << 28, "bigram_buckets", self.bigram_buckets, "at most 268435456")?;
        let heads = format!("a divisor of n_heads = {}", self.n_heads);
        check(self.n_heads.is_multiple_of(self.n_kv_heads), "n_kv_heads", self.n_kv_heads, &heads)?;
        check(self.d_head.is_multiple_of(2), "d_head", self.d_head, "an even number")?;
        check(self.rope_theta > 0.0, "rope_theta", self.rope_theta, "a positive number")?;
        check(self.norm_eps > 0.0, "norm_eps", self.norm_eps, "a positive number")?;
        let is_cap = self.logit_softcap >= 0.0 && self.logit_softcap.is_finite();
        check(is_cap, "logit_softcap", self.logit_softcap, "a positive number, or 0 for none")?;
        let values = format!("{:?}", self.value_embedding_layers);
        let layers = format!("layers below n_layers = {}", self.n_layers);
        let in_range = self.value_embedding_layers.iter().all(|&layer| layer < self.n_layers);
        check(in_range, "value_embedding_layers", values, &layers)?;
        let mut names = self.languages.clone();
        names.sort();
        names.dedup();
        check(names.len() == self.languages.len(), "languages", format!("{:?}", self.languages), "no name twice")?;
        self.copy.as_ref().map_or(Ok(()), CopyConfig::validate)?;
        self.adapter.as_ref().map_or(Ok(()), |adapter| adapter.validate(self))?;
        self.moe.as_ref().map_or(Ok(()), |moe| self.validate_moe(moe))
    }

    /// Whether a matrix of `d_model` and that many numbers can be.
    fn check_width(&self, field: &'static str, width: usize) -> Result<()> {
        let most = (1 << 34) / self.d_model;
        check(width <= most, field, width, &format!("at most {most}, for d_model = {}", self.d_model))
    }

    fn validate_moe(&self, moe: &MoeConfig) -> Result<()> {
        check(moe.n_experts > 0, "moe.n_experts", moe.n_experts, "a positive number")?;
        check(moe.d_ff_expert > 0, "moe.d_ff_expert", moe.d_ff_expert, "a positive number")?;
        let n_experts = moe.experts_by_layer.iter().copied().fold(moe.n_experts, usize::max);
        check(n_experts <= MAX_EXPERTS, "moe.n_experts", n_experts, &format!("at most {MAX_EXPERTS}"))?;
        self.check_width("moe.d_ff_expert", moe.d_ff_expert)?;
        self.check_width("moe.d_ff_shared", moe.d_ff_shared)?;
        check((0.0..1.0).contains(&moe.dropout), "moe.dropout", moe.dropout, "0 or more, below 1")?;
        let layers = format!("{:?}", moe.layers);
        let expected = format!("between 1 and {} layers of the model", self.n_layers);
        let in_range = match &moe.layers {
            MoeLayers::EveryN(n) => *n > 0,
            MoeLayers::LastK(k) => *k <= self.n_layers,
            MoeLayers::List(list) => list.iter().all(|&layer| layer < self.n_layers),
        };
        check(in_range && self.n_moe_layers() > 0, "moe.layers", layers, &expected)?;
        let by_layer = format!("{:?}", moe.experts_by_layer);
        let expected = format!("none, or a positive number for each of {} layers with experts", self.n_moe_layers());
        let fits = moe.experts_by_layer.is_empty() || moe.experts_by_layer.len() == self.n_moe_layers();
        check(fits && !moe.experts_by_layer.contains(&0), "moe.experts_by_layer", by_layer, &expected)?;
        self.moe_layers().iter().try_for_each(|moe| self.validate_routing(moe))
    }

    /// Of one layer with experts.
    fn validate_routing(&self, moe: &MoeConfig) -> Result<()> {
        for (name, &expert) in &moe.expert_of_language {
            let known = format!("a name of languages = {:?}", self.languages);
            check(self.languages.contains(name), "moe.expert_of_language", name, &known)?;
            let below = format!("an expert below n_experts = {}", moe.n_experts);
            check(expert < moe.n_experts, "moe.expert_of_language", format!("{name} = {expert}"), &below)?;
        }
        let name = |modifier: &ModifierConfig| modifier.name();
        let twice = moe
            .modifiers
            .iter()
            .enumerate()
            .find(|(i, one)| moe.modifiers[..*i].iter().any(|other| name(other) == name(one)));
        check(twice.is_none(), "moe.modifiers", twice.map_or("", |(_, one)| name(one)), "no kind twice")?;
        moe.modifiers.iter().try_for_each(|modifier| modifier.validate(self, moe))?;
        let of_router = Some(moe.router.name()).filter(|_| moe.router.weighs_shared());
        let gates = moe.modifiers.iter().filter(|modifier| modifier.weighs_shared()).map(name).chain(of_router);
        let gates: Vec<&str> = gates.collect();
        check(
            gates.len() < 2,
            "moe.modifiers",
            gates.join(" with "),
            "one gate between the experts and the shared one",
        )?;
        moe.expert_param.validate(self, moe)?;
        moe.router.validate(self, moe)
    }
}
