//! Runs a tape on a GPU: kernels of our own, compiled when the device is opened, and products by cuBLASLt.
//!
//! The driver and the libraries are loaded at run time, so that a binary with this code starts on any machine. Weights are float32 in one
//! flat buffer with a bfloat16 copy for products; gradients are float32, activations bfloat16, the residual stream and its gradient
//! float32. Every sum has an order that the shapes alone fix (there are no atomics), so that a step gives the same numbers every time.
//!
//! A tape that comes a third time with the same shapes is replayed as captured graphs, whatever languages its sequences have: what a step
//! reads of its batch lies in one block of memory whose sections keep their places. Products of long stretches of one expert's rows go by
//! the library, at addresses that change with the batch: they are queued one by one, between the graphs.

use std::ops::Range;
use std::time::Duration;

use cudarc::driver::CudaEvent;

use super::op::Op;
use super::record::record;
use super::step::step_data;
use super::{
    DeviceOptimizer, DeviceReport, DeviceState, DeviceTape, Profile, StepData, StepLoss, Tape, TapeOptions, TrainTape,
};
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::lm::{Batch, CodeLm, IGNORE_ID};

mod decode;
mod device;
mod gemm;
mod gpu;
mod kernels;
mod layout;
mod losses;
mod muon;
mod optimizer;
mod readback;
mod replay;
mod run;
#[cfg(test)]
mod tests;
mod upload;

pub use decode::CudaDecoder;
use device::{Device, DeviceBuffer};
pub(super) use gpu::n_gpus;
use gpu::{Gpu, driver};
use layout::{Arena, Layout};
use losses::Losses;
use optimizer::{Flat, Optimizer};
use replay::{Key, Recorded, Tapes};
use run::{Run, Scratch};
use upload::{Bounds, Uploads};

/// A model on a GPU, and the memory that its steps use.
pub struct CudaTape {
    options: TapeOptions,
    tapes: Tapes,
    /// When the gradients of ranges of parameters were complete, in the last step that was no replay.
    ready: Vec<(Range<usize>, CudaEvent)>,
    profile: Profile,
    is_profiling: bool,
    present: Vec<bool>,
    layout: Layout,
    optimizer: Optimizer,
    uploads: Uploads,
    scratch: Scratch,
    losses: Losses,
    n_replays: usize,
    arena: DeviceBuffer,
    rope: DeviceBuffer,
    weights: DeviceBuffer,
    halves: DeviceBuffer,
    gradients: DeviceBuffer,
    first: DeviceBuffer,
    second: DeviceBuffer,
    report: DeviceBuffer,
    device: Device,
}

impl CudaTape {
    /// Takes the weights of `lm`, a model on the CPU, to GPU `ordinal`.
    ///
    /// # Errors
    /// [`Error::Device`] without a GPU, its driver or its libraries, or for sizes that the kernels do not take; [`Error::Input`] for a model
    /// that no tape runs.
    pub fn new(ordinal: usize, lm: &CodeLm, options: TapeOptions, optimizer: &DeviceOptimizer) -> Result<CudaTape> {
        layout::check_sizes(lm.config())?;
        CudaTape::with_device(Device::open(ordinal, lm.config().d_head)?, lm, options, optimizer)
    }

    fn with_device(device: Device, lm: &CodeLm, options: TapeOptions, optimizer: &DeviceOptimizer) -> Result<CudaTape> {
        check_model(lm)?;
        let layout = Layout::new(lm.parameters().iter().map(|(_, parameter)| parameter.elem_count()));
        let shapes: Vec<Vec<usize>> = lm.parameters().iter().map(|(_, parameter)| parameter.dims().to_vec()).collect();
        let floats = || device.zeros(4 * layout.len);
        let rope = device.zeros(4 * lm.rope().table().len())?;
        device.write(lm.rope().table(), rope.at)?;
        let mut tape = CudaTape {
            options,
            tapes: Tapes::default(),
            ready: Vec::new(),
            profile: Profile::default(),
            is_profiling: false,
            present: vec![false; layout.n_parameters()],
            optimizer: Optimizer::new(&device, &layout, &shapes, optimizer)?,
            uploads: Uploads::new(&device)?,
            scratch: Scratch::new(&device)?,
            losses: Losses::new(&device)?,
            n_replays: 0,
            arena: device.zeros(0)?,
            rope,
            weights: floats()?,
            halves: device.zeros(2 * layout.len)?,
            gradients: floats()?,
            first: floats()?,
            second: floats()?,
            report: device.zeros(optimizer::REPORT_BYTES)?,
            layout,
            device,
        };
        tape.upload(lm)?;
        Ok(tape)
    }

    /// When the gradients of ranges of parameters were complete: none after a replayed graph, where all are at its end.
    pub fn ready(&self) -> &[(Range<usize>, CudaEvent)] {
        &self.ready
    }

    /// Steps that were replays of graphs.
    pub fn n_replays(&self) -> usize {
        self.n_replays
    }

    fn flat(&self) -> Flat {
        Flat {
            weights: self.weights.at,
            halves: self.halves.at,
            gradients: self.gradients.at,
            first: self.first.at,
            second: self.second.at,
            report: self.report.at,
            len: self.layout.len,
        }
    }

    /// Brings a batch to the device and makes room for its tape.
    fn prepare(&mut self, lm: &CodeLm, tape: &Tape, data: &StepData, divisor: f64) -> Result<()> {
        let config = lm.config();
        let bounds = Bounds::new(config, tape, &self.layout);
        let (sections, words) = upload::words(data, (1.0 / divisor) as f32, &bounds, None);
        let by_library = data.plans.iter().map(|plan| run::uses_library(plan, data.b)).collect();
        let (ops, buffers) = (tape.ops.clone(), tape.buffers.clone());
        let key = Key { ops, buffers, sections, rows: (data.b, data.l), by_library };
        let arena = Arena::new(tape);
        let mut moved = self.uploads.send(&self.device, &words)?;
        moved |= self.device.grow(&mut self.arena, arena.n_bytes)?;
        moved |= self.scratch.fit(&self.device, tape, &key.sections, (data.b, config.vocab_size))?;
        self.tapes.come(key, arena, moved);
        Ok(())
    }

    /// Queues the operations of the tape that was prepared: one by one, or, from its third time on, as graphs.
    fn queue(&mut self, lm: &CodeLm, tape: &Tape, data: &StepData) -> Result<()> {
        let Some(recorded) = self.tapes.last_mut() else { return Ok(()) };
        let is_replayed = recorded.is_replayed();
        let (graphs, arena, sections) = recorded.parts();
        let run = Run {
            device: &self.device,
            config: lm.config(),
            tape,
            arena: (arena, self.arena.at),
            layout: &self.layout,
            weights: self.weights.at,
            halves: self.halves.at,
            gradients: self.gradients.at,
            rope: self.rope.at,
            loss: self.report.at,
            scratch: &self.scratch,
            uploads: &self.uploads,
            sections,
            data,
        };
        self.ready.clear();
        if let (true, Some(gpu)) = (self.is_profiling, self.device.gpu()) {
            return profiled(&run, gpu, &mut self.profile);
        }
        if is_replayed {
            self.n_replays += 1;
            return Recorded::replay(graphs, &run);
        }
        for op in &tape.ops {
            run.op(op)?;
            if let (Op::Ready { parameters }, Some(gpu)) = (op, self.device.gpu()) {
                self.ready.push((parameters.clone(), gpu.mark(false)?));
            }
        }
        Ok(())
    }
}

/// # Errors
/// [`Error::Input`] for a model that no tape runs on a GPU.
fn check_model(lm: &CodeLm) -> Result<()> {
    match TrainTape::is_for_gpu(lm) {
        true => Ok(()),
        false => Err(Error::Input(
            "a router that reads tokens, layers with unlike numbers of experts, experts that are made of other weights or have dropout, adapters \
             or an embedding of languages: expected a router by language, n_experts alone and none of the others, on a GPU".into(),
        )),
    }
}

/// Runs the operations one by one and adds their times.
fn profiled(run: &Run, gpu: &Gpu, profile: &mut Profile) -> Result<()> {
    let mut marks = vec![gpu.mark(true)?];
    for op in &run.tape.ops {
        run.op(op)?;
        marks.push(gpu.mark(true)?);
    }
    run.device.wait()?;
    for (op, ends) in run.tape.ops.iter().zip(marks.windows(2)) {
        let milliseconds = ends[0].elapsed_ms(&ends[1]).map_err(driver)?;
        profile.add(op.name(), Duration::from_secs_f32(milliseconds.max(0.0) / 1e3));
    }
    Ok(())
}

impl DeviceTape for CudaTape {
    fn clear(&mut self) -> Result<()> {
        self.present.fill(false);
        self.losses.clear();
        self.device.clear(self.gradients.at, 4 * self.layout.len)?;
        self.device.clear(self.report.at, optimizer::REPORT_BYTES)
    }

    fn step(&mut self, lm: &CodeLm, batch: &Batch, divisor: f64) -> Result<StepLoss> {
        let data = step_data(lm, batch, lm.exchange().map(|exchange| &**exchange))?;
        let names: Vec<&str> = lm.parameters().iter().map(|(name, _)| name.as_str()).collect();
        let tape = record(lm.config(), &names, &data, self.options)?;
        self.prepare(lm, &tape, &data, divisor)?;
        self.queue(lm, &tape, &data)?;
        self.losses.append(&self.device, self.scratch.sequence_losses(), data.b)?;
        let present = layout::present(&tape, &data, self.layout.n_parameters());
        self.present.iter_mut().zip(present).for_each(|(all, now)| *all |= now);
        let n_tokens = data.target_N.iter().filter(|&&id| id != IGNORE_ID).count();
        let load_E = data.plans.into_iter().map(|plan| plan.load_E).collect();
        Ok(StepLoss { nll_sum: 0.0, aux_loss: 0.0, nll_B: Vec::new(), n_tokens, load_E })
    }

    fn update(&mut self, lr: f64, clip_norm: f64) -> Result<DeviceReport> {
        let flat = self.flat();
        let report = self.optimizer.update(&self.device, &flat, &self.present, lr, clip_norm)?;
        Ok(DeviceReport { nll_B: self.losses.read(&self.device)?, ..report })
    }

    fn losses(&mut self) -> Result<Vec<f64>> {
        self.losses.read(&self.device)
    }

    fn update_with(&mut self, gradients: &Gradients, scale: f64, lr: f64) -> Result<()> {
        self.layout.check(gradients)?;
        let mut flat = vec![0f32; self.layout.len];
        for idx in 0..self.layout.n_parameters() {
            self.present[idx] = gradients.is_present(idx);
            let values = gradients.get(idx).unwrap_or_default().iter();
            flat[self.layout.span(idx)].iter_mut().zip(values).for_each(|(to, value)| *to = *value * scale as f32);
        }
        self.device.write(&flat, self.gradients.at)?;
        match self.update(lr, 0.0)?.is_finite {
            true => Ok(()),
            false => Err(Error::Device("summed gradients: expected finite numbers; no weight was changed".to_owned())),
        }
    }

    fn upload(&mut self, lm: &CodeLm) -> Result<()> {
        let weights = lm.parameters().iter().map(|(_, parameter)| parameter.as_tensor());
        optimizer::send_weights(&self.device, &self.layout, weights, (self.weights.at, self.halves.at))
    }

    fn download(&mut self, lm: &CodeLm) -> Result<()> {
        let mut flat = vec![0f32; self.layout.len];
        self.device.read(&mut flat, self.weights.at)?;
        for (idx, (_, parameter)) in lm.parameters().iter().enumerate() {
            let values = &flat[self.layout.span(idx)];
            parameter.set(&candle_core::Tensor::from_slice(values, parameter.shape(), parameter.device())?)?;
        }
        Ok(())
    }

    fn add_gradients(&mut self, gradients: &mut Gradients) -> Result<()> {
        self.layout.check(gradients)?;
        let mut flat = vec![0f32; self.layout.len];
        self.device.read(&mut flat, self.gradients.at)?;
        for idx in (0..self.layout.n_parameters()).filter(|&idx| self.present[idx]) {
            let values = &flat[self.layout.span(idx)];
            gradients.slice_mut(idx).iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    fn state(&mut self) -> Result<DeviceState> {
        let mut flat = vec![0f32; self.layout.len];
        self.device.read(&mut flat, self.first.at)?;
        let first = self.layout.dense(&flat);
        self.device.read(&mut flat, self.second.at)?;
        Ok(DeviceState { first, second: self.layout.dense(&flat), n_steps: self.optimizer.n_steps.clone() })
    }

    fn set_state(&mut self, state: &DeviceState) -> Result<()> {
        let expected = (self.layout.n_values(), self.layout.n_parameters());
        for (got, what) in [(state.first.len(), "first moments"), (state.second.len(), "second moments")] {
            if got != expected.0 {
                return Err(Error::Input(format!("{got} {what}, expected {}", expected.0)));
            }
        }
        if state.n_steps.len() != expected.1 {
            return Err(Error::Input(format!("{} counts of steps, expected {}", state.n_steps.len(), expected.1)));
        }
        self.device.write(&self.layout.pad_dense(&state.first), self.first.at)?;
        self.device.write(&self.layout.pad_dense(&state.second), self.second.at)?;
        self.optimizer.n_steps.clone_from(&state.n_steps);
        Ok(())
    }

    fn profile(&mut self) -> &mut Profile {
        &mut self.profile
    }

    fn set_profiling(&mut self, on: bool) {
        self.is_profiling = on;
    }

    fn n_bytes(&self) -> usize {
        self.arena.n_bytes + self.scratch.n_bytes()
    }

    fn peak_bytes(&self) -> usize {
        self.device.peak_bytes()
    }

    fn describe(&self) -> String {
        self.device.describe()
    }
}
