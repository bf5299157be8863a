//! Training steps on random ids, timed in this process.

#![allow(non_snake_case)]

use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use multicoder_model::ops::set_bf16_products;
use multicoder_model::tape::{Profile, TapeOptions};
use multicoder_model::{Batch, CodeLm, ModelConfig, StepKey};
use serde::{Deserialize, Serialize};

use super::Measured;
use crate::config::{Compute, OptimizerConfig};
use crate::device::{self, DeviceKind};
use crate::memory;
use crate::optimizer::Optimizer;
use crate::rng::Rng;
use crate::run::StepsOn;
use crate::step::Workspace;

/// Steps that are not timed: they fault memory in, and on a GPU make the graphs that later ones replay.
const WARMUP_STEPS: usize = 3;
/// Batches that come in turn, as no two of a run are the same.
const BATCHES: usize = 3;

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

/// Runs the steps: a few batches again and again, so that a falling loss of the first shows that they train.
///
/// # Errors
/// A model that cannot be made.
pub fn run(job: &Job) -> Result<Measured> {
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
    let batches = (0..BATCHES).map(|idx| random_batch(job, idx)).collect::<Result<Vec<_>>>()?;
    let n_tokens = job.batch * job.sequence;
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for step in 0..WARMUP_STEPS + job.steps {
        if step == WARMUP_STEPS {
            tape.profile().into_iter().for_each(Profile::clear);
        }
        let start = Instant::now();
        gradients.clear();
        tape.device().map_or(Ok(()), |device| device.clear())?;
        let loss = tape.step(&lm, &batches[step % BATCHES], (n_tokens as f64, 1.0), &mut gradients, None)?;
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
    let of_first: Vec<f64> = losses.into_iter().step_by(BATCHES).collect();
    let per_step = |total: std::time::Duration| total.as_secs_f64() / job.steps as f64;
    let entries = tape.profile().map(|profile| profile.entries()).unwrap_or_default();
    let mut profile: Vec<(String, f64)> =
        entries.into_iter().map(|(name, total, _)| (name.to_owned(), per_step(total))).collect();
    let in_ops: f64 = profile.iter().map(|(_, seconds)| seconds).sum();
    profile.push(("optimizer and rest".to_owned(), seconds.iter().sum::<f64>() / job.steps as f64 - in_ops));
    Ok(Measured {
        seconds,
        first_loss: of_first[0],
        last_loss: of_first[of_first.len() - 1],
        peak_bytes: tape.device().map_or_else(memory::peak_rss_bytes, |device| device.peak_bytes() as u64),
        n_parameters: job.model.n_parameters(),
        profile,
    })
}

/// Random ids. Row `i` has the language of expert `i % n_experts`; rows come sorted by it, as those of a training step do.
fn random_batch(job: &Job, idx: usize) -> Result<Batch> {
    let (b, l) = (job.batch, job.sequence);
    let mut rng = Rng::keyed(1, "bench", &[idx as u64]);
    let mut ids = || -> Result<Tensor> {
        let ids: Vec<u32> = (0..b * l).map(|_| (rng.next_u64() % job.model.vocab_size as u64) as u32).collect();
        Ok(Tensor::from_vec(ids, (b, l), &Device::Cpu)?)
    };
    let (x_BL, y_BL) = (ids()?, ids()?);
    // Late in training, when every schedule of a router has ended.
    let training = StepKey { seed: 1, step: 1_000_000 + idx as u64 };
    let n_experts = job.model.moe.as_ref().map_or(1, |moe| moe.n_experts);
    let mut expert_B: Vec<usize> = (0..b).map(|row| row % n_experts).collect();
    expert_B.sort_unstable();
    let expert_of_language = job.model.expert_of_language();
    let language_of = |expert: usize| expert_of_language.iter().position(|known| *known == expert).unwrap_or(0) as u32;
    let language_BL = expert_B.into_iter().flat_map(|expert| std::iter::repeat_n(language_of(expert), l)).collect();
    Ok(Batch { x_BL, y_BL, language_BL, start_BL: None, training: Some(training) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_dealt_to_experts_and_sorted() {
        let model = serde_json::json!({
            "vocab_size": 300, "d_model": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_head": 16, "d_ff": 16,
            "context_tokens": 32, "languages": ["c", "lua", "python"],
            "moe": {"layers": {"every_n": 1}, "n_experts": 3, "d_ff_expert": 8, "router": {"kind": "pl_hard"},
                    "expert_of_language": {"c": 2, "python": 0}},
        });
        let job = Job {
            model: serde_json::from_value(model).unwrap(),
            optimizer: OptimizerConfig::for_tests(),
            batch: 5,
            sequence: 2,
            compute: Compute::F32,
            checkpoint_activations: false,
            steps: 1,
            device: DeviceKind::Cpu,
        };
        // Experts 0, 0, 1, 1, 2.
        let batch = random_batch(&job, 0).unwrap();
        assert_eq!(batch.language_BL, [2, 2, 2, 2, 1, 1, 1, 1, 0, 0]);
        let ids = |batch: &Batch| batch.x_BL.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert_ne!(ids(&batch), ids(&random_batch(&job, 1).unwrap()));
    }
}
