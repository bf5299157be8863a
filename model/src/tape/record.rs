//! From a configuration and a batch's shape to the list of operations.

use std::collections::HashMap;

use super::op::{BufId, Buffer, Op, ParamId};
use super::step_data::StepData;
use super::{Tape, slots};
use crate::config::{Activation, ModelConfig};
use crate::error::{Error, Result};

mod backward;

/// What a recorder may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapeOptions {
    /// Keep only the residual stream of each layer, and compute the rest a second time in the backward pass.
    pub checkpoint_activations: bool,
}

/// The tape of a training step: the loss of a batch and the gradients of all parameters.
///
/// `names` are those of [`crate::CodeLm::parameters`], in order; `data` gives the shape of the batch and of its plans.
///
/// # Errors
/// A parameter that the configuration needs and `names` lacks.
pub fn record(config: &ModelConfig, names: &[&str], data: &StepData, options: TapeOptions) -> Result<Tape> {
    let mut recorder = Recorder::new(config, names, data);
    recorder.step(options)?;
    recorder.ops = slots::without_dead(recorder.ops, recorder.buffers.len());
    Ok(recorder.placed())
}

/// The tape of a forward pass alone, up to what the output projection reads: the buffer that is returned.
///
/// # Errors
/// As of [`record`].
#[cfg(feature = "cuda")]
pub(super) fn record_forward(config: &ModelConfig, names: &[&str], data: &StepData) -> Result<(Tape, BufId)> {
    let mut recorder = Recorder::new(config, names, data);
    let normed = recorder.forward()?.normed;
    Ok((recorder.placed(), normed.out))
}

struct Recorder<'a> {
    config: &'a ModelConfig,
    params: HashMap<&'a str, usize>,
    data: &'a StepData,
    n: usize,
    ops: Vec<Op>,
    buffers: Vec<Buffer>,
    /// Whether a layer is written a second time: plans are then there.
    replays: bool,
}

/// What a forward pass leaves for the backward pass.
struct Forward {
    table: ParamId,
    bigrams: Option<ParamId>,
    languages: Option<ParamId>,
    layers: Vec<Layer>,
    /// The residual stream after the last layer, and its norm.
    x: BufId,
    normed: Normed,
}

/// The buffers of a layer's forward pass that its backward pass reads.
struct Layer {
    name: String,
    /// The residual stream, with what came in added.
    x: BufId,
    norm: Normed,
    attention: Attention,
    /// The residual stream after attention.
    middle: BufId,
    ffn_norm: Normed,
    ffn: Ffn,
    /// What the layer adds to `middle`.
    out: BufId,
}

#[derive(Clone, Copy)]
struct Normed {
    out: BufId,
    inverse: BufId,
}

struct Attention {
    /// Queries, keys and values as they were projected.
    raw: [BufId; 3],
    /// As attention reads them: `raw`, rotated in place, unless heads are normalized.
    qkv: [BufId; 3],
    inverse: Option<[BufId; 2]>,
    out: BufId,
    log_sum: BufId,
}

enum Ffn {
    Dense(Hidden),
    Moe { moe: usize, shared: Option<Hidden>, routed: Option<Hidden>, chosen: Option<Chosen> },
}

/// What a router that reads the tokens weighs: the outputs of the experts, and that of the shared one.
struct Chosen {
    y: BufId,
    shared: Option<BufId>,
}

/// A feed-forward network and its activations.
struct Hidden {
    weights: Weights,
    x: BufId,
    gate: Option<BufId>,
    up: BufId,
    act: BufId,
}

/// The weights of a feed-forward network, by the beginning of their names.
#[derive(Clone)]
enum Weights {
    One(String),
    /// One network for each expert; the plan of MoE layer `moe` chooses.
    Experts {
        name: String,
        moe: usize,
    },
}

impl<'a> Recorder<'a> {
    fn new(config: &'a ModelConfig, names: &[&'a str], data: &'a StepData) -> Recorder<'a> {
        let params = names.iter().enumerate().map(|(i, name)| (*name, i)).collect();
        let n = data.b * data.l;
        Recorder { config, params, data, n, ops: Vec::new(), buffers: Vec::new(), replays: false }
    }

    fn placed(self) -> Tape {
        let Recorder { ops, mut buffers, .. } = self;
        let slot_len = slots::assign(&ops, &mut buffers);
        Tape { ops, buffers, slot_len }
    }

    fn step(&mut self, options: TapeOptions) -> Result<()> {
        let Forward { table, bigrams, languages, layers, x, normed } = self.forward()?;
        let dx = self.loss(x, normed)?;
        for (layer, mut recorded) in layers.into_iter().enumerate().rev() {
            if self.config.adapter.is_some() {
                self.ops.push(Op::AdaptGrad { layer, dx });
            }
            if options.checkpoint_activations {
                self.replays = true;
                recorded = self.layer(layer, recorded.x, None)?;
            }
            self.layer_grad(&recorded, dx)?;
            self.ready(&format!("{}.", recorded.name));
        }
        self.ready("model.adapters.");
        if let Some(table) = languages {
            self.ops.push(Op::AddLanguagesGrad { dx, table });
        }
        self.ops.push(Op::EmbedGrad { dout: dx, table, bigrams });
        self.ready("model.embed");
        Ok(())
    }

    fn forward(&mut self) -> Result<Forward> {
        let (n, d) = (self.n, self.config.d_model);
        let table = self.param("model.embed_tokens.weight")?;
        let bigrams = match self.config.bigram_buckets {
            0 => None,
            _ => Some(self.param("model.embed_bigrams.weight")?),
        };
        let embedded = self.buffer(n, d);
        self.ops.push(Op::Embed { table, bigrams, out: embedded });
        let languages = match self.config.language_embedding {
            true => Some(self.param("model.embed_languages.weight")?),
            false => None,
        };
        if let Some(table) = languages {
            self.ops.push(Op::AddLanguages { table, x: embedded });
        }
        let (mut x, mut add) = (embedded, None);
        let mut layers = Vec::new();
        for layer in 0..self.config.n_layers {
            let recorded = self.layer(layer, x, add)?;
            (x, add) = (recorded.middle, Some(recorded.out));
            if self.config.adapter.is_some() {
                let out = self.like(x);
                self.ops.push(Op::Adapt { x, add: recorded.out, layer, out });
                (x, add) = (out, None);
            }
            layers.push(recorded);
        }
        let (x, normed) = self.norm(x, add, "model.norm.weight")?;
        Ok(Forward { table, bigrams, languages, layers, x, normed })
    }

    /// The loss and its gradient with respect to the residual stream.
    fn loss(&mut self, x: BufId, normed: Normed) -> Result<BufId> {
        let head = if self.config.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let head = self.param(head)?;
        let (dnormed, dx) = (self.like(x), self.like(x));
        self.ops.push(Op::LinearCrossEntropy { x: normed.out, head, dx: dnormed });
        self.norm_grad(x, normed, "model.norm.weight", dnormed, (dx, false))?;
        // The last parameters: the norm, and the output projection where it is not the embedding.
        let first = self.param("model.norm.weight")?.0;
        self.ops.push(Op::Ready { parameters: first..self.params.len() });
        Ok(dx)
    }

    fn layer(&mut self, layer: usize, x: BufId, add: Option<BufId>) -> Result<Layer> {
        let name = format!("model.layers.{layer}");
        let (x, norm) = self.norm(x, add, &format!("{name}.input_layernorm.weight"))?;
        let attention = self.attention(layer, &name, norm.out)?;
        let projected = self.like(x);
        self.linear(attention.out, &format!("{name}.self_attn.o_proj"), projected)?;
        let (middle, ffn_norm) = self.norm(x, Some(projected), &format!("{name}.post_attention_layernorm.weight"))?;
        let out = self.like(x);
        let ffn = self.ffn(layer, &name, ffn_norm.out, out)?;
        Ok(Layer { name, x, norm, attention, middle, ffn_norm, ffn, out })
    }

    /// The normalized sum of `x` and `add`, and the sum itself.
    fn norm(&mut self, x: BufId, add: Option<BufId>, weight: &str) -> Result<(BufId, Normed)> {
        let add = add.map(|add| (add, self.like(x)));
        let normed = Normed { out: self.like(x), inverse: self.buffer(self.buffers[x.0].rows, 1) };
        let weight = self.param(weight)?;
        self.ops.push(Op::Norm { x, add, weight, out: normed.out, inverse: normed.inverse });
        Ok((add.map_or(x, |(_, sum)| sum), normed))
    }

    fn attention(&mut self, layer: usize, name: &str, x: BufId) -> Result<Attention> {
        let (n, heads) = (self.n, [self.config.n_heads, self.config.n_kv_heads]);
        let (queries, keys) = (heads[0] * self.config.d_head, heads[1] * self.config.d_head);
        let raw = [queries, keys, keys].map(|width| self.buffer(n, width));
        for (buffer, projection) in raw.into_iter().zip(["q_proj", "k_proj", "v_proj"]) {
            self.linear(x, &format!("{name}.self_attn.{projection}"), buffer)?;
        }
        if self.config.value_embedding_layers.contains(&layer) {
            let table = self.param(&format!("{name}.self_attn.value_embedding.weight"))?;
            self.ops.push(Op::AddRows { table, x: raw[2] });
        }
        let (mut qkv, mut inverse) = (raw, None);
        if self.config.qk_norm {
            let inverses = heads.map(|heads| self.buffer(n, heads));
            for (i, norm) in ["q_norm", "k_norm"].into_iter().enumerate() {
                qkv[i] = self.like(raw[i]);
                let weight = self.param(&format!("{name}.self_attn.{norm}.weight"))?;
                self.ops.push(Op::HeadNormRope { x: raw[i], weight, out: qkv[i], inverse: inverses[i] });
            }
            inverse = Some(inverses);
        } else {
            self.ops.extend(raw[..2].iter().map(|&x| Op::Rope { x, backwards: false }));
        }
        let [q, k, v] = qkv;
        let (out, log_sum) = (self.like(q), self.buffer(n, heads[0]));
        self.ops.push(Op::Attention { q, k, v, out, log_sum });
        Ok(Attention { raw, qkv, inverse, out, log_sum })
    }

    fn ffn(&mut self, layer: usize, name: &str, x: BufId, out: BufId) -> Result<Ffn> {
        let Some(moe_config) = self.config.moe.as_ref().filter(|_| self.config.is_moe_layer(layer)) else {
            let weights = Weights::One(format!("{name}.mlp"));
            return Ok(Ffn::Dense(self.feed_forward(x, weights, self.config.d_ff, out, false)?));
        };
        let moe = (0..layer).filter(|&layer| self.config.is_moe_layer(layer)).count();
        let plan = &self.data.plans[moe];
        let reads_tokens = moe_config.reads_tokens();
        if reads_tokens && !self.replays {
            self.ops.push(Op::Route { x, moe });
        }
        let (mut shared, mut weighed) = (None, None);
        if moe_config.d_ff_shared > 0 {
            let weights = Weights::One(format!("{name}.mlp.shared_expert"));
            let y = if plan.shared_weight_N.is_some() { self.like(x) } else { out };
            shared = Some(self.feed_forward(x, weights, moe_config.d_ff_shared, y, false)?);
            if plan.shared_weight_N.is_some() {
                self.ops.push(Op::WeighShared { x: y, moe, out });
                weighed = Some(y);
            }
        }
        let (a, accumulate) = (plan.token_A.len(), shared.is_some());
        let weights = Weights::Experts { name: format!("{name}.mlp.experts"), moe };
        if plan.is_plain() {
            let routed = self.feed_forward(x, weights, moe_config.d_ff_expert, out, accumulate)?;
            return Ok(Ffn::Moe { moe, shared, routed: Some(routed), chosen: None });
        }
        let [gathered, y] = [0; 2].map(|_| self.buffer(a, self.config.d_model));
        let mut routed = None;
        if a > 0 {
            self.ops.push(Op::Gather { x, moe, out: gathered });
            routed = Some(self.feed_forward(gathered, weights, moe_config.d_ff_expert, y, false)?);
        }
        // Without any assignment it writes the zeros that no expert adds to.
        if a > 0 || !accumulate {
            self.ops.push(Op::Combine { x: y, moe, out, accumulate });
        }
        let chosen = reads_tokens.then_some(Chosen { y, shared: weighed });
        Ok(Ffn::Moe { moe, shared, routed, chosen })
    }

    fn feed_forward(&mut self, x: BufId, weights: Weights, f: usize, out: BufId, accumulate: bool) -> Result<Hidden> {
        let rows = self.buffers[x.0].rows;
        let (up, act) = (self.buffer(rows, f), self.buffer(rows, f));
        let gate = match self.config.activation {
            Activation::Swiglu => Some(self.buffer(rows, f)),
            Activation::Relu2 => None,
        };
        if let Some(gate) = gate {
            self.product(x, &weights, "gate_proj", gate, false)?;
        }
        self.product(x, &weights, "up_proj", up, false)?;
        self.ops.push(match gate {
            Some(gate) => Op::Swiglu { gate, up, out: act },
            None => Op::Relu2 { x: up, out: act },
        });
        self.drop_hidden(&weights, act);
        self.product(act, &weights, "down_proj", out, accumulate)?;
        Ok(Hidden { weights, x, gate, up, act })
    }

    /// Of experts, where the configuration says so.
    fn drop_hidden(&mut self, weights: &Weights, x: BufId) {
        let drops = self.config.moe.as_ref().is_some_and(|moe| moe.dropout > 0.0);
        if let Weights::Experts { moe, .. } = weights
            && drops
        {
            self.ops.push(Op::DropHidden { x, moe: *moe });
        }
    }

    fn product(&mut self, x: BufId, weights: &Weights, projection: &str, out: BufId, accumulate: bool) -> Result<()> {
        match weights {
            Weights::One(name) => self.linear(x, &format!("{name}.{projection}"), out),
            Weights::Experts { moe, .. } => {
                let (moe, weights) = (*moe, self.expert_params(weights, projection)?);
                self.ops.push(Op::ExpertLinear { x, weights, moe, out, accumulate });
                Ok(())
            }
        }
    }

    fn linear(&mut self, x: BufId, name: &str, out: BufId) -> Result<()> {
        let (weight, bias) = self.weight_and_bias(name)?;
        self.ops.push(Op::Linear { x, weight, bias, out });
        Ok(())
    }

    fn weight_and_bias(&self, name: &str) -> Result<(ParamId, Option<ParamId>)> {
        let bias = self.params.get(format!("{name}.bias").as_str()).map(|&i| ParamId(i));
        Ok((self.param(&format!("{name}.weight"))?, bias))
    }

    /// The weight `projection` of every expert.
    fn expert_params(&self, weights: &Weights, projection: &str) -> Result<Vec<ParamId>> {
        let Weights::Experts { name, moe } = weights else { return Ok(Vec::new()) };
        let n_experts = self.config.moe.as_ref().map_or(0, |config| config.of_layer(*moe).n_experts);
        (0..n_experts).map(|e| self.param(&format!("{name}.{e}.{projection}.weight"))).collect()
    }

    fn param(&self, name: &str) -> Result<ParamId> {
        let found = self.params.get(name).map(|&i| ParamId(i));
        found.ok_or_else(|| Error::Input(format!("no parameter {name}: expected all of the configured model")))
    }

    fn buffer(&mut self, rows: usize, cols: usize) -> BufId {
        self.buffers.push(Buffer { rows, cols, slot: usize::MAX });
        BufId(self.buffers.len() - 1)
    }

    fn like(&mut self, id: BufId) -> BufId {
        let Buffer { rows, cols, .. } = self.buffers[id.0];
        self.buffer(rows, cols)
    }

    /// Says that the gradients of the parameters whose names begin with `prefix` are complete. They lie side by side.
    fn ready(&mut self, prefix: &str) {
        let ids = self.params.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, &i)| i);
        let (first, last) = ids.fold((usize::MAX, 0), |(first, last), i| (first.min(i), last.max(i)));
        if first <= last {
            self.ops.push(Op::Ready { parameters: first..last + 1 });
        }
    }
}
