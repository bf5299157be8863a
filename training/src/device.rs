//! `--device`: where a model trains or is measured.

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use multicoder_model::device;
use multicoder_model::tape::n_gpus;
use serde::{Deserialize, Serialize};

use crate::config::Compute;
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
    match steps_on(wish) {
        // Validation and checkpoints stay on the CPU.
        StepsOn::Gpu => {
            n_gpus().context("--device cuda")?;
            Ok((Device::Cpu, StepsOn::Gpu))
        }
        StepsOn::Tensors => Ok((open(wish)?, StepsOn::Tensors)),
    }
}

/// Where steps are computed when `wish` is granted: by kernels of our own in a program that has them and was asked for a GPU.
pub fn steps_on(wish: Option<DeviceKind>) -> StepsOn {
    match wish {
        Some(DeviceKind::Cuda) if cfg!(feature = "cuda") => StepsOn::Gpu,
        _ => StepsOn::Tensors,
    }
}

/// # Errors
/// Float32 products for kernels of our own, which have bfloat16 ones alone: nothing is computed otherwise in silence.
pub fn check_compute(compute: Compute, steps_on: StepsOn) -> Result<()> {
    ensure!(
        steps_on == StepsOn::Tensors || compute == Compute::Bf16,
        "compute = \"f32\": expected \"bf16\" with --device cuda in this program, whose own kernels multiply bfloat16 (--set \
         compute=bf16); a build with --features candle-cuda trains in float32 on a GPU"
    );
    Ok(())
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

    #[test]
    fn a_gpu_that_is_not_there_is_missed_before_anything_is_read() {
        assert_eq!(for_steps(Some(DeviceKind::Cpu)).unwrap().1, StepsOn::Tensors);
        if let Err(error) = for_steps(Some(DeviceKind::Cuda)) {
            let error = format!("{error:#}");
            assert!(error.starts_with("--device cuda: ") && error.contains("CUDA"), "{error}");
        }
    }

    #[test]
    fn float32_products_are_refused_where_there_are_none() {
        assert!(
            check_compute(Compute::F32, StepsOn::Tensors).is_ok() && check_compute(Compute::Bf16, StepsOn::Gpu).is_ok()
        );
        let error = check_compute(Compute::F32, StepsOn::Gpu).unwrap_err().to_string();
        assert!(error.starts_with("compute = \"f32\": expected \"bf16\"") && error.contains("candle-cuda"), "{error}");
    }
}
