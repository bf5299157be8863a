//! Plans that routers make from the tokens, in the middle of a tape: the router's own arithmetic is autograd's, all the rest the tape's.

use candle_core::{Device, Tensor, Var};

use super::Inputs;
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::ops::simd;
use crate::router::RouterContext;
use crate::tape::step_data::HostPlan;

/// A plan, and what its gradient needs.
pub(super) struct Routed {
    pub(super) plan: HostPlan,
    /// The tokens as the router read them.
    x_ND: Var,
    /// In the router's own order.
    weight_A: Option<Tensor>,
    shared_weight_N: Option<Tensor>,
    aux_loss: Option<Tensor>,
}

/// The buffers that a plan's weights multiply, and the gradient of what they add up to.
pub(super) struct Outputs<'a> {
    pub(super) dout: &'a [f32],
    pub(super) y: &'a [f32],
    pub(super) shared: Option<&'a [f32]>,
}

impl Routed {
    /// Asks the router of MoE layer `moe`. Shape of `x`: `ND`.
    ///
    /// # Errors
    /// Whatever the router fails with; a plan with more assignments than its options tell.
    pub(super) fn new(inputs: &Inputs, moe: usize, x: &[f32], d: usize) -> Result<Routed> {
        let n = x.len() / d;
        let x_ND = Var::from_slice(x, (n, d), &Device::Cpu)?;
        let draw = inputs.draw.map(|draw| draw.layer(moe));
        let context = RouterContext { draw, ..inputs.context };
        let (mut plan, aux) = inputs.routers[moe].plan(x_ND.as_tensor(), &context)?;
        if context.exchange.is_some_and(|exchange| exchange.is_idle()) {
            plan.drop_assignments();
        }
        let n_experts = inputs.config.moe.as_ref().map_or(0, |config| config.of_layer(moe).n_experts);
        let most = inputs.data.plans[moe].token_A.len();
        if plan.token_A.len() > most {
            let got = plan.token_A.len();
            return Err(Error::Input(format!("{got} assignments of {n} tokens: expected at most {most}")));
        }
        let host = HostPlan::new(&plan, &aux, n, n_experts)?;
        let aux_loss = aux.loss;
        Ok(Routed { plan: host, x_ND, weight_A: plan.weight_A, shared_weight_N: plan.shared_weight_N, aux_loss })
    }

    /// The router's losses.
    ///
    /// # Errors
    /// A loss that is no number.
    pub(super) fn aux_loss(&self) -> Result<f64> {
        Ok(self.aux_loss.as_ref().map_or(Ok(0.0), |loss| loss.to_scalar::<f32>().map(f64::from))?)
    }

    /// Adds the gradients of the router's parameters, and that of the tokens to `dx`; the router's losses count `share`.
    ///
    /// # Errors
    /// A router whose operations have no gradient.
    pub(super) fn backward(
        &self,
        inputs: &Inputs,
        outputs: &Outputs,
        gradients: &mut Gradients,
        dx: &mut [f32],
    ) -> Result<()> {
        let mut terms = Vec::new();
        if let Some(weight_A) = &self.weight_A {
            terms.push(weight_A.mul(&Tensor::new(self.dweight_A(outputs, dx.len()), &Device::Cpu)?)?.sum_all()?);
        }
        if let (Some(weight_N), Some(shared)) = (&self.shared_weight_N, outputs.shared) {
            let d = dx.len() / weight_N.elem_count();
            let rows = outputs.dout.chunks_exact(d).zip(shared.chunks_exact(d));
            let dweight_N: Vec<f32> = rows.map(|(dout, y)| simd::dot_row(dout, y)).collect();
            terms.push(weight_N.mul(&Tensor::new(dweight_N, &Device::Cpu)?)?.sum_all()?);
        }
        if let Some(loss) = &self.aux_loss {
            terms.push((loss * inputs.share)?);
        }
        let Some(first) = terms.pop() else { return Ok(()) };
        let mut grads = terms.iter().try_fold(first, |sum, term| sum + term)?.backward()?;
        if let Some(dx_ND) = grads.remove(self.x_ND.as_tensor()) {
            crate::ops::with_values(&dx_ND, "gradient", |values| {
                dx.iter_mut().zip(values).for_each(|(sum, dx)| *sum += dx);
                Ok(())
            })?;
        }
        super::add_found(grads, inputs.parameters, gradients)
    }

    /// The gradient of each assignment's weight, in the router's order: its output times the gradient of its token's.
    fn dweight_A(&self, outputs: &Outputs, n_values: usize) -> Vec<f32> {
        let d = n_values / self.x_ND.dims()[0];
        let mut dweight_A = vec![0f32; self.plan.token_A.len()];
        let rows = outputs.y.chunks_exact(d).zip(&self.plan.token_A).zip(&self.plan.order_A);
        for ((y, &token), &place) in rows {
            dweight_A[place as usize] = simd::dot_row(&outputs.dout[token as usize * d..][..d], y);
        }
        dweight_A
    }
}
