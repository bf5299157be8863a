//! The optimizer on the device: clipping, AdamW in one launch, Muon by shape.
//!
//! Which parameter goes by which rule is the caller's choice. The factor of clipping never leaves the device, and where loss or gradients
//! are not finite, no kernel writes: the host hears of it with the report.

use candle_core::Tensor;

use super::super::{DeviceOptimizer, DeviceReport, DeviceRule};
use super::device::{Arg, Device, DeviceBuffer, Grid, Number};
use super::kernels::Kernel;
use super::layout::Layout;
use super::muon::MuonGroup;
use crate::error::{Error, Result};
use crate::ops;

/// Threads of a block.
pub(super) const THREADS: usize = 256;
/// Values of a parameter that one block updates.
const CHUNK: usize = 16 * 1024;
/// Blocks that sum squares, at most, and the values of which each has at least as many.
const SUMS: usize = 512;
const SUM_VALUES: usize = 16 * THREADS;

/// `struct Report` of `optimizer.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    loss: f64,
    norm: f64,
    scale: f32,
    is_finite: u32,
}

impl Number for Report {}

/// Bytes of it on the device.
pub(super) const REPORT_BYTES: usize = size_of::<Report>();

/// `struct Rates` of `optimizer.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Rates {
    keep: f32,
    lr: f32,
    by_second: f32,
    is_present: u32,
}

/// Flat buffers of one length, by their addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flat {
    pub(super) weights: u64,
    pub(super) halves: u64,
    pub(super) gradients: u64,
    pub(super) first: u64,
    pub(super) second: u64,
    pub(super) report: u64,
    pub(super) len: usize,
}

/// Queues the copy of a model's weights to `floats`, and of their bfloat16 copy to `halves`.
pub(super) fn send_weights<'a>(
    device: &Device,
    layout: &Layout,
    weights: impl Iterator<Item = &'a Tensor>,
    (floats, halves): (u64, u64),
) -> Result<()> {
    let mut flat = vec![0f32; layout.len];
    for (idx, weight) in weights.enumerate() {
        ops::with_values(weight, "weights", |values| {
            flat[layout.span(idx)].copy_from_slice(values);
            Ok(())
        })?;
    }
    device.write(&flat, floats)?;
    let args = [Arg::At(floats), Arg::At(halves), Arg::Long(layout.len as u64)];
    device.launch(Kernel::RoundWeights, Grid::of(layout.len.div_ceil(8 * THREADS), THREADS), &args)
}

/// The rules of all parameters, and their counts of steps.
pub(super) struct Optimizer {
    options: DeviceOptimizer,
    pub(super) n_steps: Vec<u64>,
    /// `struct Chunk` of each block of AdamW.
    chunks: DeviceBuffer,
    n_chunks: usize,
    rates: DeviceBuffer,
    sums: DeviceBuffer,
    muon: Vec<MuonGroup>,
}

impl Optimizer {
    /// `shapes` are those of the parameters.
    pub(super) fn new(
        device: &Device,
        layout: &Layout,
        shapes: &[Vec<usize>],
        options: &DeviceOptimizer,
    ) -> Result<Optimizer> {
        let (got, expected) = (options.rules.len(), layout.n_parameters());
        if got != expected {
            return Err(Error::Input(format!("{got} rules of an optimizer, expected {expected}")));
        }
        let words = chunks(layout, &options.rules);
        let chunks = device.zeros(4 * words.len())?;
        device.write(&words, chunks.at)?;
        let muon = MuonGroup::all(device, layout, shapes, &options.rules)?;
        Ok(Optimizer {
            options: options.clone(),
            n_steps: vec![0; expected],
            chunks,
            n_chunks: words.len() / 3,
            rates: device.zeros(expected * size_of::<Rates>())?,
            sums: device.zeros(8 * SUMS)?,
            muon,
        })
    }

    /// Updates the parameters that are `present`, and waits for the report.
    pub(super) fn update(
        &mut self,
        device: &Device,
        flat: &Flat,
        present: &[bool],
        lr: f64,
        clip_norm: f64,
    ) -> Result<DeviceReport> {
        let (sums, report) = (Arg::At(self.sums.at), Arg::At(flat.report));
        let args = [Arg::At(flat.gradients), sums, Arg::Long(flat.len as u64)];
        let n_sums = flat.len.div_ceil(SUM_VALUES).clamp(1, SUMS);
        device.launch(Kernel::Squares, Grid::of(n_sums, THREADS), &args)?;
        let args = [sums, report, Arg::Int(n_sums as i32), Arg::Float(clip_norm as f32)];
        device.launch(Kernel::Judge, Grid::of(1, THREADS), &args)?;
        let rates: Vec<Rates> = (0..present.len()).map(|idx| self.rates(idx, present[idx], lr)).collect();
        device.write(&rates, self.rates.at)?;
        let (options, at) = (&self.options, [flat.weights, flat.halves, flat.gradients, flat.first, flat.second]);
        let numbers = [options.beta1, options.beta2, options.eps].map(|x| Arg::Float(x as f32));
        let tables = [self.chunks.at, self.rates.at, flat.report];
        let args = [at.map(Arg::At).as_slice(), &tables.map(Arg::At), &numbers].concat();
        device.launch(Kernel::AdamW, Grid::of(self.n_chunks, THREADS), &args)?;
        for group in &self.muon {
            group.update(device, flat, self.rates.at, options.momentum, lr)?;
        }
        let mut report = [Report::default()];
        device.read(&mut report, flat.report)?;
        let [Report { loss, norm, is_finite, .. }] = report;
        if is_finite != 0 {
            let counts = self.n_steps.iter_mut().zip(present);
            counts.filter(|(_, present)| **present).for_each(|(count, _)| *count += 1);
        }
        Ok(DeviceReport { nll_sum: loss, nll_B: Vec::new(), grad_norm: norm, is_finite: is_finite != 0 })
    }

    fn rates(&self, idx: usize, is_present: bool, lr: f64) -> Rates {
        let step = (self.n_steps[idx] + 1).min(i32::MAX as u64) as i32;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powi(step));
        let (DeviceRule::AdamW { weight_decay } | DeviceRule::Muon { weight_decay }) = self.options.rules[idx];
        Rates {
            keep: (1.0 - lr * weight_decay) as f32,
            lr: (lr * correction(self.options.beta1)) as f32,
            by_second: correction(self.options.beta2) as f32,
            is_present: u32::from(is_present),
        }
    }
}

/// The chunks of all parameters that go by AdamW: start in units, length, parameter.
fn chunks(layout: &Layout, rules: &[DeviceRule]) -> Vec<u32> {
    let mut words = Vec::new();
    for (idx, rule) in rules.iter().enumerate() {
        if matches!(rule, DeviceRule::AdamW { .. }) {
            let span = layout.span(idx);
            for start in span.clone().step_by(CHUNK) {
                let unit = layout.unit(idx) + ((start - span.start) / super::layout::ALIGN) as u32;
                words.extend([unit, CHUNK.min(span.end - start) as u32, idx as u32]);
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_each_parameter_of_adamw_once() {
        let layout = Layout::new([5, 2 * CHUNK + 3, 70]);
        let adamw = DeviceRule::AdamW { weight_decay: 0.0 };
        let words = chunks(&layout, &[DeviceRule::Muon { weight_decay: 0.0 }, adamw, adamw]);
        let of = |parameter: u32| words.chunks_exact(3).filter(move |chunk| chunk[2] == parameter);
        assert_eq!((of(0).count(), of(1).count(), of(2).count()), (0, 3, 1));
        assert_eq!(of(1).map(|chunk| chunk[1] as usize).sum::<usize>(), 2 * CHUNK + 3);
        let mut starts = of(1).map(|chunk| chunk[0] as usize * 64);
        assert!(starts.all(|start| (start - layout.span(1).start).is_multiple_of(CHUNK)));
        assert_eq!(of(2).next().map(|chunk| chunk[0] as usize * 64), Some(layout.span(2).start));
    }

    #[test]
    fn the_report_is_as_the_kernels_see_it() {
        assert_eq!((REPORT_BYTES, std::mem::offset_of!(Report, scale)), (24, 16));
        assert_eq!(size_of::<Rates>(), 16);
    }
}
