//! BASE: while training, tokens are assigned so that every expert has as many and the scores add up to the most; afterwards each token
//! takes its best expert.
//!
//! Lewis et al. 2021 (arXiv 2103.16716). The assignment is the auction of Bertsekas (1992) with `N/E` places an expert, nearly optimal;
//! an expert's output is weighted by the sigmoid of its score (their eq. 2). No loss. While training a token's expert depends on all
//! tokens, when measured or served on none.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig};
use crate::error::Result;
use crate::params::Params;
use crate::router::scores::sigmoid;
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec, Scores, scores};

/// Bids rise by at least this share of the scores' range: what an assignment may fall short of the best, by token.
const EPSILON: f32 = 0.01;

/// No options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {}

impl RouterSpec for Base {
    const NAME: &'static str = "base";
    const PAPER: &'static str = "Lewis et al. 2021, arXiv 2103.16716";
    const CAUSAL: bool = true;
    const PARAMETERS: &'static str = "D·E";

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        Ok(Box::new(BaseRouter { w_ED: scores::weight(model, moe, 1.0, params)? }))
    }

    fn validate(&self, _model: &ModelConfig, _moe: &MoeConfig) -> Result<()> {
        Ok(())
    }

    fn is_local(&self) -> bool {
        false
    }

    fn n_selected(&self) -> usize {
        1
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        model.d_model * moe.n_experts
    }
}

#[derive(Debug)]
struct BaseRouter {
    w_ED: Tensor,
}

impl Router for BaseRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let scores = Scores::new(scores::logits(x_ND, &self.w_ED)?, context)?;
        let (n, e) = scores.logits_NE.dims2()?;
        let logits_NE = scores::host(&scores.logits_NE)?;
        let expert_A = match context.draw {
            Some(_) => balanced(&logits_NE, e),
            None => scores::top_k(&logits_NE, e, 1),
        };
        let token_A: Vec<u32> = (0..n as u32).collect();
        let gates = Scores { probs_NE: sigmoid(&scores.logits_NE)?, logits_NE: scores.logits_NE.clone() };
        let weight_A = Some(gates.probs_of(&token_A, &expert_A)?);
        Ok((
            Plan { token_A, expert_A, weight_A, shared_weight_N: None },
            Aux { scores: Some(scores), ..Aux::default() },
        ))
    }
}

/// A place that a token holds: its bid, and the token.
#[derive(PartialEq)]
struct Held(f32, u32);

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Held) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

/// The expert of each token: none has more than its share of places, rounded up. Tokens without one bid for the best at its price, the
/// least bid that still holds a place there, and outbid it by how much better it is than the second best.
fn balanced(value_NE: &[f32], e: usize) -> Vec<u32> {
    let n = value_NE.len() / e;
    let places = n.div_ceil(e);
    let range = value_NE.iter().fold(0f32, |range, value| range.max(value.abs())).max(1e-6);
    let mut held: Vec<BinaryHeap<Reverse<Held>>> = (0..e).map(|_| BinaryHeap::new()).collect();
    let mut price_E = vec![0f32; e];
    let mut waiting: Vec<u32> = (0..n as u32).rev().collect();
    while let Some(token) = waiting.pop() {
        let gain = |expert: usize| value_NE[token as usize * e + expert] - price_E[expert];
        let best = (0..e).max_by(|&a, &b| gain(a).total_cmp(&gain(b)).then(b.cmp(&a))).unwrap_or(0);
        let second = (0..e).filter(|&expert| expert != best).map(gain).fold(f32::NEG_INFINITY, f32::max);
        let rise = if second.is_finite() { gain(best) - second } else { 0.0 };
        held[best].push(Reverse(Held(price_E[best] + rise + EPSILON * range, token)));
        if held[best].len() > places {
            waiting.extend(held[best].pop().map(|Reverse(Held(_, token))| token));
        }
        if held[best].len() == places {
            price_E[best] = held[best].peek().map_or(0.0, |Reverse(Held(bid, _))| *bid);
        }
    }
    let mut expert_N = vec![0u32; n];
    for (expert, held) in held.into_iter().enumerate() {
        held.into_iter().for_each(|Reverse(Held(_, token))| expert_N[token as usize] = expert as u32);
    }
    expert_N
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best sum over all balanced assignments, by trying them.
    fn best(value_NE: &[f32], e: usize, token: usize, places: &mut [usize]) -> f32 {
        if token * e == value_NE.len() {
            return 0.0;
        }
        let mut most = f32::NEG_INFINITY;
        for expert in 0..e {
            if places[expert] > 0 {
                places[expert] -= 1;
                most = most.max(value_NE[token * e + expert] + best(value_NE, e, token + 1, places));
                places[expert] += 1;
            }
        }
        most
    }

    #[test]
    fn every_expert_has_as_many_and_the_sum_is_nearly_the_best() {
        for seed in 0..20u32 {
            let (n, e) = (9, 3);
            let value = |i: u32| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0;
            let value_NE: Vec<f32> = (0..n * e).map(value).collect();
            let expert_N = balanced(&value_NE, e as usize);
            let count = |expert: u32| expert_N.iter().filter(|of| **of == expert).count();
            assert!((0..e).all(|expert| count(expert) == 3), "{expert_N:?}");
            let sum: f32 = expert_N.iter().enumerate().map(|(n, &x)| value_NE[n * e as usize + x as usize]).sum();
            let most = best(&value_NE, e as usize, 0, &mut [3; 3]);
            assert!(sum >= most - n as f32 * EPSILON - 1e-4, "seed {seed}: {sum} of {most}");
        }
    }

    #[test]
    fn tokens_that_do_not_divide_evenly_have_experts_too() {
        let value_NE: Vec<f32> = (0..7 * 3).map(|i| if i % 3 == 0 { 1.0 } else { 0.0 }).collect();
        let expert_N = balanced(&value_NE, 3);
        let counts = [0, 1, 2].map(|expert| expert_N.iter().filter(|of| **of == expert).count());
        assert!(counts[0] == 3 && counts.iter().sum::<usize>() == 7, "{counts:?}");
    }
}
