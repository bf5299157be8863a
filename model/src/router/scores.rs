//! What routers that score experts have in common: a linear map, softmax in float32, the likeliest experts.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::softmax;

use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::params::{Init, Params};
use crate::router::{Plan, RouterContext};

/// What experts are chosen by, float32 (selective precision, Fedus et al. 2022, arXiv 2101.03961, §2.4). Shapes: `NE`.
#[derive(Clone, Debug)]
pub struct Scores {
    pub logits_NE: Tensor,
    /// Softmax of the logits over the experts that may be chosen.
    pub probs_NE: Tensor,
}

/// The weight of a linear router, `scale` times as wide as it keeps variances.
pub(super) fn weight(model: &ModelConfig, moe: &MoeConfig, scale: f64, params: &mut Params) -> Result<Tensor> {
    let init = Init::Normal(scale / (model.d_model as f64).sqrt());
    params.get("router.weight", &[moe.n_experts, model.d_model], init)
}

/// Shapes: `x_ND`, `w_ED` -> `NE`.
pub(super) fn logits(x_ND: &Tensor, w_ED: &Tensor) -> Result<Tensor> {
    Ok(x_ND.to_dtype(DType::F32)?.matmul(&w_ED.t()?)?)
}

impl Scores {
    /// Of the logits, with those of experts that may not be chosen far below all others.
    pub(super) fn new(logits_NE: Tensor, context: &RouterContext) -> Result<Scores> {
        let logits_NE = match context.allowed_E {
            Some(allowed_E) => {
                let mask_E: Vec<f32> = allowed_E.iter().map(|&allowed| if allowed { 0.0 } else { -1e9 }).collect();
                logits_NE.broadcast_add(&Tensor::new(mask_E, logits_NE.device())?)?
            }
            None => logits_NE,
        };
        Ok(Scores { probs_NE: softmax(&logits_NE, D::Minus1)?, logits_NE })
    }

    /// The plan of the `s` likeliest experts of each token, weighted by their probabilities.
    pub(super) fn likeliest(&self, s: usize) -> Result<Plan> {
        let (n, e) = self.probs_NE.dims2()?;
        // The one read from the device: dispatch groups tokens by expert on the host.
        let expert_A = top_k(&host(&self.probs_NE)?, e, s);
        let token_A = (0..(n * s) as u32).map(|a| a / s as u32).collect();
        let expert_NS = Tensor::from_slice(&expert_A, (n, s), self.probs_NE.device())?;
        let weight_A = Some(self.probs_NE.gather(&expert_NS, 1)?.flatten_all()?);
        Ok(Plan { token_A, expert_A, weight_A, shared_weight_N: None })
    }

    /// The probabilities of these assignments. Shape: `A`.
    pub(super) fn probs_of(&self, token_A: &[u32], expert_A: &[u32]) -> Result<Tensor> {
        let e = self.probs_NE.dim(1)? as u32;
        let place_A: Vec<u32> = token_A.iter().zip(expert_A).map(|(token, expert)| token * e + expert).collect();
        let place_A = Tensor::new(place_A, self.probs_NE.device())?;
        Ok(self.probs_NE.flatten_all()?.index_select(&place_A, 0)?)
    }
}

/// The values of a matrix on the host, row by row, without gradient.
pub(super) fn host(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.detach().flatten_all()?.to_vec1::<f32>()?)
}

/// The `s` likeliest experts of each row of `probs_NE`, likeliest first; the lower index wins a tie.
pub(super) fn top_k(probs_NE: &[f32], e: usize, s: usize) -> Vec<u32> {
    let mut order: Vec<u32> = Vec::with_capacity(e);
    let mut selected = Vec::with_capacity(probs_NE.len() / e * s);
    for probs_E in probs_NE.chunks_exact(e) {
        order.clear();
        order.extend(0..e as u32);
        order.sort_by(|&a, &b| probs_E[b as usize].total_cmp(&probs_E[a as usize]).then(a.cmp(&b)));
        selected.extend(&order[..s]);
    }
    selected
}

/// As a tanh: it overflows nowhere, nor does its gradient.
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x * 0.5)?.tanh()?.affine(0.5, 0.5)?)
}
