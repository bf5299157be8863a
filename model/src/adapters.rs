//! Small networks after each layer, one for each language: the seam ([`Adapters`]) and the one table of the ways to come by their weights.
//!
//! `x + U relu(D LN(x))` (Houlsby et al. 2019, arXiv 1902.00751; Bapna and Firat 2019, arXiv 1909.08478). A token of unknown language has an
//! adapter of its own.

use std::fmt::Debug;

use candle_core::{D, Tensor};

use crate::config::{ModelConfig, UNKNOWN_LANGUAGE, check};
use crate::error::Result;
use crate::methods::methods;
use crate::ops::linear;
use crate::params::Params;

/// Keeps the square root of a variance away from zero.
const EPS: f64 = 1e-5;
/// Beyond any adapter: see [`ModelConfig::validate`].
const MAX_WIDTH: usize = 1 << 16;

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
    /// [`AdapterSpec::n_parameters`] as a formula.
    const PARAMETERS: &'static str;

    fn parameters(&self) -> &'static str {
        Self::PARAMETERS
    }

    /// Weights are asked for below the scope `adapters`.
    fn build(&self, model: &ModelConfig, params: &mut Params) -> Result<Box<dyn Adapters>>;
    fn validate(&self, model: &ModelConfig) -> Result<()>;
    fn n_parameters(&self, model: &ModelConfig) -> usize;
    /// Whether adapters are parameters themselves; else a network makes them, and they are made once before a model is served.
    fn is_plain(&self) -> bool {
        true
    }
    /// Width of an adapter.
    fn bottleneck(&self) -> usize;
}

methods! {
    /// How adapters come by their weights, tagged by its name (`kind = "hyper"`).
    pub enum AdapterConfig: AdapterSpec {
        plain::Plain,
        hyper::Hyper,
    }

    pub(crate) fn build(model: &ModelConfig, params: &mut Params) -> Result<Box<dyn Adapters>>;
    pub(crate) fn validate(model: &ModelConfig) -> Result<()>;
    pub fn n_parameters(model: &ModelConfig) -> usize;
    /// Whether adapters are parameters themselves; else a network makes them.
    pub fn is_plain() -> bool;
    /// Width of an adapter.
    pub fn bottleneck() -> usize;
    pub fn parameters() -> &'static str;
}

fn check_width(field: &'static str, width: usize) -> Result<()> {
    check((1..=MAX_WIDTH).contains(&width), field, width, &format!("1 to {MAX_WIDTH}"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// An adapter that adds `factor` times the positive part of the normalized first value to the second one.
    #[derive(Debug)]
    struct Fixed;

    impl Adapters for Fixed {
        fn adapter(&self, layer: usize, language: Option<usize>) -> Result<Adapter> {
            let factor = (layer * 10 + language.map_or(9, |language| language + 1)) as f32;
            let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
            Ok(Adapter {
                scale_D: tensor(&[1.0, 1.0]),
                shift_D: tensor(&[0.0, 0.0]),
                down_FD: tensor(&[1.0, 0.0]).reshape((1, 2))?,
                up_DF: tensor(&[0.0, factor]).reshape((2, 1))?,
            })
        }
    }

    #[test]
    fn each_token_has_the_adapter_of_its_language_and_layer() {
        // Normalized, each of these is (1, -1) or (-1, 1).
        let x_BLD = Tensor::new(&[[[5f32, 3.0], [4.0, 2.0], [0.0, 6.0], [7.0, 1.0]]], &Device::Cpu).unwrap();
        let y_BLD = adapt(&Fixed, 2, &x_BLD, &[0, 1, 0, UNKNOWN_LANGUAGE]).unwrap();
        let added = (y_BLD - &x_BLD).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = [0.0, 21.0, 0.0, 22.0, 0.0, 0.0, 0.0, 29.0];
        assert!(added.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-3), "{added:?}");
        let one = adapt(&Fixed, 0, &x_BLD, &[1; 4]).unwrap();
        let added = (one - x_BLD).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!((added[1] - 2.0).abs() < 1e-4 && added[5] == 0.0, "{added:?}");
    }
}
