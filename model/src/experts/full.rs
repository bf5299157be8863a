//! Each expert has matrices of its own.

use std::borrow::Cow;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{ExpertParamSpec, Experts, FeedForward};
use crate::config::{ModelConfig, MoeConfig};
use crate::draw::LayerDraw;
use crate::error::Result;
use crate::params::Params;

/// No options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Full {}

impl ExpertParamSpec for Full {
    const NAME: &'static str = "full";
    const PAPER: &'static str = "Shazeer et al. 2017, arXiv 1701.06538";
    const PARAMETERS: &'static str = "E·D·F";

    fn is_plain(&self) -> bool {
        true
    }

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Experts>> {
        let expert = |params: &mut Params, e: usize| {
            params.scope(&format!("experts.{e}"), |params| FeedForward::new(model, moe.d_ff_expert, params))
        };
        let networks = (0..moe.n_experts).map(|e| expert(params, e)).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(FullExperts(networks)))
    }

    fn validate(&self, _model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        Ok(())
    }

    fn copies(&self, moe: &MoeConfig, projection: &str, w: &Tensor) -> Result<Vec<(String, Tensor)>> {
        Ok((0..moe.n_experts).map(|e| (format!("experts.{e}.{projection}.weight"), w.clone())).collect())
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        moe.n_experts * model.n_ffn_parameters(moe.d_ff_expert)
    }
}

#[derive(Debug)]
struct FullExperts(Vec<FeedForward>);

impl Experts for FullExperts {
    fn networks(&self, _draw: Option<LayerDraw>) -> Result<Cow<'_, [FeedForward]>> {
        Ok(Cow::Borrowed(&self.0))
    }
}
