//! A training run: set up, then THE loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use multicoder_model::ops::set_bf16_products;
use multicoder_model::tape::TapeOptions;
use multicoder_model::{CodeLm, Tokenizer};
use toml::{Table, Value};

use crate::checkpoint::{self, Checkpoint, RunState, due};
use crate::clock::Clock;
use crate::config::{self, Compute, RunConfig};
use crate::data::loader::Loader;
use crate::device::check_compute;
use crate::interrupt;
use crate::metrics::peak::Peak;
use crate::metrics::{Facts, Metrics};
use crate::optimizer::Optimizer;
use crate::parallel::{Mesh, make_whole};
use crate::schedule::lr_at;
use crate::step::{StepOptions, Workspace, step};
use crate::validate::ValidationSet;
use crate::weights::{self, Source};

/// Where the steps of a run are computed. Validation and checkpoints are the tensor library's business in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepsOn {
    /// Where the model's tensors live.
    Tensors,
    /// The first GPU, by kernels of our own.
    Gpu,
}

/// What a run starts from.
pub enum Start {
    /// Random weights.
    Scratch,
    /// The weights of another model, by name; everything else is new.
    Weights(Box<Source>),
    /// A checkpoint of this run.
    Checkpoint(Box<Checkpoint>),
}

impl Start {
    /// Step and folder of the checkpoint that the run goes on from.
    fn saved(&self) -> Option<(u64, PathBuf)> {
        match self {
            Start::Checkpoint(checkpoint) => Some((checkpoint.state.step, checkpoint.path.clone())),
            Start::Scratch | Start::Weights(_) => None,
        }
    }
}

/// Trains as `config` says, in the run folder `out`, together with the other ranks of `mesh`. Returns the folder of the last checkpoint.
///
/// # Errors
/// Data, files, ranks or a loss that is not finite; the checkpoints written so far stay.
pub fn run(
    config: &RunConfig,
    tokenizer: &Arc<Tokenizer>,
    start: Start,
    device: &Device,
    out: &Path,
    mesh: Mesh,
) -> Result<PathBuf> {
    run_on(StepsOn::Tensors, config, tokenizer, start, device, out, mesh)
}

/// As [`run`], with the steps computed where `steps_on` says. On a GPU the model's tensors stay on the CPU.
///
/// # Errors
/// As of [`run`]; no GPU, or several ranks on GPUs.
pub fn run_on(
    steps_on: StepsOn,
    config: &RunConfig,
    tokenizer: &Arc<Tokenizer>,
    start: Start,
    device: &Device,
    out: &Path,
    mut mesh: Mesh,
) -> Result<PathBuf> {
    check_compute(config.compute, steps_on)?;
    mesh.agree(&config::parse(&config.to_toml()?, "configuration")?)?;
    if mesh.is_first() {
        prepare_folder(out, config)?;
    }
    choose_products(config.compute);
    let mut saved = start.saved();
    let Opened { mut lm, mut optimizer, mut loader, mut state } =
        mesh.together(open(config, tokenizer, start, device))?;
    if mesh.world() > 1 {
        mesh.agree(&starting_point(&state, &lm, steps_on)?)?;
    }
    let mut workspace = workspace(config, &lm, &optimizer, steps_on, &mesh)?;
    mesh.divide(config, &mut lm, &loader.language_probs(), &workspace.gradients);
    let options = step_options(config, device);
    let validation = load_validation(config, tokenizer, &options)?;
    let gpu = workspace.tape.device().map(|device| device.describe());
    let mut metrics = open_metrics(config, &loader, &state, &mesh, (device, gpu.as_deref()), out)?;
    let mut clock = Clock::start(state.elapsed_s);

    while state.step <= state.n_steps {
        let done = state.step == state.n_steps;
        let last = one_for_all(&mesh, &mut state)? || done;
        let validation = validation.as_ref().filter(|_| due(config.eval.every_steps, state.step, done));
        let is_saved = saved.as_ref().is_some_and(|(step, _)| *step == state.step);
        let saves = due(config.checkpoint.every_steps, state.step, last) && !is_saved;
        if validation.is_some() || saves {
            workspace.bring_back(&lm, &mut optimizer)?;
            make_whole(&mesh, &lm, &mut optimizer)?;
        }
        if let Some(validation) = validation {
            clock.set_validation(validate(validation, &mut lm, &mesh, state.step, &mut metrics)?);
        }
        state.elapsed_s = clock.elapsed_s();
        if saves {
            let start = Instant::now();
            (state.cursor, state.parameter_steps) = (loader.cursor().clone(), optimizer.state().n_steps);
            metrics.flush()?;
            if mesh.is_first() {
                checkpoint::save(out, &lm, tokenizer, &optimizer, &state, config)?;
            }
            saved = Some((state.step, checkpoint::path_of(out, state.step)));
            clock.set_saving(start.elapsed().as_secs_f64());
        }
        if last {
            break;
        }
        let lr = lr_at(&config.schedule, state.n_steps, state.step);
        let report = step(&mut lm, &mut optimizer, &mut workspace, &mut loader, &mut mesh, &options, (state.step, lr))?;
        metrics.log_step(state.step, (state.n_steps, clock.left_s(config)), lr, &report)?;
        state.step += 1;
        clock.add_step(report.elapsed_s);
        end_in_time(&clock, config, &mut state, &metrics);
    }
    metrics.finish()?;
    mesh.leave()?;
    saved.map(|(_, path)| path).with_context(|| format!("{}: no checkpoint was written", out.display()))
}

/// Makes the run folder and writes the configuration into it.
fn prepare_folder(out: &Path, config: &RunConfig) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let run_toml = out.join("run.toml");
    std::fs::write(&run_toml, config.to_toml()?).with_context(|| run_toml.display().to_string())
}

/// What a rank has before it speaks to the others of it.
struct Opened {
    lm: CodeLm,
    optimizer: Optimizer,
    loader: Loader,
    state: RunState,
}

fn open(config: &RunConfig, tokenizer: &Arc<Tokenizer>, start: Start, device: &Device) -> Result<Opened> {
    let lm = CodeLm::init(&config.model, config.seed, device)?;
    let mut optimizer = Optimizer::new(&config.optimizer, lm.parameters())?;
    let mut loader = Loader::open(config, tokenizer)?;
    let state = restore_or_start(start, config, &lm, &mut optimizer, &mut loader)?;
    Ok(Opened { lm, optimizer, loader, state })
}

/// What must be the same on all ranks besides the configuration.
fn starting_point(state: &RunState, lm: &CodeLm, steps_on: StepsOn) -> Result<Table> {
    let hex = |fingerprint: u64| Value::String(format!("{fingerprint:016x}"));
    let on_gpu = steps_on == StepsOn::Gpu || !lm.device().is_cpu();
    let entries = [
        ("step", Value::Integer(state.step as i64)),
        ("texts_fingerprint", hex(state.texts_fingerprint)),
        ("weights_fingerprint", hex(weights::fingerprint(lm)?)),
        ("device", Value::String(if on_gpu { "cuda" } else { "cpu" }.to_owned())),
        ("version", Value::String(env!("CARGO_PKG_VERSION").to_owned())),
    ];
    Ok(entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
}

/// Whether any rank was asked to end. The end of the run, which a clock may have moved, becomes that of the first rank.
fn one_for_all(mesh: &Mesh, state: &mut RunState) -> Result<bool> {
    let said = mesh.gather(&[f64::from(u8::from(interrupt::requested())), state.n_steps as f64])?;
    state.n_steps = said[0][1] as u64;
    let asked = said.iter().any(|said| said[0] > 0.0);
    if asked {
        interrupt::follow();
    }
    Ok(asked)
}

fn workspace(
    config: &RunConfig,
    lm: &CodeLm,
    optimizer: &Optimizer,
    steps_on: StepsOn,
    mesh: &Mesh,
) -> Result<Workspace> {
    let tape = TapeOptions { checkpoint_activations: config.checkpoint_activations };
    match steps_on {
        StepsOn::Tensors => Ok(Workspace::new(lm, tape)),
        StepsOn::Gpu => Workspace::on_gpu(lm, tape, optimizer, mesh.world()),
    }
}

/// Moves the end of the run when `max_hours` would otherwise cut its decay off.
fn end_in_time(clock: &Clock, config: &RunConfig, state: &mut RunState, metrics: &Metrics) {
    if let Some(n_steps) = clock.end_in_time(config, state.n_steps, state.step) {
        metrics.note(&format!("the clock ends this run at step {n_steps} of {}", state.n_steps));
        state.n_steps = n_steps;
    }
}

/// Sets the process's switch, both ways: another run may have set it before.
fn choose_products(compute: Compute) {
    let wanted = compute == Compute::Bf16;
    let can = set_bf16_products(wanted);
    if wanted && !can {
        eprintln!("warning: compute = \"bf16\": this processor has no AVX-512 BF16; float32 it is");
    }
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
        Start::Weights(source) => {
            eprintln!("{}", weights::warm_start(lm, &source, (config.spawn_mask, config.seed))?);
            Ok(fresh)
        }
        Start::Checkpoint(checkpoint) => {
            let Checkpoint { path, weights, moments, mut state, config: saved, .. } = *checkpoint;
            weights::set_all(lm, &weights).with_context(|| path.display().to_string())?;
            optimizer.restore(&moments).with_context(|| path.display().to_string())?;
            loader.seek(state.cursor.clone(), state.texts_fingerprint)?;
            if !same_end(&saved, config) {
                state.n_steps = config.n_steps.max(state.step);
            }
            Ok(state)
        }
    }
}

/// Whether `config` asks for the end that the saved configuration asked for; an end that the clock has moved then stays.
fn same_end(saved: &toml::Table, config: &RunConfig) -> bool {
    let number = |name: &str| {
        let value = saved.get(name)?;
        value.as_float().or_else(|| value.as_integer().map(|value| value as f64))
    };
    number("n_steps") == Some(config.n_steps as f64) && number("max_hours") == Some(config.max_hours)
}

fn step_options(config: &RunConfig, device: &Device) -> StepOptions {
    StepOptions {
        micro_batch_sequences: config.micro_batch_sequences(),
        clip_norm: config.optimizer.clip_norm,
        language_indices: config.data.languages.iter().map(|name| config.model.language_index(Some(name))).collect(),
        document_mask: config.data.document_mask,
        device: device.clone(),
        seed: config.seed,
    }
}

/// Measures and reports; returns the seconds that it took. Each rank has a number of micro-batches of its own, so experts stay at home.
fn validate(validation: &ValidationSet, lm: &mut CodeLm, mesh: &Mesh, step: u64, metrics: &mut Metrics) -> Result<f64> {
    let start = Instant::now();
    lm.set_exchange(None);
    let values = validation.measure(lm, mesh)?;
    mesh.connect(lm);
    metrics.note(&format!("step {step}: {}", validation_line(&values)));
    metrics.log_validation(step, &values)?;
    Ok(start.elapsed().as_secs_f64())
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

/// Measures the machine, opens the files of the first rank, and says what the run will be. `gpu` computes the steps, if any does by our
/// own kernels; else the device.
fn open_metrics(
    config: &RunConfig,
    loader: &Loader,
    state: &RunState,
    mesh: &Mesh,
    (device, gpu): (&Device, Option<&str>),
    out: &Path,
) -> Result<Metrics> {
    if !mesh.is_first() {
        return Ok(Metrics::silent());
    }
    let model = &config.model;
    let facts = Facts {
        n_steps: state.n_steps,
        log_every_steps: config.metrics.log_every_steps,
        languages: loader.texts().languages.iter().map(|texts| texts.name.clone()).collect(),
        moe_layers: (0..model.n_layers).filter(|&layer| model.is_moe_layer(layer)).collect(),
        flops_per_token: 3.0 * model.flops_per_token(config.data.sequence_tokens / 2) as f64,
        peak: Peak::of(config, device, gpu)?,
        world: mesh.world(),
    };
    let mfu = match &facts.peak {
        Some(peak) => format!("MFU is a share of {:.0} GFLOP/s a rank ({})", peak.flops_per_s / 1e9, peak.source),
        None => format!("MFU is unknown: what {} can do; set metrics.peak_flops", gpu.unwrap_or("this GPU")),
    };
    let metrics = Metrics::open(out, state.step, facts)?;
    metrics.note(&summary(config, loader, state, mesh));
    metrics.note(&mfu);
    Ok(metrics)
}

fn summary(config: &RunConfig, loader: &Loader, state: &RunState, mesh: &Mesh) -> String {
    let texts = loader.texts();
    let mut lines = vec![format!(
        "{} documents, {:.1} MB in {} languages; {} parameters, {} active; step {} of {}",
        texts.n_documents(),
        texts.n_bytes() as f64 / 1e6,
        texts.languages.iter().filter(|texts| texts.n_bytes() > 0).count(),
        config.model.n_parameters(),
        config.model.n_active_parameters(),
        state.step,
        state.n_steps
    )];
    for (texts, prob) in texts.languages.iter().zip(loader.language_probs()) {
        lines.push(format!(
            "  {:<12} {:>7} files {:>8.2} MB {:>5.2} bytes/token, drawn {:>4.1} %",
            texts.name,
            texts.tokens.n_documents(),
            texts.n_bytes() as f64 / 1e6,
            texts.bytes_per_token(),
            prob * 100.0
        ));
    }
    if mesh.world() > 1 {
        lines.push(format!("{} ranks, {:?}", mesh.world(), config.parallel.mode));
    }
    lines.join("\n")
}

fn validation_line(values: &[(String, f64)]) -> String {
    let macro_values: Vec<String> =
        values.iter().take(2).map(|(name, value)| format!("validation {name} {value:.4}")).collect();
    macro_values.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{parse, preset, resolve, set};

    #[test]
    fn another_n_steps_or_max_hours_asks_for_another_end() {
        let table = |sets: &[&str]| {
            let mut table = parse(preset("smoke").unwrap(), "smoke").unwrap();
            sets.iter().for_each(|assignment| set(&mut table, assignment).unwrap());
            table
        };
        let saved = table(&["n_steps=100", "max_hours=2"]);
        let same = |sets: &[&str]| same_end(&saved, &resolve(&table(sets), "smoke").unwrap());
        assert!(same(&["n_steps=100", "max_hours=2.0"]));
        assert!(!same(&["n_steps=101", "max_hours=2.0"]));
        assert!(!same(&["n_steps=100", "max_hours=3.0"]));
    }
}
