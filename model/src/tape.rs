//! The training step as a static tape: forward and backward as one list of operations over buffers that are placed in advance.
//!
//! [`record`] turns a configuration and a batch's shape into a [`Tape`]; an executor ([`CpuTape`], with the feature `cuda` also `CudaTape`) runs it on memory that it keeps from
//! step to step. Nothing is allocated while it runs, gradients are added where they belong, and what the backward pass needs is known:
//! so is the memory of a run before it starts. Autograd over the composed operations ([`crate::CodeLm::loss`]) is the reference.
//!
//! Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) is a choice of the recorder: it then writes a layer's forward
//! operations a second time, before its backward operations, and the first ones' results die early.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device_tape;
mod made;
mod meeting;
mod merge;
mod op;
mod plan;
mod profile;
mod record;
mod shards;
mod slots;
mod step;
mod step_data;
#[cfg(test)]
pub(crate) mod tests;

pub use cpu::CpuTape;
#[cfg(feature = "cuda")]
pub use cuda::{CudaDecoder, CudaTape};
pub use device_tape::{DeviceOptimizer, DeviceReport, DeviceRule, DeviceState, DeviceTape};
pub use op::{BufId, Buffer, Op, ParamId};
pub use plan::planned_elements;
pub use profile::Profile;
pub use record::{TapeOptions, record};
#[cfg(not(feature = "cuda"))]
pub(crate) use step::no_gpu_code;
pub use step::{Ready, StepLoss, TrainTape, n_gpus};
pub(crate) use step_data::HostPlan;
pub use step_data::StepData;

/// A list of operations, and the buffers that they read and write.
#[derive(Clone, Debug)]
pub struct Tape {
    pub ops: Vec<Op>,
    /// Shape of each buffer, and the slot of memory that it lives in.
    pub buffers: Vec<Buffer>,
    /// Elements of each slot: the largest buffer that it ever holds.
    pub slot_len: Vec<usize>,
}

impl Tape {
    /// Elements of memory that activations and their gradients take.
    pub fn n_elements(&self) -> usize {
        self.slot_len.iter().sum()
    }
}
