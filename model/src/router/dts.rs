//! Dense to sparse: a token meets all experts at first, and fewer as the temperature falls, until one is left.
//!
//! Nie et al. 2021 (DTS-Gate; EvoMoE, arXiv 2112.14397): `softmax((logits + Gumbel) / τ)` while training, experts above a threshold,
//! `τ = max(τ_min, τ_max (τ_min / τ_max)^(t / D))`; from `hard_at` on, and when measured or served, the likeliest one without noise. Only
//! experts above the threshold compute.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, check};
use crate::draw::LayerDraw;
use crate::error::Result;
use crate::params::Params;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, Scores, losses, scores};

/// Options of the `dts` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dts {
    /// First temperature.
    pub tau_max: f64,
    /// Last temperature.
    pub tau_min: f64,
    /// Steps in which it falls.
    pub decay_steps: u64,
    /// Step from which on a token has one expert.
    pub hard_at: u64,
    /// Least share of an expert that a token meets.
    pub threshold: f64,
    /// Coefficient of the balance loss, over the assignments that are left.
    pub balance_loss: f64,
}

impl Default for Dts {
    fn default() -> Self {
        Dts { tau_max: 2.0, tau_min: 0.3, decay_steps: 1000, hard_at: 1000, threshold: 0.0125, balance_loss: 0.01 }
    }
}

impl RouterSpec for Dts {
    const NAME: &'static str = "dts";
    const PAPER: &'static str = "Nie et al. 2021, arXiv 2112.14397";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "D·E";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        Ok(Box::new(DtsRouter { w_ED: scores::weight(model, moe, 1.0, params)?, spec: self.clone() }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let is_range = self.tau_min > 0.0 && self.tau_max >= self.tau_min;
        let range = format!("{} to {}", self.tau_max, self.tau_min);
        check(is_range, "moe.router.tau_max, tau_min", range, "falling positive numbers")?;
        let expected = format!("0 or more, below 1 / n_experts = {}", 1.0 / moe.n_experts as f64);
        let in_range = (0.0..1.0 / moe.n_experts as f64).contains(&self.threshold);
        check(in_range, "moe.router.threshold", self.threshold, &expected)
    }

    fn n_selected(&self) -> usize {
        1
    }

    fn max_assignments(&self, language_N: &[u32], moe: &MoeConfig) -> usize {
        language_N.len() * moe.n_experts
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        model.d_model * moe.n_experts
    }
}

#[derive(Debug)]
struct DtsRouter {
    w_ED: Tensor,
    spec: Dts,
}

impl Router for DtsRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let logits_NE = scores::logits(x_ND, &self.w_ED)?;
        let dense = context.draw.filter(|draw| draw.step() < self.spec.hard_at);
        let tau = context.draw.map_or(self.spec.tau_min, |draw| self.spec.tau(draw.step()));
        let noisy_NE = match dense {
            Some(draw) => (&logits_NE + gumbel(&draw, &logits_NE)?)?,
            None => logits_NE,
        };
        let scores = Scores::new((noisy_NE / tau)?, context)?;
        let plan = match dense {
            Some(_) => above(&scores, self.spec.threshold as f32)?,
            None => scores.likeliest(1)?,
        };
        let share_E = context.shares(&plan.expert_A, scores.probs_NE.dim(1)?)?;
        let loss = losses::balance(&scores.probs_NE, &share_E, self.spec.balance_loss)?;
        Ok((plan, Aux { loss: Some(loss), scores: Some(scores), overflow: 0.0 }))
    }
}

impl Dts {
    fn tau(&self, step: u64) -> f64 {
        let passed = (step as f64 / self.decay_steps.max(1) as f64).min(1.0);
        self.tau_max * (self.tau_min / self.tau_max).powf(passed)
    }
}

/// Standard Gumbel noise. Shape: that of `logits_NE`.
fn gumbel(draw: &LayerDraw, logits_NE: &Tensor) -> Result<Tensor> {
    let (n, e) = logits_NE.dims2()?;
    let stream = draw.stream("dts gumbel");
    let noise = |i: usize| -(-(stream.token(i / e, i % e).max(1e-9)).ln()).ln();
    Ok(Tensor::from_vec((0..n * e).map(noise).collect(), (n, e), logits_NE.device())?.to_dtype(DType::F32)?)
}

/// The experts of each token that have more than `threshold` of it; the likeliest where none has.
fn above(scores: &Scores, threshold: f32) -> Result<Plan> {
    let e = scores.probs_NE.dim(1)?;
    let (mut token_A, mut expert_A) = (Vec::new(), Vec::new());
    for (token, probs_E) in scores::host(&scores.probs_NE)?.chunks_exact(e).enumerate() {
        let before = expert_A.len();
        expert_A.extend((0..e as u32).filter(|&expert| probs_E[expert as usize] > threshold));
        if expert_A.len() == before {
            expert_A.extend(scores::top_k(probs_E, e, 1));
        }
        token_A.resize(expert_A.len(), token as u32);
    }
    let weight_A = Some(scores.probs_of(&token_A, &expert_A)?);
    Ok(Plan { token_A, expert_A, weight_A, shared_weight_N: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{Draw, StepKey};
    use candle_core::Device;

    #[test]
    fn the_temperature_falls_and_experts_become_one() {
        let spec = Dts { decay_steps: 100, hard_at: 100, ..Dts::default() };
        assert!((spec.tau(0) - 2.0).abs() < 1e-9 && (spec.tau(50) - 0.6f64.sqrt()).abs() < 1e-9);
        assert!((spec.tau(100) - 0.3).abs() < 1e-9 && (spec.tau(1000) - 0.3).abs() < 1e-9);

        let n = 64;
        let w_ED = Tensor::eye(4, DType::F32, &Device::Cpu).unwrap();
        let x_ND = crate::ops::tests::values(&[n, 4], 3);
        let router = DtsRouter { w_ED, spec };
        let id_N: Vec<u32> = (0..n as u32).collect();
        let assignments = |step| {
            let draw = Draw::new(StepKey { seed: 1, step }, &id_N, n);
            let context = RouterContext { draw: Some(draw.layer(0)), ..RouterContext::default() };
            router.plan(&x_ND, &context).unwrap().0.token_A.len()
        };
        let (first, middle, last) = (assignments(0), assignments(60), assignments(100));
        assert!(first > 3 * n && middle < first && middle > n && last == n, "{first} {middle} {last}");
        assert_eq!(router.plan(&x_ND, &RouterContext::default()).unwrap().0.token_A.len(), n);
    }

    /// Without noise, by hand: of logarithms the softmax has the numbers themselves.
    #[test]
    fn experts_above_the_threshold_are_met_and_the_likeliest_always() {
        let probs = [[0.6f32, 0.3, 0.09, 0.01], [0.25, 0.25, 0.25, 0.25]];
        let logits_NE = Tensor::new(&probs, &Device::Cpu).unwrap().log().unwrap();
        let scores = Scores::new(logits_NE, &RouterContext::default()).unwrap();
        let plan = |threshold| above(&scores, threshold).unwrap();
        let some = plan(0.05);
        assert_eq!((some.token_A, some.expert_A), (vec![0, 0, 0, 1, 1, 1, 1], vec![0, 1, 2, 0, 1, 2, 3]));
        let weight_A = some.weight_A.unwrap().to_vec1::<f32>().unwrap();
        let expected = [0.6, 0.3, 0.09, 0.25, 0.25, 0.25, 0.25];
        assert!(weight_A.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6), "{weight_A:?}");
        let few = plan(0.5);
        assert_eq!((few.token_A, few.expert_A), (vec![0, 1], vec![0, 0]), "one expert at least");
    }
}
