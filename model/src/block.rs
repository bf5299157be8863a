//! One layer: pre-norm attention, then a pre-norm feed-forward network, dense or of experts.

use candle_core::Tensor;

use crate::attention::Attention;
use crate::cache::LayerCache;
use crate::config::ModelConfig;
use crate::draw::Draw;
use crate::error::Result;
use crate::experts::FeedForward;
use crate::moe::{MoeLayer, MoeOutput};
use crate::ops::{self, Rope};
use crate::params::{Init, Params};
use crate::router::RouterContext;

/// `x + attention(norm(x))`, then `x + ffn(norm(x))`.
#[derive(Debug)]
pub(crate) struct Block {
    input_norm_D: Tensor,
    attention: Attention,
    ffn_norm_D: Tensor,
    pub(crate) ffn: Ffn,
    /// Layers with experts before this one.
    moe: usize,
    norm_eps: f64,
}

/// The feed-forward half of a layer.
#[derive(Debug)]
pub(crate) enum Ffn {
    Dense(FeedForward),
    Moe(MoeLayer),
}

/// What is known of the tokens besides their ids.
#[derive(Clone, Copy, Default)]
pub(crate) struct TokenContext<'a> {
    /// What all routers may look at.
    pub(crate) router: RouterContext<'a>,
    /// Random numbers of a step of training.
    pub(crate) draw: Option<&'a Draw>,
    /// The first position of its sequence that each token sees; none for the first of all.
    pub(crate) start_BL: Option<&'a [u32]>,
}

/// What a layer with experts says besides its output.
pub(crate) struct MoeReport {
    pub(crate) aux_loss: Option<Tensor>,
    pub(crate) load_E: Vec<f32>,
}

impl Block {
    pub(crate) fn new(config: &ModelConfig, layer: usize, params: &mut Params) -> Result<Block> {
        let d = config.d_model;
        let input_norm_D = params.get("input_layernorm.weight", &[d], Init::One)?;
        let attention = params.scope("self_attn", |params| Attention::new(config, layer, params))?;
        let ffn_norm_D = params.get("post_attention_layernorm.weight", &[d], Init::One)?;
        let ffn = params.scope("mlp", |params| {
            Ok(match config.moe_of_layer(layer) {
                Some(moe) => Ffn::Moe(MoeLayer::new(config, &moe, params)?),
                None => Ffn::Dense(FeedForward::new(config, config.d_ff, params)?),
            })
        })?;
        let moe = (0..layer).filter(|&layer| config.is_moe_layer(layer)).count();
        Ok(Block { input_norm_D, attention, ffn_norm_D, ffn, moe, norm_eps: config.norm_eps })
    }

    /// Shapes: `x_BLD`, `ids_N` (on the CPU) -> `BLD`.
    pub(crate) fn forward(
        &self,
        x_BLD: &Tensor,
        ids_N: &Tensor,
        rope: &Rope,
        context: &TokenContext,
        cache: Option<&mut LayerCache>,
    ) -> Result<(Tensor, Option<MoeReport>)> {
        let normed_BLD = ops::rms_norm(x_BLD, &self.input_norm_D, self.norm_eps)?;
        let x_BLD = (x_BLD + self.attention.forward(&normed_BLD, ids_N, rope, context.start_BL, cache)?)?;
        let (b, l, d) = x_BLD.dims3()?;
        let normed_ND = ops::rms_norm(&x_BLD, &self.ffn_norm_D, self.norm_eps)?.reshape((b * l, d))?;
        let (y_ND, report) = match &self.ffn {
            Ffn::Dense(ffn) => (ffn.forward(&normed_ND)?, None),
            Ffn::Moe(moe) => {
                let draw = context.draw.map(|draw| draw.layer(self.moe));
                let context = RouterContext { draw, ..context.router };
                let MoeOutput { y_ND, aux_loss, load_E } = moe.forward(&normed_ND, &context)?;
                (y_ND, Some(MoeReport { aux_loss, load_E }))
            }
        };
        Ok(((x_BLD + y_ND.reshape((b, l, d))?)?, report))
    }
}
