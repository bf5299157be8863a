//! One optimizer step: micro-steps forward and backward, clip, check, update.

#![allow(non_snake_case)]

use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use multicoder_model::tape::{TapeOptions, TrainTape};
use multicoder_model::{Batch, CodeLm, Gradients};

use crate::data::loader::Loader;
use crate::data::packer::Sequence;
use crate::optimizer::Optimizer;
use crate::parallel::Mesh;

/// What does not change from step to step.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Sequences of one forward and backward pass.
    pub micro_batch_sequences: usize,
    /// Largest global gradient norm; 0 for no clipping.
    pub clip_norm: f64,
    /// Model language index of each language of the texts.
    pub language_indices: Vec<u32>,
    /// Where batches are made.
    pub device: Device,
}

/// Memory that steps share: nothing of a step is allocated anew.
pub struct Workspace {
    pub tape: TrainTape,
    pub gradients: Gradients,
}

impl Workspace {
    pub fn new(lm: &CodeLm, options: TapeOptions) -> Workspace {
        Workspace { tape: TrainTape::new(options), gradients: Gradients::of(lm) }
    }
}

/// What a step did.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// Mean negative log-likelihood of the counted tokens, in nats, before the update.
    pub loss: f64,
    /// Auxiliary losses of the routers, weighted as the tokens are.
    pub aux_loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Share of assignments of each expert, per MoE layer.
    pub load_E: Vec<Vec<f32>>,
    /// Tokens that went through the model.
    pub n_tokens: usize,
    /// Tokens that counted in the loss.
    pub n_counted: usize,
    /// Wall time of the step, data included.
    pub elapsed_s: f64,
    /// Wall time spent waiting for the loader.
    pub loader_wait_s: f64,
}

/// Trains on the loader's next batch.
///
/// # Errors
/// A loss or gradient that is not finite stops the run before any weight is touched; errors of data and tensors.
pub fn step(
    lm: &mut CodeLm,
    optimizer: &mut Optimizer,
    workspace: &mut Workspace,
    loader: &mut Loader,
    mesh: Mesh,
    options: &StepOptions,
    lr: f64,
) -> Result<StepReport> {
    let start = Instant::now();
    let batch = loader.next_batch()?;
    let loader_wait_s = start.elapsed().as_secs_f64();
    let n_counted = mesh.sum(batch.n_counted as f64)?.max(1.0);

    let Workspace { tape, gradients } = workspace;
    gradients.clear();
    let mut report = StepReport { n_counted: n_counted as usize, loader_wait_s, ..StepReport::default() };
    for sequences in batch.sequences.chunks(options.micro_batch_sequences) {
        let inputs = to_batch(sequences, &options.language_indices, &options.device)?;
        let output = tape.step(lm, &inputs, n_counted, gradients, &mut |_, _| Ok(()))?;
        report.loss += output.nll_sum / n_counted;
        report.aux_loss += output.aux_loss;
        report.n_tokens += inputs.language_BL.len();
        let share = sequences.len() as f32 / batch.sequences.len() as f32;
        add_load(&mut report.load_E, &output.load_E, share);
    }

    mesh.sum_gradients(gradients)?;
    report.loss = mesh.sum(report.loss)?;
    report.grad_norm = gradients.norm();
    if !mesh.all(report.loss.is_finite() && report.grad_norm.is_finite())? {
        bail!(
            "loss {} and gradient norm {}: expected finite numbers; no weight was changed",
            report.loss,
            report.grad_norm
        );
    }
    let clipped = options.clip_norm > 0.0 && report.grad_norm > options.clip_norm;
    let scale = if clipped { options.clip_norm / report.grad_norm } else { 1.0 };
    optimizer.step(gradients, scale, lr)?;
    lm.after_step(&report.load_E);
    report.elapsed_s = start.elapsed().as_secs_f64();
    Ok(report)
}

/// Rows as the model takes them.
pub fn to_batch(sequences: &[Sequence], language_indices: &[u32], device: &Device) -> Result<Batch> {
    let b = sequences.len();
    let l = sequences.first().map_or(0, |sequence| sequence.x_L.len());
    let flat = |ids: fn(&Sequence) -> &Vec<u32>| -> Vec<u32> { sequences.iter().flat_map(ids).copied().collect() };
    let x_BL = Tensor::from_vec(flat(|sequence| &sequence.x_L), (b, l), device)?;
    let y_BL = Tensor::from_vec(flat(|sequence| &sequence.y_L), (b, l), device)?;
    let language_BL =
        sequences.iter().flat_map(|sequence| std::iter::repeat_n(language_indices[sequence.language_idx], l)).collect();
    Ok(Batch { x_BL, y_BL, language_BL, start_BL: None })
}

fn add_load(sum: &mut Vec<Vec<f32>>, load: &[Vec<f32>], share: f32) {
    sum.resize(load.len(), Vec::new());
    for (sum_E, load_E) in sum.iter_mut().zip(load) {
        sum_E.resize(load_E.len(), 0.0);
        for (sum, load) in sum_E.iter_mut().zip(load_E) {
            *sum += load * share;
        }
    }
}
