//! Training steps on random ids, timed in this process.

#![allow(non_snake_case)]

use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use multicoder_model::ops::set_bf16_products;
use multicoder_model::tape::{Profile, TapeOptions};
use multicoder_model::{Batch, CodeLm, ModelConfig};
use serde::{Deserialize, Serialize};

use super::Measured;
use crate::config::{Compute, OptimizerConfig};
use crate::device::{self, DeviceKind};
use crate::memory;
use crate::optimizer::Optimizer;
use crate::rng::Rng;
use crate::run::StepsOn;
use crate::step::Workspace;

/// Steps that are not timed: they fault memory in.
const WARMUP_STEPS: usize = 2;

/// What to measure.
#[derive(Debug, Deserialize, Serialize)]
pub struct Job {
    pub model: ModelConfig,
    pub optimizer: OptimizerConfig,
    pub batch: usize,
    pub sequence: usize,
    pub compute: Compute,
    pub checkpoint_activations: bool,
    pub steps: usize,
    pub device: DeviceKind,
}

/// Runs the steps: the same batch each time, so that a falling loss shows that they train.
///
/// # Errors
/// A model that cannot be made.
pub fn run(job: &Job) -> Result<Measured> {
    memory::keep_pages();
    set_bf16_products(job.compute == Compute::Bf16);
    // On a thread of the pool, as a training run is.
    rayon::scope(|_| steps(job))
}

fn steps(job: &Job) -> Result<Measured> {
    let (device, steps_on) = device::for_steps(Some(job.device))?;
    let lm = CodeLm::init(&job.model, 1, &device)?;
    let mut optimizer = Optimizer::new(&job.optimizer, lm.parameters())?;
    let options = TapeOptions { checkpoint_activations: job.checkpoint_activations };
    let Workspace { mut tape, mut gradients } = match steps_on {
        StepsOn::Tensors => Workspace::new(&lm, options),
        StepsOn::Gpu => Workspace::on_gpu(&lm, options, &optimizer, 1)?,
    };
    let batch = random_batch(job)?;
    let n_tokens = job.batch * job.sequence;
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for step in 0..WARMUP_STEPS + job.steps {
        if step == WARMUP_STEPS {
            tape.profile().into_iter().for_each(Profile::clear);
        }
        let start = Instant::now();
        gradients.clear();
        tape.device().map_or(Ok(()), |device| device.clear())?;
        let loss = tape.step(&lm, &batch, (n_tokens as f64, 1.0), &mut gradients, None)?;
        let nll_sum = match tape.device() {
            Some(device) => device.update(1e-3, 0.0)?.nll_sum,
            None => {
                optimizer.step(&gradients, 1.0, 1e-3)?;
                device.synchronize()?;
                loss.nll_sum
            }
        };
        seconds.push(start.elapsed().as_secs_f64());
        losses.push(nll_sum / n_tokens as f64);
    }
    seconds.drain(..WARMUP_STEPS);
    let per_step = |total: std::time::Duration| total.as_secs_f64() / job.steps as f64;
    let entries = tape.profile().map(|profile| profile.entries()).unwrap_or_default();
    let mut profile: Vec<(String, f64)> =
        entries.into_iter().map(|(name, total, _)| (name.to_owned(), per_step(total))).collect();
    let in_ops: f64 = profile.iter().map(|(_, seconds)| seconds).sum();
    profile.push(("optimizer and rest".to_owned(), seconds.iter().sum::<f64>() / job.steps as f64 - in_ops));
    Ok(Measured {
        seconds,
        first_loss: losses[0],
        last_loss: losses[losses.len() - 1],
        peak_bytes: memory::peak_rss_bytes(),
        n_parameters: job.model.n_parameters(),
        profile,
    })
}

/// Random ids; a language for each sequence.
fn random_batch(job: &Job) -> Result<Batch> {
    let (b, l) = (job.batch, job.sequence);
    let mut rng = Rng::keyed(1, "bench", &[]);
    let mut ids = || -> Result<Tensor> {
        let ids: Vec<u32> = (0..b * l).map(|_| (rng.next_u64() % job.model.vocab_size as u64) as u32).collect();
        Ok(Tensor::from_vec(ids, (b, l), &Device::Cpu)?)
    };
    let (x_BL, y_BL) = (ids()?, ids()?);
    let language_BL = (0..b * l).map(|n| (n / l % job.model.languages.len().max(1)) as u32).collect();
    Ok(Batch { x_BL, y_BL, language_BL, start_BL: None })
}
