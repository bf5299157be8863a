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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn losses_of_worked_cases() {
        let value = |loss: Result<Tensor>| f64::from(loss.unwrap().to_scalar::<f32>().unwrap());
        let tensor = |rows: [[f32; 2]; 2]| Tensor::new(&rows, &Device::Cpu).unwrap();
        let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-6, "{got}, not {expected}");
        // E = 2, f = (1/2, 1/2): the coefficient, whatever the probabilities; all on one expert: twice its mean probability.
        let probs_NE = tensor([[0.75, 0.25], [0.65, 0.35]]);
        close(value(balance(&probs_NE, &[0.5, 0.5], 0.01)), 0.01);
        close(value(balance(&probs_NE, &[1.0, 0.0], 0.01)), 0.01 * 2.0 * 0.7);
        // logsumexp(0, 0) = ln 2, logsumexp(1, 1) = 1 + ln 2.
        let scores = Scores { logits_NE: tensor([[0.0, 0.0], [1.0, 1.0]]), probs_NE: probs_NE.clone() };
        let ln2 = std::f64::consts::LN_2;
        close(value(z(&scores, 0.1)), 0.1 * (ln2 * ln2 + (1.0 + ln2) * (1.0 + ln2)) / 2.0);
        // Summed probabilities 1.4 and 0.6: mean 1, deviation 0.4.
        close(value(importance(&scores, 0.5)), 0.5 * 0.4 * 0.4);
    }
}
