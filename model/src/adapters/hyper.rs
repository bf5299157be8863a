//! Hyper-adapters: one network makes the weights of all adapters, from what it learns of each language and each layer.
//!
//! Baziotis et al. 2022 (arXiv 2205.10835): `z = [e_language; e_layer]`, `h` of two residual layers, and a head for each weight. What the
//! heads make is multiplied by `1 / sqrt(d_h)`, without which large networks stall. [`crate::CodeLm::materialized`] turns them into plain
//! adapters, so that serving pays for none of it.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Adapter, AdapterSpec, Adapters, check_width, normed};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::ops::linear;
use crate::params::{Init, Params};

/// Options of `adapter = { kind = "hyper", .. }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hyper {
    /// Width of an adapter.
    pub bottleneck: usize,
    /// Width of the network that makes them.
    pub d_h: usize,
    /// Width of the embeddings of languages and of layers.
    pub d_embedding: usize,
    /// Whether weights are multiplied by `1 / sqrt(d_h)`.
    pub rescale: bool,
}

impl Default for Hyper {
    fn default() -> Self {
        Hyper { bottleneck: 64, d_h: 128, d_embedding: 50, rescale: true }
    }
}

impl AdapterSpec for Hyper {
    const NAME: &'static str = "hyper";
    const PAPER: &'static str = "Baziotis et al. 2022, arXiv 2205.10835";
    const PARAMETERS: &'static str = "(N + L + 1)·e + 2·h·e + 4·h² + 2·D·(F + 1)·h";

    fn build(&self, model: &ModelConfig, params: &mut Params) -> Result<Box<dyn Adapters>> {
        let (d, f, h, e) = (model.d_model, self.bottleneck, self.d_h, self.d_embedding);
        let std = |inputs: usize| Init::Normal(1.0 / (inputs as f64).sqrt());
        let languages = params.get("languages.weight", &[model.languages.len() + 1, e], Init::Normal(1.0))?;
        let layers = params.get("layers.weight", &[model.n_layers, e], Init::Normal(1.0))?;
        let input = params.get("input.weight", &[h, 2 * e], std(2 * e))?;
        let residual = |params: &mut Params, k: usize| {
            let inner = params.get(&format!("residual.{k}.inner.weight"), &[h, h], std(h))?;
            Ok([inner, params.get(&format!("residual.{k}.outer.weight"), &[h, h], std(h))?])
        };
        let residuals = (0..2).map(|k| residual(params, k)).collect::<Result<_>>()?;
        // Without the rescaling, entries of the first projection have the deviation that they have in a plain adapter times sqrt(d_h).
        let down = params.get("down.weight", &[f * d, h], std(d))?;
        let up = params.get("up.weight", &[d * f, h], Init::Zero)?;
        let scale = params.get("norm.weight", &[d, h], Init::Zero)?;
        let shift = params.get("norm.bias", &[d, h], Init::Zero)?;
        let factor = if self.rescale { 1.0 / (h as f64).sqrt() } else { 1.0 };
        Ok(Box::new(HyperAdapters { languages, layers, input, residuals, heads: [scale, shift, down, up], d, factor }))
    }

    fn validate(&self, _model: &ModelConfig) -> Result<()> {
        check_width("adapter.bottleneck", self.bottleneck)?;
        check_width("adapter.d_h", self.d_h)?;
        check_width("adapter.d_embedding", self.d_embedding)
    }

    fn n_parameters(&self, model: &ModelConfig) -> usize {
        let (d, f, h, e) = (model.d_model, self.bottleneck, self.d_h, self.d_embedding);
        let embeddings = (model.languages.len() + 1 + model.n_layers) * e;
        embeddings + h * 2 * e + 4 * h * h + 2 * d * (f + 1) * h
    }

    fn is_plain(&self) -> bool {
        false
    }

    fn bottleneck(&self) -> usize {
        self.bottleneck
    }
}

#[derive(Debug)]
struct HyperAdapters {
    /// The last row is that of unknown languages.
    languages: Tensor,
    layers: Tensor,
    input: Tensor,
    residuals: Vec<[Tensor; 2]>,
    /// Of scale, shift, down and up.
    heads: [Tensor; 4],
    d: usize,
    factor: f64,
}

impl Adapters for HyperAdapters {
    fn adapter(&self, layer: usize, language: Option<usize>) -> Result<Adapter> {
        let unknown = self.languages.dim(0)? - 1;
        let row = language.unwrap_or(unknown);
        if language.is_some_and(|language| language >= unknown) {
            return Err(Error::Input(format!("language index {row}: expected one below {unknown}")));
        }
        let z = Tensor::cat(&[self.languages.narrow(0, row, 1)?, self.layers.narrow(0, layer, 1)?], 1)?;
        let mut h = linear(&z, &self.input)?;
        for [inner, outer] in &self.residuals {
            h = (&h + linear(&linear(&normed(&h)?, inner)?.relu()?, outer)?)?;
        }
        let h = normed(&h)?;
        let made = |head: &Tensor| -> Result<Tensor> { Ok((linear(&h, head)?.squeeze(0)? * self.factor)?) };
        let [scale, shift, down, up] = &self.heads;
        Ok(Adapter {
            scale_D: made(scale)?.affine(1.0, 1.0)?,
            shift_D: made(shift)?,
            down_FD: made(down)?.reshape(((), self.d))?,
            up_DF: made(up)?.reshape((self.d, ()))?,
        })
    }
}
