//! Small networks after each layer, one for each language: the seam ([`Adapters`]) and the one table of the ways to come by their weights.
//!
//! `x + U relu(D LN(x))` (Houlsby et al. 2019, arXiv 1902.00751; Bapna and Firat 2019, arXiv 1909.08478). A token of unknown language has an
//! adapter of its own.

use std::fmt::Debug;

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, UNKNOWN_LANGUAGE};
use crate::error::Result;
use crate::ops::linear;
use crate::params::Params;

/// Keeps the square root of a variance away from zero.
const EPS: f64 = 1e-5;

/// One language's adapter in one layer. F is the width of the bottleneck.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    pub(crate) scale_D: Tensor,
    pub(crate) shift_D: Tensor,
    pub(crate) down_FD: Tensor,
    pub(crate) up_DF: Tensor,
}

impl Adapter {
    /// What it adds. Shape: `x_ND` -> `ND`.
    fn forward(&self, x_ND: &Tensor) -> Result<Tensor> {
        let normed_ND = normed(x_ND)?.broadcast_mul(&self.scale_D)?.broadcast_add(&self.shift_D)?;
        Ok(linear(&linear(&normed_ND, &self.down_FD)?.relu()?, &self.up_DF)?)
    }
}

/// LayerNorm without weights.
fn normed(x: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = centred.sqr()?.mean_keepdim(D::Minus1)?.affine(1.0, EPS)?.sqrt()?;
    Ok(centred.broadcast_div(&deviation)?)
}

/// The adapters of a model.
pub(crate) trait Adapters: Send + Sync + Debug {
    /// That of a layer for a language, or for none.
    ///
    /// # Errors
    /// A failing device.
    fn adapter(&self, layer: usize, language: Option<usize>) -> Result<Adapter>;
}

/// A way to come by adapters' weights: what its row in the table must offer.
pub(crate) trait AdapterSpec: Default {
    const NAME: &'static str;
    /// The source of the method.
    const PAPER: &'static str;

    /// Weights are asked for below the scope `adapters`.
    fn build(&self, model: &ModelConfig, params: &mut Params) -> Result<Box<dyn Adapters>>;
    fn validate(&self, model: &ModelConfig) -> Result<()>;
    fn n_parameters(&self, model: &ModelConfig) -> usize;
    /// Width of an adapter.
    fn bottleneck(&self) -> usize;
}

macro_rules! adapters {
    ($($module:ident :: $spec:ident),* $(,)?) => {
        $(pub mod $module;)*

        /// How adapters come by their weights, tagged by its name (`kind = "hyper"`).
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        pub enum AdapterConfig {
            $($spec($module::$spec)),*
        }

        impl AdapterConfig {
            /// Every way with its default options, in the order of the table.
            pub fn all() -> Vec<AdapterConfig> {
                vec![$(AdapterConfig::$spec($module::$spec::default())),*]
            }

            pub fn name(&self) -> &'static str {
                match self { $(AdapterConfig::$spec(_) => $module::$spec::NAME),* }
            }

            pub fn paper(&self) -> &'static str {
                match self { $(AdapterConfig::$spec(_) => $module::$spec::PAPER),* }
            }

            pub(crate) fn build(&self, model: &ModelConfig, params: &mut Params) -> Result<Box<dyn Adapters>> {
                match self { $(AdapterConfig::$spec(spec) => spec.build(model, params)),* }
            }

            pub(crate) fn validate(&self, model: &ModelConfig) -> Result<()> {
                match self { $(AdapterConfig::$spec(spec) => spec.validate(model)),* }
            }

            pub fn n_parameters(&self, model: &ModelConfig) -> usize {
                match self { $(AdapterConfig::$spec(spec) => spec.n_parameters(model)),* }
            }

            /// Width of an adapter.
            pub fn bottleneck(&self) -> usize {
                match self { $(AdapterConfig::$spec(spec) => spec.bottleneck()),* }
            }
        }
    };
}

adapters! {
    plain::Plain,
    hyper::Hyper,
}

/// Adds to each token what its language's adapter of the layer says. Shape: `x_BLD` -> `BLD`.
pub(crate) fn adapt(adapters: &dyn Adapters, layer: usize, x_BLD: &Tensor, language_N: &[u32]) -> Result<Tensor> {
    let (b, l, d) = x_BLD.dims3()?;
    let x_ND = x_BLD.reshape((b * l, d))?;
    let mut languages = language_N.to_vec();
    languages.sort_unstable();
    languages.dedup();
    let adapter = |language: u32| adapters.adapter(layer, (language != UNKNOWN_LANGUAGE).then_some(language as usize));
    if let [language] = languages[..] {
        return Ok((x_BLD + adapter(language)?.forward(&x_ND)?.reshape((b, l, d))?)?);
    }
    let mut y_ND = x_ND.clone();
    for language in languages {
        let of_language = (0..language_N.len() as u32).filter(|&n| language_N[n as usize] == language);
        let rows = Tensor::new(of_language.collect::<Vec<u32>>(), x_ND.device())?;
        let added = adapter(language)?.forward(&x_ND.index_select(&rows, 0)?)?;
        y_ND = y_ND.index_add(&rows, &added, 0)?;
    }
    Ok(y_ND.reshape((b, l, d))?)
}
