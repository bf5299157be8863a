//! What a machine can do at most: the divisor of MFU.

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use multicoder_model::device::gpu_name;
use multicoder_model::ops::linear;

use crate::config::{Compute, RunConfig};

/// How long products are measured.
const MEASURE: Duration = Duration::from_millis(200);
/// Rows and columns of the factors that are multiplied to measure, on the CPU and on a GPU.
const SIZES: [usize; 2] = [768, 4096];
/// Dense bfloat16 products a second by a part of the GPU's name, from the vendor's data sheets; SXM boards are the ones without a suffix.
const KNOWN: [(&str, f64); 6] = [
    ("H200 NVL", 836e12),
    ("H200", 989e12),
    ("H100 NVL", 836e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
];

/// The most that one rank can do.
#[derive(Clone, Debug, PartialEq)]
pub struct Peak {
    /// Floating-point operations a second.
    pub flops_per_s: f64,
    /// Where the number comes from: `metrics.peak_flops`, a GPU's name, or `products_peak` for one that was measured.
    pub source: String,
}

impl Peak {
    /// What the configuration says, else what is known of the GPU, else what products of this run's compute type reach here and now, on
    /// all threads: `products_peak`, which other work on the machine makes smaller. `gpu` is the name of one that computes the steps by
    /// kernels of our own: the tensor library's products say nothing of it, and unless it is known there is no peak.
    ///
    /// # Errors
    /// A failing device.
    pub fn of(config: &RunConfig, device: &Device, gpu: Option<&str>) -> Result<Option<Peak>> {
        let told = config.metrics.peak_flops;
        if told > 0.0 {
            return Ok(Some(Peak { flops_per_s: told, source: "metrics.peak_flops".to_owned() }));
        }
        if let Some(gpu) = gpu {
            return Ok(known(gpu));
        }
        let name = gpu_name(device).filter(|_| config.compute == Compute::Bf16);
        if let Some(peak) = name.as_deref().and_then(known) {
            return Ok(Some(peak));
        }
        Ok(Some(Peak { flops_per_s: products_peak(device)?, source: "products_peak".to_owned() }))
    }
}

fn known(gpu: &str) -> Option<Peak> {
    let (_, flops_per_s) = KNOWN.into_iter().find(|(part, _)| gpu.contains(part))?;
    Some(Peak { flops_per_s, source: gpu.to_owned() })
}

/// The fastest of several products as layers compute them.
fn products_peak(device: &Device) -> Result<f64> {
    let n = SIZES[usize::from(!device.is_cpu())];
    let factor = (Tensor::ones((n, n), DType::F32, device)? * 0.5)?;
    let (start, mut fastest_s) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < MEASURE {
        let product = Instant::now();
        linear(&factor, &factor)?;
        device.synchronize()?;
        fastest_s = fastest_s.min(product.elapsed().as_secs_f64());
    }
    Ok(2.0 * (n as f64).powi(3) / fastest_s.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{parse, preset, resolve, set};

    #[test]
    fn a_peak_is_told_known_or_measured() {
        let mut table = parse(preset("smoke").unwrap(), "smoke").unwrap();
        let peak = |table: &toml::Table, gpu| Peak::of(&resolve(table, "smoke").unwrap(), &Device::Cpu, gpu).unwrap();
        let measured = peak(&table, None).unwrap();
        assert_eq!(measured.source, "products_peak");
        assert!((1e8..1e14).contains(&measured.flops_per_s), "{measured:?}");
        // The products of this processor say nothing of a GPU.
        assert_eq!(peak(&table, Some("NVIDIA L4, 22 GiB")), None);
        let h200 = peak(&table, Some("NVIDIA H200, 139 GiB")).unwrap();
        assert_eq!((h200.flops_per_s, h200.source.as_str()), (989e12, "NVIDIA H200, 139 GiB"));
        set(&mut table, "metrics.peak_flops=5e9").unwrap();
        for gpu in [None, Some("NVIDIA L4, 22 GiB")] {
            let told = peak(&table, gpu).unwrap();
            assert_eq!((told.flops_per_s, told.source.as_str()), (5e9, "metrics.peak_flops"));
        }
        let flops = ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"]
            .map(|name| known(name).unwrap().flops_per_s);
        assert_eq!(flops, [312e12, 989e12, 756e12]);
    }
}
