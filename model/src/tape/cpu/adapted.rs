//! What adapters say, in the middle of a tape: their arithmetic is autograd's, as that of routers is.

use candle_core::{Device, Tensor, Var};

use super::Inputs;
use crate::adapters::adapt;
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::ops;

/// The output of a layer's adapters, and what its gradient needs.
pub(super) struct Adapted {
    x_1ND: Var,
    y_1ND: Tensor,
}

impl Adapted {
    /// Writes to `out` the sum of `terms` and what the adapters of layer `layer` say of it. Shapes: `ND`.
    ///
    /// # Errors
    /// A language that the model does not have.
    pub(super) fn new(inputs: &Inputs, layer: usize, terms: [&[f32]; 2], out: &mut [f32]) -> Result<Adapted> {
        let adapters = inputs.adapters.ok_or_else(|| Error::Input("a tape with adapters of a model without".into()))?;
        let d = inputs.config.d_model;
        let sum: Vec<f32> = terms[0].iter().zip(terms[1]).map(|(x, add)| x + add).collect();
        let x_1ND = Var::from_vec(sum, (1, out.len() / d, d), &Device::Cpu)?;
        let y_1ND = adapt(adapters, layer, &x_1ND, inputs.context.language_N)?;
        ops::with_values(&y_1ND, "adapted", |values| {
            out.copy_from_slice(values);
            Ok(())
        })?;
        Ok(Adapted { x_1ND, y_1ND })
    }

    /// Turns `dx`, the gradient of the output, into that of the sum; adds those of the adapters' parameters.
    ///
    /// # Errors
    /// A failing device.
    pub(super) fn backward(&self, inputs: &Inputs, gradients: &mut Gradients, dx: &mut [f32]) -> Result<()> {
        let dy_1ND = Tensor::from_slice(dx, self.y_1ND.shape(), &Device::Cpu)?;
        let mut grads = self.y_1ND.mul(&dy_1ND)?.sum_all()?.backward()?;
        if let Some(dx_1ND) = grads.remove(self.x_1ND.as_tensor()) {
            ops::with_values(&dx_1ND, "gradient", |values| {
                dx.copy_from_slice(values);
                Ok(())
            })?;
        }
        super::add_found(grads, inputs.parameters, gradients)
    }
}
