//! The weights of one layer; its experts are packed when they are wanted.

use std::sync::{Arc, Mutex};

use super::model::Decoder;
use super::network::{Network, check_alike};
use super::packed::Packed;
use super::weights::{WeightSource, build};
use crate::config::{ModelConfig, MoeConfig};
use crate::error::{Error, Result};
use crate::router::Router;
use crate::tape::HostPlan;

pub(super) struct Layer {
    pub(super) norm: Vec<f32>,
    pub(super) qkv: [Packed; 3],
    pub(super) biases: Option<[Vec<f32>; 3]>,
    /// Of each head of the queries, and of the keys.
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    /// The name of the table of what each token adds to its value.
    pub(super) value_table: Option<String>,
    pub(super) out: Packed,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) ffn: Ffn,
}

pub(super) enum Ffn {
    Dense(Network),
    Moe(Box<Moe>),
}

/// What a layer did with so many tokens of a language, where those alone decide.
pub(super) struct LastPlan {
    pub(super) of: (u32, usize),
    pub(super) plan: Arc<HostPlan>,
}

/// A layer with experts.
pub(super) struct Moe {
    pub(super) config: MoeConfig,
    pub(super) router: Box<dyn Router>,
    pub(super) shared: Option<Network>,
    pub(super) last_plan: Mutex<Option<LastPlan>>,
    layer: usize,
}

impl Layer {
    pub(super) fn load(config: &ModelConfig, layer: usize, source: &dyn WeightSource) -> Result<Layer> {
        let (d, name) = (config.d_model, format!("model.layers.{layer}"));
        let attention = format!("{name}.self_attn");
        let (queries, keys) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
        let projections = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
        let matrix = |(projection, rows)| source.matrix(&format!("{attention}.{projection}.weight"), (rows, d));
        let bias = |(projection, rows)| source.floats(&format!("{attention}.{projection}.bias"), &[rows]);
        let head_norm = |name: &str| source.floats(&format!("{attention}.{name}.weight"), &[config.d_head]);
        let [q, k, v] = projections;
        let ffn = match config.moe_of_layer(layer) {
            None => Ffn::Dense(Network::load(source, &format!("{name}.mlp"), (d, config.d_ff), config.activation)?),
            Some(moe) => Ffn::Moe(Box::new(Moe::load(config, moe, layer, source)?)),
        };
        let qkv = [matrix(q)?, matrix(k)?, matrix(v)?];
        check_alike(qkv.iter(), &attention)?;
        Ok(Layer {
            norm: source.floats(&format!("{name}.input_layernorm.weight"), &[d])?,
            qkv,
            biases: if config.qkv_bias { Some([bias(q)?, bias(k)?, bias(v)?]) } else { None },
            head_norms: if config.qk_norm { Some([head_norm("q_norm")?, head_norm("k_norm")?]) } else { None },
            value_table: (config.value_embedding_layers.contains(&layer))
                .then(|| format!("{attention}.value_embedding.weight")),
            out: source.matrix(&format!("{attention}.o_proj.weight"), (d, queries))?,
            ffn_norm: source.floats(&format!("{name}.post_attention_layernorm.weight"), &[d])?,
            ffn,
        })
    }
}

impl Moe {
    fn load(model: &ModelConfig, config: MoeConfig, layer: usize, source: &dyn WeightSource) -> Result<Moe> {
        let name = format!("model.layers.{layer}.mlp");
        let shared = match config.d_ff_shared {
            0 => None,
            f => Some(Network::load(source, &format!("{name}.shared_expert"), (model.d_model, f), model.activation)?),
        };
        if let Some(missing) = (0..config.n_experts)
            .map(|idx| format!("{name}.experts.{idx}.up_proj.weight"))
            .find(|weight| !source.has(weight))
        {
            return Err(Error::Input(format!("weight {missing} is missing: expected those of all experts")));
        }
        let router = build(source, &name, |params| config.build_router(model, params))?;
        Ok(Moe { config, router, shared, last_plan: Mutex::default(), layer })
    }

    /// An expert, packed now if it is not on the shelf.
    ///
    /// # Errors
    /// Weights that are missing.
    pub(super) fn expert(&self, idx: usize, decoder: &Decoder) -> Result<Arc<Network>> {
        let Decoder { config: model, source, shelf, .. } = decoder;
        shelf.take((self.layer, idx), || {
            let name = format!("model.layers.{}.mlp.experts.{idx}", self.layer);
            let network = Network::load(&**source, &name, (model.d_model, self.config.d_ff_expert), model.activation)?;
            check_alike(self.shared.iter().map(Network::first).chain([network.first()]), &name)?;
            Ok(network)
        })
    }
}
