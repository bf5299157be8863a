//! Feed-forward networks: a dense layer's, the shared expert's, and one for each expert.

use candle_core::Tensor;

use crate::config::{Activation, ModelConfig};
use crate::error::Result;
use crate::ops::{self, linear};
use crate::params::{Init, Params};

/// `down(relu(up x)^2)` or `down(silu(gate x) * up x)`.
#[derive(Debug)]
pub(crate) struct FeedForward {
    w_gate_FD: Option<Tensor>,
    w_up_FD: Tensor,
    w_down_DF: Tensor,
}

impl FeedForward {
    /// Builds the network with hidden width `f` below the current scope of `params`.
    pub(crate) fn new(config: &ModelConfig, f: usize, params: &mut Params) -> Result<FeedForward> {
        let d = config.d_model;
        let inner = Init::Normal(1.0 / (d as f64).sqrt());
        let w_gate_FD = match config.activation {
            Activation::Swiglu => Some(params.get("gate_proj.weight", &[f, d], inner)?),
            Activation::Relu2 => None,
        };
        let w_up_FD = params.get("up_proj.weight", &[f, d], inner)?;
        let w_down_DF = params.get("down_proj.weight", &[d, f], output_init(config, f))?;
        Ok(FeedForward { w_gate_FD, w_up_FD, w_down_DF })
    }

    /// Shape: `x_ND` -> `ND`.
    pub(crate) fn forward(&self, x_ND: &Tensor) -> Result<Tensor> {
        let up_NF = linear(x_ND, &self.w_up_FD)?;
        let hidden_NF = match &self.w_gate_FD {
            Some(w_gate_FD) => ops::swiglu(&linear(x_ND, w_gate_FD)?, &up_NF)?,
            None => ops::relu2(&up_NF)?,
        };
        Ok(linear(&hidden_NF, &self.w_down_DF)?)
    }
}

/// Initial values of a matrix that writes to the residual stream: smaller the deeper the model (Radford et al. 2019, §2.3).
pub(crate) fn output_init(config: &ModelConfig, inputs: usize) -> Init {
    Init::Normal(1.0 / (inputs as f64).sqrt() / (2.0 * config.n_layers as f64).sqrt())
}
