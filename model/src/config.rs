//! What a model is: sizes, options, languages. One validated value describes it for training, checkpoints and serving.

mod validate;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::adapters::AdapterConfig;
use crate::copy::CopyConfig;
use crate::error::{Error, Result};
use crate::experts::ExpertParam;
use crate::modifier::{Modified, ModifierConfig};
use crate::params::Params;
use crate::router::{Router, RouterConfig};

/// The language index of text whose language no expert was trained for.
pub const UNKNOWN_LANGUAGE: u32 = u32::MAX;

/// A decoder: pre-norm RMSNorm, rotary positions, grouped-query attention, gated or squared-ReLU feed-forward, optional experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub vocab_size: usize,
    pub d_model: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub d_head: usize,
    /// Hidden width of the dense layers' feed-forward network.
    pub d_ff: usize,
    #[serde(default)]
    pub activation: Activation,
    /// Positions that the model was trained for.
    pub context_tokens: usize,
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// RMSNorm over each query and key head (Qwen3).
    #[serde(default)]
    pub qk_norm: bool,
    /// Biases on query, key and value (Qwen2).
    #[serde(default)]
    pub qkv_bias: bool,
    #[serde(default = "default_true")]
    pub tie_embeddings: bool,
    /// Logits `z` become `cap · tanh(z / cap)`, so that none is beyond the cap (Gemma Team 2024, arXiv 2408.00118, §2); 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub logit_softcap: f32,
    /// Rows of a table that is added to the embedding by the hash of the last two ids; 0 for none. Capacity at no cost in time
    /// (Liu et al. 2025, arXiv 2501.16975, over-encoding).
    #[serde(default)]
    pub bigram_buckets: usize,
    /// Whether an embedding of the token's language is added to that of the token; one row for unknown languages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub language_embedding: bool,
    /// Layers whose values get an embedding of the token of their own (Zhou et al. 2024, arXiv 2410.17897, value residual; as tables).
    #[serde(default)]
    pub value_embedding_layers: Vec<usize>,
    /// Names of the languages, in the order of their indices.
    #[serde(default)]
    pub languages: Vec<String>,
    #[serde(default)]
    pub moe: Option<MoeConfig>,
    /// Small networks after each layer, one for each language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterConfig>,
    /// How what the text itself says is mixed in; training knows nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyConfig>,
}

/// The non-linearity of a feed-forward network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `silu(gate) * up` (Shazeer 2020, arXiv 2002.05202).
    #[default]
    Swiglu,
    /// `relu(up)^2` (So et al. 2021, arXiv 2109.08668).
    Relu2,
}

/// Which layers have experts, how many, and who chooses them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    pub layers: MoeLayers,
    pub n_experts: usize,
    /// Experts of each of these layers, from the first to the last, instead of `n_experts`: a pyramid (Rajbhandari et al. 2022, arXiv
    /// 2201.05596, §4.1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experts_by_layer: Vec<usize>,
    /// Hidden width of one expert.
    pub d_ff_expert: usize,
    /// Chance that a hidden value of an expert is zero while it trains; the others are larger for it (Fedus et al. 2022, arXiv 2101.03961,
    /// §2.4, expert dropout: 0.4 there, for fine-tuning).
    #[serde(default, skip_serializing_if = "is_zero_rate")]
    pub dropout: f64,
    /// How experts hold their weights.
    #[serde(default, skip_serializing_if = "ExpertParam::is_full")]
    pub expert_param: ExpertParam,
    /// Hidden width of the shared expert; 0 for none.
    #[serde(default)]
    pub d_ff_shared: usize,
    pub router: RouterConfig,
    /// What changes the router's plan, or adds to its losses, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modifiers: Vec<ModifierConfig>,
    /// The expert of each language, for routers that choose by language; language index modulo `n_experts` where absent.
    #[serde(default)]
    pub expert_of_language: BTreeMap<String, usize>,
}

impl MoeConfig {
    /// The configuration of the `moe`-th layer with experts alone.
    pub fn of_layer(&self, moe: usize) -> MoeConfig {
        let n_experts = self.experts_by_layer.get(moe).copied().unwrap_or(self.n_experts);
        MoeConfig { n_experts, experts_by_layer: Vec::new(), ..self.clone() }
    }

    /// Whether plans depend on the tokens' values or on parameters; else they are made before the first layer.
    pub fn reads_tokens(&self) -> bool {
        self.router.reads_tokens() || self.modifiers.iter().any(ModifierConfig::reads_tokens)
    }

    /// Whether plans that are made in their layer weigh the shared expert's output.
    pub fn weighs_shared(&self) -> bool {
        self.router.weighs_shared() || self.modifiers.iter().any(ModifierConfig::weighs_shared)
    }

    /// Whether parts of a batch may be trained on apart: a token's experts depend on no other, and losses are means over tokens.
    pub fn is_local(&self) -> bool {
        self.router.is_local() && self.modifiers.iter().all(ModifierConfig::is_local)
    }

    /// Whether a token's experts depend on no later token when the model is measured or served.
    pub fn is_causal(&self) -> bool {
        self.router.is_causal() && self.modifiers.iter().all(ModifierConfig::is_causal)
    }

    /// Parameters that routing has in one layer.
    pub fn n_routing_parameters(&self, model: &ModelConfig) -> usize {
        let modifiers = self.modifiers.iter().map(|modifier| modifier.n_parameters(model)).sum::<usize>();
        self.router.n_parameters(model, self) + modifiers
    }

    /// The router with its modifiers.
    pub(crate) fn build_router(&self, model: &ModelConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let router = self.router.build(model, self, params)?;
        if self.modifiers.is_empty() {
            return Ok(router);
        }
        let modifiers = self.modifiers.iter().map(|modifier| modifier.build(model, self, params));
        Ok(Box::new(Modified { router, modifiers: modifiers.collect::<Result<_>>()? }))
    }
}

/// The layers that have experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoeLayers {
    /// Every n-th layer: n-1, 2n-1, ...
    EveryN(usize),
    /// The last k layers.
    LastK(usize),
    /// These layers.
    List(Vec<usize>),
}

fn default_rope_theta() -> f64 {
    10_000.0
}

fn default_norm_eps() -> f64 {
    1e-6
}

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

fn is_zero_rate(value: &f64) -> bool {
    *value == 0.0
}

fn default_true() -> bool {
    true
}

impl ModelConfig {
    /// Whether layer `layer` has experts.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        self.moe.as_ref().is_some_and(|moe| match &moe.layers {
            MoeLayers::EveryN(n) => (layer + 1).is_multiple_of(*n),
            MoeLayers::LastK(k) => layer >= self.n_layers.saturating_sub(*k),
            MoeLayers::List(layers) => layers.contains(&layer),
        })
    }

    /// The number of layers that have experts.
    pub fn n_moe_layers(&self) -> usize {
        (0..self.n_layers).filter(|&layer| self.is_moe_layer(layer)).count()
    }

    /// Whether all weights are parameters: none is made anew in each pass.
    pub fn is_plain(&self) -> bool {
        self.adapter.as_ref().is_none_or(AdapterConfig::is_plain)
            && self.moe.as_ref().is_none_or(|moe| moe.expert_param.is_plain())
    }

    /// The index of a language by name; [`UNKNOWN_LANGUAGE`] for none and for names that the model does not have.
    pub fn language_index(&self, name: Option<&str>) -> u32 {
        let found = name.and_then(|name| self.languages.iter().position(|language| language == name));
        found.map_or(UNKNOWN_LANGUAGE, |idx| idx as u32)
    }

    /// The configuration of each layer with experts, from the first to the last.
    pub fn moe_layers(&self) -> Vec<MoeConfig> {
        let layers = |moe: &MoeConfig| (0..self.n_moe_layers()).map(|i| moe.of_layer(i)).collect();
        self.moe.as_ref().map_or_else(Vec::new, layers)
    }

    /// The configuration of layer `layer`, if it has experts.
    pub fn moe_of_layer(&self, layer: usize) -> Option<MoeConfig> {
        let before = (0..layer).filter(|&layer| self.is_moe_layer(layer)).count();
        self.moe.as_ref().filter(|_| self.is_moe_layer(layer)).map(|moe| moe.of_layer(before))
    }

    /// The expert of each language, by language index. Empty without experts.
    pub fn expert_of_language(&self) -> Vec<usize> {
        self.moe.as_ref().map_or_else(Vec::new, |moe| self.expert_of_language_in(moe))
    }

    /// The expert of each language in a layer, by language index.
    pub(crate) fn expert_of_language_in(&self, moe: &MoeConfig) -> Vec<usize> {
        let expert = |(idx, name): (usize, &String)| {
            moe.expert_of_language.get(name).copied().unwrap_or(idx % moe.n_experts.max(1))
        };
        self.languages.iter().enumerate().map(expert).collect()
    }

    /// Parameters in all.
    pub fn n_parameters(&self) -> usize {
        let adapters = self.adapter.as_ref().map_or(0, |adapter| adapter.n_parameters(self));
        self.count(|moe| moe.expert_param.n_parameters(self, moe)) + adapters
    }

    /// Parameters that one token is multiplied by: the tied embedding counts once, tables of which a token reads a row do not.
    pub fn n_active_parameters(&self) -> usize {
        let adapter = self.adapter.as_ref().map_or(0, |adapter| 2 * self.d_model * (adapter.bottleneck() + 1));
        let of_experts = |moe: &MoeConfig| moe.router.n_selected() * self.n_ffn_parameters(moe.d_ff_expert);
        self.count(of_experts) - self.table_parameters() + self.n_layers * adapter
    }

    /// Multiplications and additions of a forward pass for one token with `context` positions before it, times two (FLOPs).
    pub fn flops_per_token(&self, context: usize) -> usize {
        let untied = if self.tie_embeddings { 0 } else { self.vocab_size * self.d_model };
        let attention = 2 * self.n_layers * self.n_heads * self.d_head * context;
        2 * (self.n_active_parameters() - untied + attention)
    }

    /// Parameters of the tables of which a token reads one row each.
    fn table_parameters(&self) -> usize {
        let values = self.value_embedding_layers.len() * self.vocab_size * self.n_kv_heads * self.d_head;
        let languages = if self.language_embedding { self.languages.len() + 1 } else { 0 };
        (self.bigram_buckets + languages) * self.d_model + values
    }

    /// Parameters of a feed-forward network of hidden width `f`.
    pub(crate) fn n_ffn_parameters(&self, f: usize) -> usize {
        let matrices = match self.activation {
            Activation::Swiglu => 3,
            Activation::Relu2 => 2,
        };
        matrices * self.d_model * f
    }

    fn count(&self, of_experts: impl Fn(&MoeConfig) -> usize) -> usize {
        let (d, q, kv) = (self.d_model, self.n_heads * self.d_head, self.n_kv_heads * self.d_head);
        let bias = if self.qkv_bias { q + 2 * kv } else { 0 };
        let qk_norm = if self.qk_norm { 2 * self.d_head } else { 0 };
        let attention = 2 * d * q + 2 * d * kv + bias + qk_norm + 2 * d;
        let ffn = |layer: usize| match self.moe_of_layer(layer) {
            None => self.n_ffn_parameters(self.d_ff),
            Some(moe) => of_experts(&moe) + self.n_ffn_parameters(moe.d_ff_shared) + moe.n_routing_parameters(self),
        };
        let embeddings = if self.tie_embeddings { 1 } else { 2 } * self.vocab_size * d;
        embeddings + self.table_parameters() + d + (0..self.n_layers).map(|layer| attention + ffn(layer)).sum::<usize>()
    }
}

/// An [`Error::Config`] for `field` unless `ok`.
pub(crate) fn check(ok: bool, field: &'static str, value: impl std::fmt::Display, expected: &str) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Config { field, value: value.to_string(), expected: expected.to_string() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two layers, two languages; experts in the second layer if a router is given.
    pub(crate) fn tiny(router: Option<RouterConfig>) -> ModelConfig {
        ModelConfig {
            vocab_size: 96,
            d_model: 32,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            d_head: 8,
            d_ff: 48,
            activation: Activation::Swiglu,
            context_tokens: 64,
            rope_theta: 10_000.0,
            norm_eps: 1e-6,
            qk_norm: false,
            qkv_bias: false,
            tie_embeddings: true,
            logit_softcap: 0.0,
            bigram_buckets: 0,
            language_embedding: false,
            value_embedding_layers: Vec::new(),
            languages: vec!["python".into(), "lua".into(), "go".into()],
            moe: router.map(|router| MoeConfig {
                layers: MoeLayers::EveryN(2),
                n_experts: 4,
                experts_by_layer: Vec::new(),
                d_ff_expert: 16,
                dropout: 0.0,
                expert_param: ExpertParam::default(),
                d_ff_shared: 16,
                router,
                modifiers: Vec::new(),
                expert_of_language: BTreeMap::new(),
            }),
            adapter: None,
            copy: None,
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        let message = |edit: fn(&mut ModelConfig)| {
            let mut config = tiny(Some(RouterConfig::all().remove(0)));
            edit(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(message(|c| c.d_model = 0), "model config: d_model = 0: expected a positive number");
        assert_eq!(message(|c| c.n_kv_heads = 3), "model config: n_kv_heads = 3: expected a divisor of n_heads = 4");
        assert!(message(|c| c.languages.push("lua".into())).contains("no name twice"));
        assert!(message(|c| c.moe.as_mut().unwrap().layers = MoeLayers::LastK(9)).contains("moe.layers = LastK(9)"));
        assert!(
            message(|c| c.moe.as_mut().unwrap().expert_of_language = [("cobol".into(), 0)].into()).contains("cobol")
        );
    }

    #[test]
    fn sizes_whose_products_no_number_holds_are_refused() {
        fn moe(config: &mut ModelConfig) -> &mut MoeConfig {
            config.moe.as_mut().unwrap()
        }
        type Edit = fn(&mut ModelConfig);
        let edits: [(&str, Edit); 11] = [
            ("vocab_size = 33554432: expected at most 16777216", |c| c.vocab_size = 1 << 25),
            ("n_layers = 2048: expected at most 1024", |c| c.n_layers = 1 << 11),
            ("context_tokens = 1048576: expected at most 65536", |c| (c.d_head, c.context_tokens) = (1 << 12, 1 << 20)),
            ("context_tokens = 65536: expected at most 32768, or fewer layers and heads", |c| {
                (c.d_head, c.context_tokens, c.n_layers, c.n_kv_heads) = (1 << 12, 1 << 16, 1 << 7, 1);
            }),
            ("moe.n_experts = 1152921504606846976: expected at most 16384", |c| moe(c).n_experts = 1 << 60),
            ("moe.n_experts = 99999", |c| moe(c).experts_by_layer = vec![99_999]),
            ("moe.d_ff_expert", |c| moe(c).d_ff_expert = 1 << 60),
            ("moe.d_ff_shared", |c| moe(c).d_ff_shared = 1 << 60),
            ("d_ff = 4194304: expected at most 16384, for d_model = 1048576", |c| {
                (c.d_model, c.d_ff) = (1 << 20, 1 << 22)
            }),
            ("adapter.bottleneck", |c| {
                c.adapter = Some(serde_json::from_str(r#"{"kind": "plain", "bottleneck": 1099511627776}"#).unwrap());
            }),
            ("moe.expert_param.width", |c| {
                let param = r#"{"kind": "mpo", "width": [4294967296, 4294967296, 16], "model": [2, 4, 4]}"#;
                moe(c).expert_param = serde_json::from_str(param).unwrap();
            }),
        ];
        for (named, edit) in edits {
            let mut config = tiny(Some(RouterConfig::all().remove(0)));
            edit(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
        }
    }

    #[test]
    fn languages_share_experts_when_there_are_fewer() {
        let mut config = tiny(Some(RouterConfig::all().remove(0)));
        config.moe.as_mut().unwrap().n_experts = 2;
        assert_eq!(config.expert_of_language(), [0, 1, 0]);
        config.moe.as_mut().unwrap().expert_of_language.insert("go".into(), 1);
        assert_eq!(config.expert_of_language(), [0, 1, 1]);
    }
}
