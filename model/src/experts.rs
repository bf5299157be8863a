//! Feed-forward networks: a dense layer's, the shared expert's, and those of experts: the seam ([`Experts`]) and the one table of the ways
//! in which experts hold their weights.
//!
//! A way is one file in `experts/` and one row of the table below. The layer knows none of them.

use std::borrow::Cow;
use std::fmt::Debug;

use candle_core::Tensor;

use crate::config::{Activation, ModelConfig, MoeConfig};
use crate::draw::LayerDraw;
use crate::error::Result;
use crate::methods::methods;
use crate::ops::{self, linear};
use crate::params::{Init, Params};

/// `down(relu(up x)^2)` or `down(silu(gate x) * up x)`.
#[derive(Clone, Debug)]
pub(crate) struct FeedForward {
    w_gate_FD: Option<Tensor>,
    w_up_FD: Tensor,
    w_down_DF: Tensor,
}

/// One matrix of a network: its name, its shape, and how it begins.
pub(crate) type Projection = (&'static str, [usize; 2], Init);

impl FeedForward {
    /// Builds the network with hidden width `f` below the current scope of `params`.
    pub(crate) fn new(config: &ModelConfig, f: usize, params: &mut Params) -> Result<FeedForward> {
        FeedForward::of(config, f, &mut |(name, shape, init)| params.get(&format!("{name}.weight"), &shape, init))
    }

    /// Builds it of the matrices that `weight` makes.
    pub(crate) fn of(
        config: &ModelConfig,
        f: usize,
        weight: &mut dyn FnMut(Projection) -> Result<Tensor>,
    ) -> Result<FeedForward> {
        let d = config.d_model;
        let inner = Init::Normal(1.0 / (d as f64).sqrt());
        let w_gate_FD = match config.activation {
            Activation::Swiglu => Some(weight(("gate_proj", [f, d], inner))?),
            Activation::Relu2 => None,
        };
        let w_up_FD = weight(("up_proj", [f, d], inner))?;
        let w_down_DF = weight(("down_proj", [d, f], output_init(config, f)))?;
        Ok(FeedForward { w_gate_FD, w_up_FD, w_down_DF })
    }

    /// Its matrices by name.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let gate = self.w_gate_FD.as_ref().map(|w_FD| ("gate_proj", w_FD));
        gate.into_iter().chain([("up_proj", &self.w_up_FD), ("down_proj", &self.w_down_DF)])
    }

    /// Shape: `x_ND` -> `ND`.
    pub(crate) fn forward(&self, x_ND: &Tensor) -> Result<Tensor> {
        self.forward_masked(x_ND, None)
    }

    /// As [`FeedForward::forward`], with hidden values multiplied by `mask_NF`.
    pub(crate) fn forward_masked(&self, x_ND: &Tensor, mask_NF: Option<&Tensor>) -> Result<Tensor> {
        let up_NF = linear(x_ND, &self.w_up_FD)?;
        let hidden_NF = match &self.w_gate_FD {
            Some(w_gate_FD) => ops::swiglu(&linear(x_ND, w_gate_FD)?, &up_NF)?,
            None => ops::relu2(&up_NF)?,
        };
        let hidden_NF = mask_NF.map_or(Ok(hidden_NF.clone()), |mask_NF| hidden_NF.mul(mask_NF))?;
        Ok(linear(&hidden_NF, &self.w_down_DF)?)
    }
}

/// Initial values of a matrix that writes to the residual stream: smaller the deeper the model (Radford et al. 2019, §2.3).
pub(crate) fn output_init(config: &ModelConfig, inputs: usize) -> Init {
    Init::Normal(1.0 / (inputs as f64).sqrt() / (2.0 * config.n_layers as f64).sqrt())
}

/// The experts of a layer.
pub(crate) trait Experts: Send + Sync + Debug {
    /// The network of each expert, for one pass.
    ///
    /// # Errors
    /// A failing device.
    fn networks(&self, draw: Option<LayerDraw>) -> Result<Cow<'_, [FeedForward]>>;
}

/// A way to hold weights: what its row in the table must offer.
pub(crate) trait ExpertParamSpec: Default {
    const NAME: &'static str;
    /// The source of the method.
    const PAPER: &'static str;
    /// [`ExpertParamSpec::n_parameters`] of a matrix of D x F as a formula, for E experts.
    const PARAMETERS: &'static str;

    fn parameters(&self) -> &'static str {
        Self::PARAMETERS
    }

    /// Whether weights are parameters themselves, side by side; others are made before a tape runs, and before a model is served.
    fn is_plain(&self) -> bool;
    /// Weights are asked for below the layer's scope.
    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Experts>>;
    fn validate(&self, model: &ModelConfig, moe: &MoeConfig) -> Result<()>;
    /// The weights, by their names below the layer's, of experts that all have the matrix `w` of a dense network for `projection`: sparse
    /// upcycling (Komatsuzaki et al. 2023, arXiv 2212.05055).
    fn copies(&self, moe: &MoeConfig, projection: &str, w: &Tensor) -> Result<Vec<(String, Tensor)>>;
    /// Parameters of all experts of a layer.
    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize;
}

methods! {
    /// How experts hold their weights, tagged by its name (`kind = "mpo"`).
    pub enum ExpertParam: ExpertParamSpec {
        full::Full,
        mpo::Mpo,
    }

    /// Whether weights are parameters themselves, side by side.
    pub fn is_plain() -> bool;
    pub(crate) fn build(model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Experts>>;
    pub(crate) fn validate(model: &ModelConfig, moe: &MoeConfig) -> Result<()>;
    /// The weights, by their names below the layer's, of experts that all have the matrix `w` of a dense network for `projection`.
    pub fn copies(moe: &MoeConfig, projection: &str, w: &Tensor) -> Result<Vec<(String, Tensor)>>;
    /// Parameters of all experts of a layer.
    pub fn n_parameters(model: &ModelConfig, moe: &MoeConfig) -> usize;
    pub fn parameters() -> &'static str;
}

impl Default for ExpertParam {
    fn default() -> Self {
        ExpertParam::Full(full::Full::default())
    }
}

impl ExpertParam {
    /// Whether it is what a configuration need not name.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, ExpertParam::Full(_))
    }
}
