//! Token-choice top-k, dropless: the control that PL-MoE is compared with.
//!
//! Shazeer et al. 2017 (arXiv 1701.06538) and Fedus et al. 2022 (Switch, arXiv 2101.03961): a linear router, softmax in float32, the k
//! likeliest experts, no capacity (no token is dropped, so no token depends on another). Balance loss: Switch eq. 4; z-loss: Zoph et al.
//! 2022 (arXiv 2202.08906) eq. 5. Weights are gathered from the probabilities on the device, so the gradient reaches the router.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::softmax;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, MoeConfig, check};
use crate::error::Result;
use crate::params::{Init, Params};
use crate::router::{Aux, Plan, Router, RouterContext, RouterSpec};

/// Options of the `token` router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Token {
    /// Experts per token.
    pub top_k: usize,
    /// Divide the selected weights by their sum.
    pub normalize: bool,
    /// Coefficient of the balance loss.
    pub balance_loss: f64,
    /// Coefficient of the router z-loss.
    pub z_loss: f64,
}

impl Default for Token {
    fn default() -> Self {
        Token { top_k: 1, normalize: false, balance_loss: 0.01, z_loss: 0.001 }
    }
}

impl RouterSpec for Token {
    const NAME: &'static str = "token";
    const PAPER: &'static str = "Fedus et al. 2022, arXiv 2101.03961; dropless";
    const CAUSAL: bool = true;

    fn build(&self, model: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<Box<dyn Router>> {
        let init = Init::Normal(1.0 / (model.d_model as f64).sqrt());
        let w_ED = params.get("router.weight", &[moe.n_experts, model.d_model], init)?;
        Ok(Box::new(TokenRouter { w_ED, spec: self.clone() }))
    }

    fn validate(&self, _model: &ModelConfig, moe: &MoeConfig) -> Result<()> {
        let expected = format!("between 1 and n_experts = {}", moe.n_experts);
        check((1..=moe.n_experts).contains(&self.top_k), "moe.router.top_k", self.top_k, &expected)
    }

    fn n_selected(&self) -> usize {
        self.top_k
    }

    fn n_parameters(&self, model: &ModelConfig, moe: &MoeConfig) -> usize {
        model.d_model * moe.n_experts
    }
}

#[derive(Debug)]
struct TokenRouter {
    w_ED: Tensor,
    spec: Token,
}

impl Router for TokenRouter {
    fn plan(&self, x_ND: &Tensor, context: &RouterContext) -> Result<(Plan, Aux)> {
        let logits_NE = x_ND.to_dtype(DType::F32)?.matmul(&self.w_ED.t()?)?;
        let probs_NE = softmax(&logits_NE, D::Minus1)?;
        let (n, e) = probs_NE.dims2()?;
        let s = self.spec.top_k;
        // The one read from the device: dispatch groups tokens by expert on the host.
        let expert_A = top_k(&probs_NE.detach().flatten_all()?.to_vec1::<f32>()?, e, s);
        let token_A: Vec<u32> = (0..(n * s) as u32).map(|a| a / s as u32).collect();
        let expert_NS = Tensor::from_slice(&expert_A, (n, s), x_ND.device())?;
        let mut weight_NS = probs_NE.gather(&expert_NS, 1)?;
        if self.spec.normalize {
            weight_NS = weight_NS.broadcast_div(&weight_NS.sum_keepdim(1)?)?;
        }
        let loss = self.aux_loss(&logits_NE, &probs_NE, &context.shares(&expert_A, e)?)?;
        let weight_A = Some(weight_NS.flatten_all()?);
        Ok((Plan { token_A, expert_A, weight_A, shared_weight_N: None }, Aux { loss: Some(loss) }))
    }
}

impl TokenRouter {
    fn aux_loss(&self, logits_NE: &Tensor, probs_NE: &Tensor, share_E: &[f32]) -> Result<Tensor> {
        let e = share_E.len();
        let share_E = Tensor::new(share_E, probs_NE.device())?;
        let balance = (probs_NE.mean(0)?.mul(&share_E)?.sum_all()? * (e as f64 * self.spec.balance_loss))?;
        let z = logits_NE.log_sum_exp(D::Minus1)?.sqr()?.mean_all()?;
        Ok((balance + (z * self.spec.z_loss)?)?)
    }
}

/// The `s` likeliest experts of each row of `probs_NE`, likeliest first; the lower index wins a tie.
fn top_k(probs_NE: &[f32], e: usize, s: usize) -> Vec<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn four_tokens_four_experts() {
        // The router's rows are unit vectors: a token's logits are its own coordinates.
        let w_ED = Tensor::eye(4, DType::F32, &Device::Cpu).unwrap();
        let spec = Token { top_k: 2, normalize: true, ..Token::default() };
        let x_ND =
            Tensor::new(&[[2f32, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 5.0, 0.0, 5.0], [0.0; 4]], &Device::Cpu);
        let (plan, aux) = TokenRouter { w_ED, spec }
            .plan(&x_ND.unwrap(), &RouterContext { language_N: &[0; 4], exchange: None })
            .unwrap();
        assert_eq!(plan.token_A, [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(plan.expert_A, [0, 1, 2, 0, 1, 3, 0, 1]);
        let weight_A = plan.weight_A.unwrap().to_vec1::<f32>().unwrap();
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        for (got, expected) in weight_A.iter().zip([sigmoid(1.0), sigmoid(-1.0), sigmoid(3.0), sigmoid(-3.0), 0.5, 0.5])
        {
            assert!((got - expected).abs() < 1e-6);
        }
        assert!(aux.loss.unwrap().to_scalar::<f32>().unwrap() > 0.0);
    }
}
