//! Grouped-query self-attention with rotary positions and an optional cache of earlier keys and values.

use candle_core::Tensor;

use crate::cache::LayerCache;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::experts::output_init;
use crate::ops::{self, Rope, linear};
use crate::params::{Init, Params};

/// Query, key, value and output projections of one layer.
#[derive(Debug)]
pub(crate) struct Attention {
    q: Projection,
    k: Projection,
    v: Projection,
    w_o_DP: Tensor,
    norms: Option<(Tensor, Tensor)>,
    /// What each token adds to its value.
    value_VP: Option<Tensor>,
    norm_eps: f64,
    d_head: usize,
}

/// A weight with one row per output, and its bias.
#[derive(Debug)]
struct Projection {
    w_PD: Tensor,
    bias_P: Option<Tensor>,
}

impl Projection {
    fn new(config: &ModelConfig, name: &str, outputs: usize, params: &mut Params) -> Result<Projection> {
        let init = Init::Normal(1.0 / (config.d_model as f64).sqrt());
        let w_PD = params.get(&format!("{name}.weight"), &[outputs, config.d_model], init)?;
        let bias_P = match config.qkv_bias {
            true => Some(params.get(&format!("{name}.bias"), &[outputs], Init::Zero)?),
            false => None,
        };
        Ok(Projection { w_PD, bias_P })
    }

    fn forward(&self, x_ND: &Tensor) -> Result<Tensor> {
        let y_NP = linear(x_ND, &self.w_PD)?;
        match &self.bias_P {
            Some(bias_P) => Ok(y_NP.broadcast_add(bias_P)?),
            None => Ok(y_NP),
        }
    }
}

impl Attention {
    pub(crate) fn new(config: &ModelConfig, layer: usize, params: &mut Params) -> Result<Attention> {
        let (queries, keys) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
        let q = Projection::new(config, "q_proj", queries, params)?;
        let k = Projection::new(config, "k_proj", keys, params)?;
        let v = Projection::new(config, "v_proj", keys, params)?;
        let w_o_DP = params.get("o_proj.weight", &[config.d_model, queries], output_init(config, queries))?;
        let norms = match config.qk_norm {
            true => Some((
                params.get("q_norm.weight", &[config.d_head], Init::One)?,
                params.get("k_norm.weight", &[config.d_head], Init::One)?,
            )),
            false => None,
        };
        let value_VP = match config.value_embedding_layers.contains(&layer) {
            true => Some(params.get("value_embedding.weight", &[config.vocab_size, keys], Init::Zero)?),
            false => None,
        };
        Ok(Attention { q, k, v, w_o_DP, norms, value_VP, norm_eps: config.norm_eps, d_head: config.d_head })
    }

    /// Shapes: `x_BLD`, `ids_N` (on the CPU) -> `BLD`. With a cache, the new positions follow those in it and are added to it; without one,
    /// no position sees what lies before its `start_BL`.
    pub(crate) fn forward(
        &self,
        x_BLD: &Tensor,
        ids_N: &Tensor,
        rope: &Rope,
        start_BL: Option<&[u32]>,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor> {
        let (b, l, d) = x_BLD.dims3()?;
        let x_ND = x_BLD.reshape((b * l, d))?;
        let heads = |projection: &Projection| -> Result<Tensor> {
            Ok(projection.forward(&x_ND)?.reshape((b, l, (), self.d_head))?)
        };
        let (mut q_BLHK, mut k_BLGK, mut v_BLGK) = (heads(&self.q)?, heads(&self.k)?, heads(&self.v)?);
        if let Some(value_VP) = &self.value_VP {
            v_BLGK = (&v_BLGK + ops::gather_rows(value_VP, ids_N)?.reshape(v_BLGK.shape())?)?;
        }
        if let Some((q_norm_K, k_norm_K)) = &self.norms {
            q_BLHK = ops::rms_norm(&q_BLHK, q_norm_K, self.norm_eps)?;
            k_BLGK = ops::rms_norm(&k_BLGK, k_norm_K, self.norm_eps)?;
        }
        let start = cache.as_ref().map_or(0, |cache| cache.n_tokens());
        let q_BLHK = ops::apply_rope(&q_BLHK, rope, start)?;
        let k_BLGK = ops::apply_rope(&k_BLGK, rope, start)?;
        let out_BLHK = match cache {
            Some(cache) => {
                let (k_BMGK, v_BMGK) = cache.append(&k_BLGK, &v_BLGK)?;
                ops::causal_attention(&q_BLHK, &k_BMGK, &v_BMGK, None)?
            }
            None => ops::causal_attention(&q_BLHK, &k_BLGK, &v_BLGK, start_BL)?,
        };
        let out_NP = out_BLHK.reshape((b * l, ()))?;
        Ok(linear(&out_NP, &self.w_o_DP)?.reshape((b, l, d))?)
    }
}
