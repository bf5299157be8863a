//! What a tape on a device offers besides its steps: its own weights, gradients and optimizer, and the way back to the host's.

use super::{Profile, StepLoss};
use crate::error::Result;
use crate::gradients::Gradients;
use crate::lm::{Batch, CodeLm};

/// How one parameter is updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeviceRule {
    /// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).
    AdamW { weight_decay: f64 },
    /// Muon (Jordan et al. 2024) for a matrix, its step `0.2 * sqrt(max(rows, columns))` times the learning rate.
    Muon { weight_decay: f64 },
}

/// The numbers of an optimizer that do not change from step to step.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceOptimizer {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub momentum: f64,
    /// In the order of [`CodeLm::parameters`].
    pub rules: Vec<DeviceRule>,
}

/// What an optimizer knows of the parameters, flat as [`Gradients::values`] are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceState {
    /// First moments, or Muon's momentum.
    pub first: Vec<f32>,
    /// Second moments; zero where Muon has none.
    pub second: Vec<f32>,
    /// Steps of each parameter.
    pub n_steps: Vec<u64>,
}

/// What an update says: known only then, as nothing waits for the device before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceReport {
    /// Summed loss of the micro-steps since [`DeviceTape::clear`], nats.
    pub nll_sum: f64,
    /// The same of each sequence, in the order of the micro-steps and of their rows.
    pub nll_B: Vec<f64>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Whether both are finite; else no weight was changed.
    pub is_finite: bool,
}

/// Trains on a device: gradients add up there from step to step until an update uses them.
pub trait DeviceTape {
    /// Makes all gradients absent and the loss zero.
    ///
    /// # Errors
    /// Those of the device, as in all other calls.
    fn clear(&mut self) -> Result<()>;

    /// Queues a batch forward and backward; what it says of the loss is zero, as it is known at the update.
    fn step(&mut self, lm: &CodeLm, batch: &Batch, divisor: f64) -> Result<StepLoss>;

    /// Clips the gradients to `clip_norm` (0 for not), updates all parameters that have one, and waits for the report.
    fn update(&mut self, lr: f64, clip_norm: f64) -> Result<DeviceReport>;

    /// `nll_sum` of each sequence since [`DeviceTape::clear`], in order; waits for the device.
    fn losses(&mut self) -> Result<Vec<f64>>;

    /// Replaces the gradients by `scale` times the host's, and updates with them: several ranks have summed and judged them there.
    fn update_with(&mut self, gradients: &Gradients, scale: f64, lr: f64) -> Result<()>;

    /// Takes the weights of `lm`.
    fn upload(&mut self, lm: &CodeLm) -> Result<()>;

    /// Gives `lm` the weights.
    fn download(&mut self, lm: &CodeLm) -> Result<()>;

    /// Adds the gradients, of those parameters that have one, to the host's.
    fn add_gradients(&mut self, gradients: &mut Gradients) -> Result<()>;

    fn state(&mut self) -> Result<DeviceState>;

    fn set_state(&mut self, state: &DeviceState) -> Result<()>;

    /// Where the time went; empty unless [`DeviceTape::set_profiling`] asked for it.
    fn profile(&mut self) -> &mut Profile;

    /// Takes the time of each operation, which makes steps slower.
    fn set_profiling(&mut self, on: bool);

    /// Bytes of activations, their gradients and scratch.
    fn n_bytes(&self) -> usize;

    /// Bytes on the device when they were most: weights, gradients, moments, activations, scratch and the workspaces of libraries.
    fn peak_bytes(&self) -> usize;

    /// The device in words, its name first.
    fn describe(&self) -> String;
}
