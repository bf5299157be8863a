//! Each language has weights of its own in each layer: the control of hyper-adapters, and what they become when a model is packed.

use serde::{Deserialize, Serialize};

use super::{Adapter, AdapterSpec, Adapters, check_width};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::params::{Init, Params};

/// Options of `adapter = { kind = "plain", .. }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plain {
    /// Width of an adapter.
    pub bottleneck: usize,
}

impl Default for Plain {
    fn default() -> Self {
        Plain { bottleneck: 64 }
    }
}

/// The name of an adapter's scope.
pub(crate) fn scope(layer: usize, language: Option<&str>) -> String {
    format!("{layer}.{}", language.unwrap_or("unknown"))
}

impl AdapterSpec for Plain {
    const NAME: &'static str = "plain";
    const PAPER: &'static str = "Bapna and Firat 2019, arXiv 1909.08478";
    const PARAMETERS: &'static str = "2·N·(L + 1)·D·(F + 1)";

    fn build(&self, model: &ModelConfig, params: &mut Params) -> Result<Box<dyn Adapters>> {
        let (d, f) = (model.d_model, self.bottleneck);
        let adapter = |params: &mut Params| {
            Ok(Adapter {
                scale_D: params.get("norm.weight", &[d], Init::One)?,
                shift_D: params.get("norm.bias", &[d], Init::Zero)?,
                down_FD: params.get("down.weight", &[f, d], Init::Normal(1.0 / (d as f64).sqrt()))?,
                // So that the first step is that of the model without.
                up_DF: params.get("up.weight", &[d, f], Init::Zero)?,
            })
        };
        let languages = || model.languages.iter().map(|name| Some(name.as_str())).chain([None]);
        let of_layer = |layer: usize| languages().map(move |language| scope(layer, language));
        let all = (0..model.n_layers).map(|layer| of_layer(layer).map(|name| params.scope(&name, adapter)).collect());
        Ok(Box::new(PlainAdapters(all.collect::<Result<_>>()?)))
    }

    fn validate(&self, _model: &ModelConfig) -> Result<()> {
        check_width("adapter.bottleneck", self.bottleneck)
    }

    fn n_parameters(&self, model: &ModelConfig) -> usize {
        model.n_layers * (model.languages.len() + 1) * 2 * model.d_model * (self.bottleneck + 1)
    }

    fn bottleneck(&self) -> usize {
        self.bottleneck
    }
}

/// By layer, and then by language; the last one is that of unknown languages.
#[derive(Debug)]
struct PlainAdapters(Vec<Vec<Adapter>>);

impl Adapters for PlainAdapters {
    fn adapter(&self, layer: usize, language: Option<usize>) -> Result<Adapter> {
        let of_layer = &self.0[layer];
        let place = language.unwrap_or(of_layer.len() - 1);
        of_layer
            .get(place)
            .filter(|_| language.is_none_or(|language| language + 1 < of_layer.len()))
            .cloned()
            .ok_or_else(|| Error::Input(format!("language index {place}: expected one below {}", of_layer.len() - 1)))
    }
}
