//! A training run: set up, then THE loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use multicoder_model::ops::set_bf16_products;
use multicoder_model::{CodeLm, Tokenizer};

use crate::checkpoint::{self, Checkpoint, RunState, due};
use crate::config::{Compute, RunConfig};
use crate::data::loader::Loader;
use crate::metrics::Metrics;
use crate::optimizer::Optimizer;
use crate::parallel::Mesh;
use crate::schedule::{lr_at, n_steps_by_clock};
use crate::step::{StepOptions, step};
use crate::validate::ValidationSet;
use crate::{interrupt, weights};

/// What a run starts from.
pub enum Start {
    /// Random weights.
    Scratch,
    /// The weights of another model, by name; everything else is new.
    Weights(PathBuf),
    /// A checkpoint of this run.
    Checkpoint(Box<Checkpoint>),
}

/// Trains as `config` says, in the run folder `out`. Returns the folder of the last checkpoint.
///
/// # Errors
/// Data, files or a loss that is not finite; the checkpoints written so far stay.
pub fn run(
    config: &RunConfig,
    tokenizer: &Arc<Tokenizer>,
    start: Start,
    device: &Device,
    out: &Path,
) -> Result<PathBuf> {
    let mesh = Mesh::Single;
    if config.compute == Compute::Bf16 && !set_bf16_products(true) {
        eprintln!("compute = \"bf16\": this processor has no AVX-512 BF16; float32 it is");
    }
    let mut lm = CodeLm::init(&config.model, config.seed, device)?;
    let mut optimizer = Optimizer::new(&config.optimizer, lm.parameters())?;
    let mut loader = Loader::open(config, tokenizer)?;
    let mut state = restore_or_start(start, config, &lm, &mut optimizer, &mut loader)?;
    let options = step_options(config, device);
    let validation = load_validation(config, tokenizer, &options)?;
    let mut metrics = Metrics::open(out, state.step, state.n_steps, config.metrics.log_every_steps)?;
    metrics.note(&summary(config, &loader, &state));
    let mut saved = (state.step > 0).then_some(state.step);
    let mut clock = Clock::start(state.elapsed_s);

    while state.step <= state.n_steps {
        let done = state.step == state.n_steps;
        let last = done || interrupt::requested();
        if let Some(validation) = validation.as_ref().filter(|_| due(config.eval.every_steps, state.step, done)) {
            let values = validation.measure(&lm)?;
            metrics.note(&format!("step {}: {}", state.step, validation_line(&values)));
            metrics.log_values("valid", state.step, &values)?;
        }
        state.elapsed_s = clock.elapsed_s();
        if due(config.checkpoint.every_steps, state.step, last) && saved != Some(state.step) {
            (state.cursor, state.parameter_steps) = (loader.cursor().clone(), optimizer.state().n_steps);
            metrics.flush()?;
            checkpoint::save(out, &lm, tokenizer, &optimizer, &state, config)?;
            saved = Some(state.step);
        }
        if last {
            break;
        }
        let lr = lr_at(&config.schedule, state.n_steps, state.step);
        let report = step(&mut lm, &mut optimizer, &mut loader, mesh, &options, lr)?;
        metrics.log_step(state.step, state.n_steps, lr, &report)?;
        state.step += 1;
        clock.end_in_time(config, &mut state, &metrics);
    }
    metrics.finish()?;
    let newest = checkpoint::list(out)?.pop();
    newest.with_context(|| format!("{}: no checkpoint was written", out.display()))
}

fn restore_or_start(
    start: Start,
    config: &RunConfig,
    lm: &CodeLm,
    optimizer: &mut Optimizer,
    loader: &mut Loader,
) -> Result<RunState> {
    let fresh = RunState {
        step: 0,
        n_steps: config.n_steps,
        elapsed_s: 0.0,
        cursor: loader.cursor().clone(),
        texts_fingerprint: loader.texts().fingerprint,
        parameter_steps: optimizer.state().n_steps,
    };
    match start {
        Start::Scratch => Ok(fresh),
        Start::Weights(path) => {
            eprintln!("{}", weights::warm_start(lm, &path)?);
            Ok(fresh)
        }
        Start::Checkpoint(checkpoint) => {
            let Checkpoint { path, weights, moments, mut state, config: saved, .. } = *checkpoint;
            weights::set_all(lm, &weights).with_context(|| path.display().to_string())?;
            optimizer.restore(&moments).with_context(|| path.display().to_string())?;
            loader.seek(state.cursor.clone(), state.texts_fingerprint)?;
            let planned = saved.get("n_steps").and_then(|n_steps| n_steps.as_integer());
            if planned != i64::try_from(config.n_steps).ok() {
                state.n_steps = config.n_steps.max(state.step);
            }
            Ok(state)
        }
    }
}

fn step_options(config: &RunConfig, device: &Device) -> StepOptions {
    StepOptions {
        micro_batch_sequences: config.micro_batch_sequences(),
        clip_norm: config.optimizer.clip_norm,
        language_indices: config.data.languages.iter().map(|name| config.model.language_index(Some(name))).collect(),
        device: device.clone(),
    }
}

fn load_validation(
    config: &RunConfig,
    tokenizer: &Arc<Tokenizer>,
    options: &StepOptions,
) -> Result<Option<ValidationSet>> {
    if config.eval.every_steps == 0 {
        return Ok(None);
    }
    ValidationSet::load(config, tokenizer, &options.language_indices, &options.device).map(Some)
}

/// Weight of the newest step in the running mean of seconds a step.
const NEWEST_STEP_FRAC: f64 = 0.02;

/// Wall time of the run over all its stretches, and how fast it goes now.
struct Clock {
    start: Instant,
    before_s: f64,
    last_s: f64,
    s_per_step: Option<f64>,
}

impl Clock {
    fn start(before_s: f64) -> Clock {
        Clock { start: Instant::now(), before_s, last_s: before_s, s_per_step: None }
    }

    fn elapsed_s(&self) -> f64 {
        self.before_s + self.start.elapsed().as_secs_f64()
    }

    /// Counts a step; moves the end of the run when `max_hours` would otherwise cut its decay off.
    fn end_in_time(&mut self, config: &RunConfig, state: &mut RunState, metrics: &Metrics) {
        let elapsed_s = self.elapsed_s();
        let newest = elapsed_s - self.last_s;
        let mean = self.s_per_step.map_or(newest, |mean| mean + NEWEST_STEP_FRAC * (newest - mean));
        (self.last_s, self.s_per_step) = (elapsed_s, Some(mean));
        if config.max_hours == 0.0 {
            return;
        }
        let left_s = config.max_hours * 3600.0 - elapsed_s;
        if let Some(n_steps) = n_steps_by_clock(&config.schedule, state.n_steps, state.step, mean, left_s) {
            metrics.note(&format!("the clock ends this run at step {n_steps} of {}", state.n_steps));
            state.n_steps = n_steps;
        }
    }
}

fn summary(config: &RunConfig, loader: &Loader, state: &RunState) -> String {
    let texts = loader.texts();
    let mut lines = vec![format!(
        "{} documents, {:.1} MB in {} languages; {} parameters, {} active; step {} of {}",
        texts.n_documents(),
        texts.n_bytes() as f64 / 1e6,
        texts.languages.iter().filter(|texts| texts.n_bytes > 0).count(),
        config.model.n_parameters(),
        config.model.n_active_parameters(),
        state.step,
        state.n_steps
    )];
    for (texts, prob) in texts.languages.iter().zip(loader.language_probs()) {
        lines.push(format!(
            "  {:<12} {:>7} files {:>8.2} MB {:>5.2} bytes/token, drawn {:>4.1} %",
            texts.name,
            texts.documents.len(),
            texts.n_bytes as f64 / 1e6,
            texts.bytes_per_token,
            prob * 100.0
        ));
    }
    lines.join("\n")
}

fn validation_line(values: &[(String, f64)]) -> String {
    let macro_values: Vec<String> =
        values.iter().take(2).map(|(name, value)| format!("validation {name} {value:.4}")).collect();
    macro_values.join("  ")
}
