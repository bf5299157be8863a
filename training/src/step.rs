//! One optimizer step: micro-steps forward and backward, clip, check, update.

#![allow(non_snake_case)]

use std::ops::Range;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use multicoder_model::tape::{DeviceTape, Ready, TapeOptions, TrainTape, n_gpus};
use multicoder_model::{Batch, CodeLm, Gradients, StepKey, UNKNOWN_LANGUAGE};

use crate::data::loader::{Batch as LoadedBatch, Loader};
use crate::data::packer::{NO_LANGUAGE, Sequence};
use crate::optimizer::Optimizer;
use crate::parallel::{Launch, Mesh};

/// What does not change from step to step.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Sequences of one forward and backward pass.
    pub micro_batch_sequences: usize,
    /// Largest global gradient norm; 0 for no clipping.
    pub clip_norm: f64,
    /// Model language index of each language of the texts.
    pub language_indices: Vec<u32>,
    /// Whether attention stays within the pieces that a sequence is packed of.
    pub document_mask: bool,
    /// Where the model lives.
    pub device: Device,
    /// Of what is random in a step.
    pub seed: u64,
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

    /// This rank's GPU and its memory, with the weights of `lm` and the state of `optimizer`: steps change them there. With several ranks
    /// gradients come to the host to be summed.
    ///
    /// # Errors
    /// No GPU, no driver, or sizes that its kernels do not take.
    pub fn on_gpu(lm: &CodeLm, options: TapeOptions, optimizer: &Optimizer, world: usize) -> Result<Workspace> {
        let ordinal = Launch::from_environment().gpu(n_gpus()?);
        let tape = TrainTape::on_gpu(ordinal, lm, options, &optimizer.device_options())?;
        Workspace::on(tape, lm, optimizer, world)
    }

    /// As [`Workspace::on_gpu`], with a tape that is there.
    ///
    /// # Errors
    /// Those of the device.
    pub fn on(mut tape: TrainTape, lm: &CodeLm, optimizer: &Optimizer, world: usize) -> Result<Workspace> {
        if let Some(device) = tape.device() {
            device.set_state(&optimizer.device_state()?)?;
            eprintln!("training on {}", device.describe());
        }
        Ok(Workspace { tape, gradients: if world > 1 { Gradients::of(lm) } else { Gradients::new([]) } })
    }

    /// Gives `lm` and `optimizer` what a device has made of them; nothing where steps run on the host.
    ///
    /// # Errors
    /// Those of the device.
    pub fn bring_back(&mut self, lm: &CodeLm, optimizer: &mut Optimizer) -> Result<()> {
        let Some(device) = self.tape.device() else { return Ok(()) };
        device.download(lm)?;
        optimizer.set_device_state(&device.state()?)
    }
}

/// What a step says of one language.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LanguageLoss {
    /// Sum of the negative log-likelihoods of the counted tokens, in nats.
    pub nll_sum: f64,
    /// Tokens that counted.
    pub n_counted: usize,
}

/// What a step did.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// Mean negative log-likelihood of the counted tokens, in nats, before the update.
    pub loss: f64,
    /// Auxiliary losses of the routers, weighted as the tokens are.
    pub aux_loss: f64,
    /// Loss by language of the rows, in the order of the texts; all have a place, also without tokens in this step.
    pub languages: Vec<LanguageLoss>,
    /// Passes over the text of each language since the start of the run, this step's included.
    pub epochs: Vec<f64>,
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
    /// Bytes that this rank sent to others since the last step.
    pub comm_bytes: u64,
    /// Messages that this rank sent to others since the last step.
    pub comm_messages: u64,
    /// Wall time of the step that this rank waited for others.
    pub comm_wait_s: f64,
}

/// Trains on the loader's next batch, in step `step` with learning rate `lr`. `mesh` divides each micro-step; what is reported holds for all ranks together.
///
/// # Errors
/// A loss or gradient that is not finite on any rank stops all of them before any weight is touched; errors of data, tensors, ranks.
pub fn step(
    lm: &mut CodeLm,
    optimizer: &mut Optimizer,
    workspace: &mut Workspace,
    loader: &mut Loader,
    mesh: &mut Mesh,
    options: &StepOptions,
    (step, lr): (u64, f64),
) -> Result<StepReport> {
    // What ranks said to each other since the last step counts, but the time that it took is not of this one.
    let (before, _) = mesh.take_traffic();
    let start = Instant::now();
    let batch = loader.next_batch()?;
    let languages = counted_by_language(&batch, options.language_indices.len());
    let mut report = StepReport { n_counted: batch.n_counted, load_E: no_load(lm), languages, ..StepReport::default() };
    report.loader_wait_s = start.elapsed().as_secs_f64();
    report.epochs = loader.epochs();
    let key = StepKey { seed: options.seed, step };
    let rows = accumulate(lm, workspace, &batch, mesh, (options, key), &mut report)?;
    let Workspace { tape, gradients } = workspace;
    match tape.device() {
        Some(device) if mesh.world() == 1 => update_on_device(device, &mut report, &rows, options, lr)?,
        mut device => {
            if let Some(device) = &mut device {
                fetch(*device, gradients, &mut report, &rows)?;
            }
            mesh.finish_sum(gradients)?;
            report.grad_norm = reduce_report(&mut report, gradients, mesh)?.sqrt();
            let clipped = options.clip_norm > 0.0 && report.grad_norm > options.clip_norm;
            let scale = if clipped { options.clip_norm / report.grad_norm } else { 1.0 };
            match device {
                Some(device) => device.update_with(gradients, scale, lr)?,
                None => optimizer.step(gradients, scale, lr)?,
            }
        }
    }
    report.elapsed_s = start.elapsed().as_secs_f64();
    let (traffic, comm_wait_s) = mesh.take_traffic();
    (report.comm_bytes, report.comm_messages) = (before.bytes + traffic.bytes, before.messages + traffic.messages);
    report.comm_wait_s = comm_wait_s;
    Ok(report)
}

/// Brings the gradients and losses of this rank's device to the host, where the ranks sum them.
fn fetch(
    device: &mut dyn DeviceTape,
    gradients: &mut Gradients,
    report: &mut StepReport,
    rows: &[usize],
) -> Result<()> {
    device.add_gradients(gradients)?;
    gradients.settle();
    let nll_B = device.losses()?;
    report.loss = nll_B.iter().sum::<f64>() / report.n_counted.max(1) as f64;
    rows.iter().zip(nll_B).for_each(|(&language_idx, nll_sum)| report.languages[language_idx].nll_sum += nll_sum);
    Ok(())
}

/// The device judges and updates by itself; what it found is read here, the only wait of a step: also the loss of each of `rows`, by
/// their languages.
fn update_on_device(
    device: &mut dyn DeviceTape,
    report: &mut StepReport,
    rows: &[usize],
    options: &StepOptions,
    lr: f64,
) -> Result<()> {
    let found = device.update(lr, options.clip_norm)?;
    (report.loss, report.grad_norm) = (found.nll_sum / report.n_counted.max(1) as f64, found.grad_norm);
    add_losses(&mut report.languages, rows, &found.nll_B);
    check(report, found.is_finite)
}

fn check(report: &StepReport, is_finite: bool) -> Result<()> {
    if !is_finite {
        let (loss, norm) = (report.loss, report.grad_norm);
        bail!("loss {loss} and gradient norm {norm}: expected finite numbers; no weight was changed");
    }
    Ok(())
}

/// Runs this rank's part of each micro-step forward and backward; returns the language of each row, in the order in which they ran.
fn accumulate(
    lm: &CodeLm,
    Workspace { tape, gradients }: &mut Workspace,
    batch: &LoadedBatch,
    mesh: &mut Mesh,
    (options, key): (&StepOptions, StepKey),
    report: &mut StepReport,
) -> Result<Vec<usize>> {
    gradients.clear();
    tape.device().map_or(Ok(()), |device| device.clear())?;
    let (divisor, mut rows) = (batch.n_counted.max(1) as f64, Vec::new());
    let mut micro_steps = batch.sequences.chunks(options.micro_batch_sequences).peekable();
    while let Some(sequences) = micro_steps.next() {
        let mut mine = mesh.deal(sequences);
        let share = mine.len() as f64 / batch.sequences.len() as f64;
        if mesh.must_take_part(mine.is_empty()) && mine.is_empty() {
            mine.push(sequences[0].padding());
        }
        if mine.is_empty() {
            continue;
        }
        // The loss does not depend on their order; experts get the rows of a language as one stretch.
        mine.sort_by_key(|sequence| sequence.language_idx);
        let first_row = rows.len();
        rows.extend(mine.iter().map(|sequence| sequence.language_idx));
        let mut inputs = to_batch(&mine, &options.language_indices, options.document_mask, &options.device)?;
        inputs.training = Some(key);
        let is_last = micro_steps.peek().is_none();
        // After the last micro-step's backward pass has left a layer, its sums over the ranks begin.
        let speaks = is_last && mesh.world() > 1;
        let mut ready = |gradients: &mut Gradients, parameters: Range<usize>| {
            mesh.start_sum(gradients, gradients.span(parameters.start).start);
            Ok(())
        };
        let ready = speaks.then_some(&mut ready as &mut Ready);
        let output = tape.step(lm, &inputs, (divisor, share), gradients, ready)?;
        report.loss += output.nll_sum / divisor;
        add_losses(&mut report.languages, &rows[first_row..], &output.nll_B);
        report.aux_loss += output.aux_loss;
        report.n_tokens += if share > 0.0 { inputs.language_BL.len() } else { 0 };
        add_load(&mut report.load_E, &output.load_E, share as f32);
    }
    gradients.settle();
    Ok(rows)
}

/// Makes the numbers of the report those of all ranks; returns the square of the gradients' norm. One exchange, which is also the vote:
/// no rank goes on unless all are finite.
fn reduce_report(report: &mut StepReport, gradients: &Gradients, mesh: &Mesh) -> Result<f64> {
    let (shared_squares, own_squares) = mesh.squares(gradients);
    let is_finite = report.loss.is_finite() && (shared_squares + own_squares).is_finite();
    let mut local =
        vec![f64::from(u8::from(is_finite)), report.loss, report.aux_loss, report.n_tokens as f64, own_squares];
    local.extend(report.load_E.iter().flatten().map(|load| f64::from(*load)));
    local.extend(report.languages.iter().map(|language| language.nll_sum));
    let sums = mesh.sum(&local)?;
    (report.loss, report.aux_loss, report.n_tokens) = (sums[1], sums[2], sums[3] as usize);
    let squares = shared_squares + sums[4];
    if sums[0] < mesh.world() as f64 {
        bail!(
            "loss {} and gradient norm {}: expected finite numbers; no weight was changed",
            report.loss,
            squares.sqrt()
        );
    }
    let mut sums = sums[5..].iter();
    report.load_E.iter_mut().flatten().zip(sums.by_ref()).for_each(|(load, sum)| *load = *sum as f32);
    report.languages.iter_mut().zip(sums).for_each(|(language, sum)| language.nll_sum = *sum);
    Ok(squares)
}

/// Rows as the model takes them.
pub fn to_batch(
    sequences: &[Sequence],
    language_indices: &[u32],
    document_mask: bool,
    device: &Device,
) -> Result<Batch> {
    let b = sequences.len();
    let l = sequences.first().map_or(0, |sequence| sequence.x_L.len());
    let flat = |ids: fn(&Sequence) -> &Vec<u32>| -> Vec<u32> { sequences.iter().flat_map(ids).copied().collect() };
    let x_BL = Tensor::from_vec(flat(|sequence| &sequence.x_L), (b, l), device)?;
    let y_BL = Tensor::from_vec(flat(|sequence| &sequence.y_L), (b, l), device)?;
    let language_BL = sequences.iter().flat_map(|sequence| language_L(sequence, language_indices)).collect();
    let start_BL = document_mask.then(|| flat(|sequence| &sequence.start_L));
    Ok(Batch { x_BL, y_BL, language_BL, start_BL, training: None })
}

/// The model's language of each token: that of its region, or the row's where the model does not have it; none where it was dropped.
fn language_L(sequence: &Sequence, language_indices: &[u32]) -> impl Iterator<Item = u32> {
    let of_row = language_indices[sequence.language_idx];
    let of_region = |idx: &u32| language_indices.get(*idx as usize).filter(|index| **index != UNKNOWN_LANGUAGE);
    sequence.language_L.iter().map(move |idx| match *idx {
        NO_LANGUAGE => UNKNOWN_LANGUAGE,
        _ => of_region(idx).copied().unwrap_or(of_row),
    })
}

/// Adds the loss of each row to that of its language. A device gives all rows of a step at its end, the host those of each micro-step.
fn add_losses(languages: &mut [LanguageLoss], rows: &[usize], nll_B: &[f64]) {
    for (&language_idx, nll_sum) in rows.iter().zip(nll_B) {
        languages[language_idx].nll_sum += nll_sum;
    }
}

/// No loss yet, and the counted tokens of the whole batch, which every rank has.
fn counted_by_language(batch: &LoadedBatch, n_languages: usize) -> Vec<LanguageLoss> {
    let mut languages = vec![LanguageLoss::default(); n_languages];
    for sequence in &batch.sequences {
        languages[sequence.language_idx].n_counted += sequence.n_counted();
    }
    languages
}

/// The load of each expert before there is any, per MoE layer.
fn no_load(lm: &CodeLm) -> Vec<Vec<f32>> {
    lm.config().moe_layers().iter().map(|moe| vec![0.0; moe.n_experts]).collect()
}

fn add_load(sum: &mut [Vec<f32>], load: &[Vec<f32>], share: f32) {
    for (sum, load) in sum.iter_mut().flatten().zip(load.iter().flatten()) {
        *sum += load * share;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::packer::ROW_LANGUAGE;

    #[test]
    fn tokens_have_the_language_of_their_region_where_the_model_has_it() {
        let sequence = |language_idx: usize, language_L: &[u32]| {
            let (x_L, y_L, start_L) = (vec![1, 2, 3], vec![2, 3, 4], vec![0; 3]);
            Sequence { x_L, y_L, start_L, language_L: language_L.to_vec(), language_idx }
        };
        // The model has the first language of the texts at 4, the third at 0, and not the second.
        let indices = [4, UNKNOWN_LANGUAGE, 0];
        let rows = [sequence(0, &[ROW_LANGUAGE, 2, 1]), sequence(2, &[0, ROW_LANGUAGE, 9]), sequence(1, &[0, 1, 2])];
        let batch = to_batch(&rows, &indices, true, &Device::Cpu).unwrap();
        assert_eq!(batch.language_BL, [4, 0, 4, 4, 0, 0, 4, UNKNOWN_LANGUAGE, 0]);
        let dropped = to_batch(&[sequence(0, &[NO_LANGUAGE; 3])], &indices, false, &Device::Cpu).unwrap();
        assert_eq!(dropped.language_BL, [UNKNOWN_LANGUAGE; 3]);
        let padding = to_batch(&[rows[0].padding()], &indices, false, &Device::Cpu).unwrap();
        assert_eq!(padding.language_BL, [4; 3]);
    }
}
