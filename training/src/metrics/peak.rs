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
/// Dense bfloat16 products a second by a part of the GPU's name, from the vendor's data sheets (SXM boards).
const KNOWN: [(&str, f64); 3] = [("H200", 989e12), ("H100", 989e12), ("A100", 312e12)];

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
    /// all threads: `products_peak`, which other work on the machine makes smaller.
    ///
    /// # Errors
    /// A failing device.
    pub fn of(config: &RunConfig, device: &Device) -> Result<Peak> {
        let told = config.metrics.peak_flops;
        if told > 0.0 {
            return Ok(Peak { flops_per_s: told, source: "metrics.peak_flops".to_owned() });
        }
        let name = gpu_name(device).filter(|_| config.compute == Compute::Bf16);
        if let Some(peak) = name.and_then(known) {
            return Ok(peak);
        }
        Ok(Peak { flops_per_s: products_peak(device)?, source: "products_peak".to_owned() })
    }
}

fn known(gpu: String) -> Option<Peak> {
    let (_, flops_per_s) = KNOWN.into_iter().find(|(part, _)| gpu.contains(part))?;
    Some(Peak { flops_per_s, source: gpu })
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
        let measured = Peak::of(&resolve(&table, "smoke").unwrap(), &Device::Cpu).unwrap();
        assert_eq!(measured.source, "products_peak");
        assert!((1e8..1e14).contains(&measured.flops_per_s), "{measured:?}");
        set(&mut table, "metrics.peak_flops=5e9").unwrap();
        let told = Peak::of(&resolve(&table, "smoke").unwrap(), &Device::Cpu).unwrap();
        assert_eq!((told.flops_per_s, told.source.as_str()), (5e9, "metrics.peak_flops"));
        let a100 = known("NVIDIA A100-SXM4-80GB".to_owned()).unwrap();
        assert_eq!((a100.flops_per_s, known("NVIDIA L4".to_owned())), (312e12, None));
    }
}
