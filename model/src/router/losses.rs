//! Losses over a router's scores: scalars, already multiplied by their coefficient.

use candle_core::{D, Tensor};

use crate::error::Result;
use crate::router::Scores;

/// Load balance: `coefficient · E · Σ f_e P_e`, with the share of assignments `f` and the mean probability `P` (Fedus et al. 2022, arXiv
/// 2101.03961, eq. 4). Least, and equal to the coefficient, where both are uniform.
pub(crate) fn balance(probs_NE: &Tensor, share_E: &[f32], coefficient: f64) -> Result<Tensor> {
    let e = share_E.len() as f64;
    let share_E = Tensor::new(share_E, probs_NE.device())?;
    Ok((probs_NE.mean(0)?.mul(&share_E)?.sum_all()? * (e * coefficient))?)
}

/// Router z-loss: `coefficient · mean(logsumexp(logits)²)` (Zoph et al. 2022, arXiv 2202.08906, eq. 5).
pub(crate) fn z(scores: &Scores, coefficient: f64) -> Result<Tensor> {
    Ok((scores.logits_NE.log_sum_exp(D::Minus1)?.sqr()?.mean_all()? * coefficient)?)
}

/// Importance: `coefficient · CV²` of the experts' summed probabilities (Shazeer et al. 2017, arXiv 1701.06538, eq. 6-7).
pub(crate) fn importance(scores: &Scores, coefficient: f64) -> Result<Tensor> {
    let e = scores.probs_NE.dim(1)? as f64;
    // The squared coefficient of variation of shares that add up to one: E · Σ P² - 1.
    let mean_E = scores.probs_NE.mean(0)?;
    Ok(((mean_E.sqr()?.sum_all()? * e)? - 1.0)?.affine(coefficient, 0.0)?)
}
