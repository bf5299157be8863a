//! The mixture-of-experts layer: plan -> dispatch -> experts -> combine. It knows no router.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::config::{ModelConfig, MoeConfig};
use crate::draw::{DROPOUT, LayerDraw};
use crate::error::{Error, Result};
use crate::exchange::{ExpertExchange, Journey};
use crate::experts::{Experts, FeedForward};
use crate::ops::{add_rows, gather_rows};
use crate::params::Params;
use crate::router::{Plan, Router, RouterContext};

/// Experts, an optional shared expert, and the router that chooses.
#[derive(Debug)]
pub(crate) struct MoeLayer {
    router: Box<dyn Router>,
    experts: Box<dyn Experts>,
    n_experts: usize,
    /// Width of an expert, and the chance that a hidden value of it is zero while it trains.
    dropout: (usize, f64),
    shared: Option<FeedForward>,
    /// The other ranks, where experts or their loads are spread over several.
    exchange: Option<Arc<dyn ExpertExchange>>,
}

/// What a layer says besides its output.
pub(crate) struct MoeOutput {
    pub(crate) y_ND: Tensor,
    pub(crate) aux_loss: Option<Tensor>,
    /// As of [`crate::router::Aux`].
    pub(crate) load_E: Vec<f32>,
}

impl MoeLayer {
    pub(crate) fn new(config: &ModelConfig, moe: &MoeConfig, params: &mut Params) -> Result<MoeLayer> {
        let experts = moe.expert_param.build(config, moe, params)?;
        let shared = match moe.d_ff_shared {
            0 => None,
            f => Some(params.scope("shared_expert", |params| FeedForward::new(config, f, params))?),
        };
        Ok(MoeLayer {
            router: moe.build_router(config, params)?,
            experts,
            n_experts: moe.n_experts,
            dropout: (moe.d_ff_expert, moe.dropout),
            shared,
            exchange: None,
        })
    }

    /// Shape: `x_ND` -> `ND`. The layer adds to `context` whom it is connected with.
    pub(crate) fn forward(&self, x_ND: &Tensor, context: &RouterContext) -> Result<MoeOutput> {
        let context = RouterContext { exchange: self.exchange.as_deref(), ..*context };
        let (plan, aux) = self.router.plan(x_ND, &context)?;
        let load_E = aux.load(&plan, self.n_experts);
        let experts = self.experts.networks(context.draw)?;
        let elsewhere = self.exchange.as_ref().and_then(|exchange| Some((exchange, exchange.owner_of_expert()?)));
        let mut y_ND = match elsewhere {
            Some(_) if self.dropout.1 > 0.0 => return Err(Error::Input(
                "moe.dropout with experts on several ranks: expected 0, for a rank does not know the tokens of others"
                    .into(),
            )),
            Some((exchange, owner_E)) => Some(dispatch_to_ranks(x_ND, &plan, &experts, (exchange, owner_E))?),
            // Padding must not give an expert a gradient, not even of zeros.
            None if self.exchange.as_ref().is_some_and(|exchange| exchange.is_idle()) => None,
            None => dispatch(x_ND, &plan, &Trained { experts: &experts, dropout: self.dropout, draw: context.draw })?,
        };
        if let Some(shared) = &self.shared {
            let mut shared_ND = shared.forward(x_ND)?;
            if let Some(weight_N) = &plan.shared_weight_N {
                shared_ND = shared_ND.broadcast_mul(&weight_N.unsqueeze(1)?)?;
            }
            y_ND = Some(match y_ND {
                Some(y_ND) => (y_ND + shared_ND)?,
                None => shared_ND,
            });
        }
        let y_ND = y_ND.map_or_else(|| x_ND.zeros_like(), Ok)?;
        Ok(MoeOutput { y_ND, aux_loss: aux.loss, load_E })
    }

    pub(crate) fn experts(&self) -> &dyn Experts {
        &*self.experts
    }

    pub(crate) fn router(&self) -> &dyn Router {
        &*self.router
    }

    /// Connects the layer with the other ranks, or cuts it off.
    pub(crate) fn set_exchange(&mut self, exchange: Option<Arc<dyn ExpertExchange>>) {
        self.exchange = exchange;
    }

    pub(crate) fn exchange(&self) -> Option<&Arc<dyn ExpertExchange>> {
        self.exchange.as_ref()
    }
}

/// [`dispatch`] with experts on other ranks, which all call it at the same time. A row of zeros is added to the first
/// token: it keeps the exchange in the graph of a rank that has no rows.
fn dispatch_to_ranks(
    x_ND: &Tensor,
    plan: &Plan,
    experts: &[FeedForward],
    (exchange, owner_E): (&Arc<dyn ExpertExchange>, &[usize]),
) -> Result<Tensor> {
    let mut counts_E = vec![0f32; owner_E.len()];
    let n_assignments = if exchange.is_idle() { 0 } else { plan.expert_A.len() };
    let mut order_A: Vec<u32> = (0..n_assignments as u32).collect();
    order_A.iter().for_each(|&a| counts_E[plan.expert_A[a as usize] as usize] += 1.0);
    let expert_of = |a: u32| plan.expert_A[a as usize];
    order_A.sort_by_key(|&a| (owner_E[expert_of(a) as usize], expert_of(a)));
    let token_A: Vec<u32> = order_A.iter().map(|&a| plan.token_A[a as usize]).chain([0]).collect();
    let token_A = Tensor::new(token_A, x_ND.device())?;

    let journey = Journey::plan(exchange, owner_E, &counts_E)?;
    let x_AD = journey.go(&x_ND.index_select(&token_A, 0)?)?;
    let y_AD = journey.come_back(&run_stretches(&x_AD, experts, &journey.stretches)?)?;
    let y_AD = match &plan.weight_A {
        Some(weight_A) if n_assignments > 0 => {
            let weight_A = weight_A.index_select(&Tensor::new(order_A, x_ND.device())?, 0)?;
            let padding = Tensor::ones(1, weight_A.dtype(), x_ND.device())?;
            weigh(y_AD, Some(&Tensor::cat(&[weight_A, padding], 0)?))?
        }
        _ => y_AD,
    };
    Ok(x_ND.zeros_like()?.detach().index_add(&token_A, &y_AD, 0)?)
}

/// Experts, and which of their hidden values are zero in a step of training.
struct Trained<'a> {
    experts: &'a [FeedForward],
    dropout: (usize, f64),
    draw: Option<LayerDraw<'a>>,
}

impl Trained<'_> {
    /// What an expert says of the rows of `token_N`. Shape: `x_ND` -> `ND`.
    fn forward(&self, expert: u32, x_ND: &Tensor, token_N: impl Iterator<Item = u32>) -> Result<Tensor> {
        let (network, (width, p)) = (&self.experts[expert as usize], self.dropout);
        let Some(draw) = self.draw.filter(|_| p > 0.0) else { return network.forward(x_ND) };
        let stream = draw.stream(DROPOUT);
        let keeps = |token: u32| (0..width).map(move |f| stream.keep(token as usize, (expert as usize, f), width, p));
        let mask: Vec<f32> = token_N.flat_map(keeps).collect();
        network.forward_masked(x_ND, Some(&Tensor::from_vec(mask, (x_ND.dim(0)?, width), x_ND.device())?))
    }
}

/// The weighted sum of the experts' outputs; `None` if no token has an expert.
fn dispatch(x_ND: &Tensor, plan: &Plan, experts: &Trained) -> Result<Option<Tensor>> {
    let n = x_ND.dim(0)?;
    if plan.token_A.is_empty() {
        return Ok(None);
    }
    let in_place = plan.token_A.len() == n && plan.token_A.iter().enumerate().all(|(a, &token)| a == token as usize);
    let first = plan.expert_A[0];
    if in_place && plan.expert_A.iter().all(|&expert| expert == first) {
        let y_ND = experts.forward(first, x_ND, plan.token_A.iter().copied())?;
        return Ok(Some(weigh(y_ND, plan.weight_A.as_ref())?));
    }
    let mut order_A: Vec<u32> = (0..plan.expert_A.len() as u32).collect();
    order_A.sort_by_key(|&a| plan.expert_A[a as usize]);
    let token_A: Vec<u32> = order_A.iter().map(|&a| plan.token_A[a as usize]).collect();
    let x_AD = gather_rows(x_ND, &Tensor::new(token_A.as_slice(), &Device::Cpu)?)?;
    let y_AD = run_experts(&x_AD, plan, experts, &order_A)?;
    let weight_A = match &plan.weight_A {
        Some(weight_A) => Some(gather_rows(&weight_A.unsqueeze(1)?, &Tensor::new(order_A, &Device::Cpu)?)?.squeeze(1)?),
        None => None,
    };
    let y_AD = weigh(y_AD, weight_A.as_ref())?;
    Ok(Some(add_rows(&y_AD, &token_A, n)?))
}

/// Applies to each stretch of equal experts in `order_A` that expert's network.
fn run_experts(x_AD: &Tensor, plan: &Plan, experts: &Trained, order_A: &[u32]) -> Result<Tensor> {
    let mut outputs = Vec::new();
    let mut start = 0;
    while start < order_A.len() {
        let expert = plan.expert_A[order_A[start] as usize];
        let rest = order_A[start..].iter();
        let rows = rest.take_while(|&&a| plan.expert_A[a as usize] == expert).count();
        let token_A = order_A[start..start + rows].iter().map(|&a| plan.token_A[a as usize]);
        outputs.push(experts.forward(expert, &x_AD.narrow(0, start, rows)?, token_A)?);
        start += rows;
    }
    Ok(Tensor::cat(&outputs, 0)?)
}

/// Applies each expert to its number of rows; the last row is padding, which no expert sees.
fn run_stretches(x_AD: &Tensor, experts: &[FeedForward], stretches: &[(usize, usize)]) -> Result<Tensor> {
    let (mut outputs, mut start) = (Vec::new(), 0);
    for &(expert, rows) in stretches.iter().filter(|(_, rows)| *rows > 0) {
        outputs.push(experts[expert].forward(&x_AD.narrow(0, start, rows)?)?);
        start += rows;
    }
    outputs.push(x_AD.narrow(0, start, 1)?);
    Ok(Tensor::cat(&outputs, 0)?)
}

fn weigh(y_AD: Tensor, weight_A: Option<&Tensor>) -> Result<Tensor> {
    match weight_A {
        Some(weight_A) => Ok(y_AD.broadcast_mul(&weight_A.unsqueeze(1)?)?),
        None => Ok(y_AD),
    }
}
