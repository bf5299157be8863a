//! `--device`: where a model trains or is measured.

use anyhow::{Context, Result};
use candle_core::Device;
use multicoder_model::device;
use serde::{Deserialize, Serialize};

use crate::run::StepsOn;

/// What `--device` may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// The first CUDA GPU.
    Cuda,
}

impl DeviceKind {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
        }
    }
}

/// Where a training run's tensors live, and where its steps are computed.
///
/// # Errors
/// As of [`open`].
pub fn for_steps(wish: Option<DeviceKind>) -> Result<(Device, StepsOn)> {
    match wish {
        // Kernels of our own; validation and checkpoints stay on the CPU.
        Some(DeviceKind::Cuda) if cfg!(feature = "cuda") => Ok((Device::Cpu, StepsOn::Gpu)),
        wish => Ok((open(wish)?, StepsOn::Tensors)),
    }
}

/// The device that was asked for; without a wish the GPU in a program that was built for one, and the CPU in any other.
///
/// # Errors
/// A program without CUDA code, or a machine without a GPU: nothing falls back to another device in silence.
pub fn open(wish: Option<DeviceKind>) -> Result<Device> {
    let kind = wish.unwrap_or(if device::HAS_CUDA { DeviceKind::Cuda } else { DeviceKind::Cpu });
    match (kind, wish) {
        (DeviceKind::Cpu, _) => Ok(Device::Cpu),
        (DeviceKind::Cuda, Some(_)) => device::cuda().context("--device cuda"),
        (DeviceKind::Cuda, None) => device::cuda().context("this program runs on a GPU unless told --device cpu"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_never_answered_by_another_device() {
        assert!(open(Some(DeviceKind::Cpu)).unwrap().is_cpu());
        match open(Some(DeviceKind::Cuda)) {
            Ok(device) => assert!(device.is_cuda()),
            Err(error) => {
                let error = format!("{error:#}");
                let reason = if device::HAS_CUDA { "no CUDA device" } else { "built without CUDA" };
                assert!(error.starts_with("--device cuda: ") && error.contains(reason), "{error}");
            }
        }
        if !device::HAS_CUDA {
            assert!(open(None).unwrap().is_cpu());
        }
    }
}
