//! `multicoder bench`: the training step measured, beside the same model in PyTorch.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

use crate::bench::torch::{self, Torch};
use crate::bench::worker::{self, Job};
use crate::bench::{Comparison, Program, Variant, compare};
use crate::config::{self, Compute, RunConfig};
use crate::device::DeviceKind;
use crate::report::table;

/// Arguments of `multicoder bench`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Tokens per second and memory of the training step, in processes of its own, interleaved with its peers.
    Train(TrainArgs),
    /// Measures one variant in this process; `train` starts it.
    #[command(hide = true)]
    Worker {
        /// What to measure, as JSON.
        job: String,
    },
}

#[derive(clap::Args, Debug)]
struct TrainArgs {
    /// The model and the batch: llama, smoke, starter, h200.
    #[arg(long, value_name = "NAME", default_value = "llama", conflicts_with = "config")]
    preset: String,
    /// A run described by a TOML file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Changes one value, such as data.micro_batch_tokens=4096 (repeatable).
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Also measures the same model in another framework.
    #[arg(long, value_name = "PEER")]
    against: Option<Peer>,
    /// Also measures the dense model with as many active parameters.
    #[arg(long)]
    dense_twin: bool,
    /// Also measures with activations computed a second time instead of kept.
    #[arg(long)]
    checkpointing: bool,
    /// Numbers that matrix products multiply.
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16")]
    compute: Vec<ComputeArg>,
    /// Rounds: each measures every variant once, one after the other.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Timed steps of a variant in a round, after two that are not timed.
    #[arg(long, default_value_t = 7)]
    steps: usize,
    /// Threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Where the steps run; a GPU by default in a program that was built for one.
    #[arg(long)]
    device: Option<DeviceKind>,
    /// A Python that has PyTorch; by default one is made, with PyTorch from its package index (some 5 GB).
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Prints where the time of our own steps went.
    #[arg(long)]
    profile: bool,
    /// Prints everything that was measured as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
enum Peer {
    Torch,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
enum ComputeArg {
    F32,
    Bf16,
}

/// Runs the command.
///
/// # Errors
/// A configuration that makes no model; a peer that cannot be installed or started.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Train(args) => train(&args),
        Command::Worker { job } => {
            let job: Job = serde_json::from_str(&job).context("job")?;
            println!("{}", serde_json::to_string(&worker::run(&job)?)?);
            Ok(())
        }
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    ensure!(args.rounds > 0 && args.steps > 0, "--rounds and --steps: expected at least 1");
    let config = resolve(args)?;
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let torch = args.against.map(|Peer::Torch| torch::find(args.python.as_deref())).transpose()?;
    let variants = variants(args, &config, torch.as_ref());
    let comparison = compare(&variants, args.rounds, args.steps, threads, &mut |line| eprintln!("{line}"))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
        return Ok(());
    }
    print(&comparison, &config, threads, args.profile);
    Ok(())
}

fn resolve(args: &TrainArgs) -> Result<RunConfig> {
    let (mut table, origin) = match &args.config {
        Some(path) => (config::read(path)?, path.display().to_string()),
        None => (config::parse(config::preset(&args.preset)?, &args.preset)?, format!("preset {}", args.preset)),
    };
    complete_languages(&mut table);
    args.set.iter().try_for_each(|assignment| config::set(&mut table, assignment))?;
    config::resolve(&table, &origin)
}

/// Without data, a model of experts by language has as many languages as experts.
fn complete_languages(table: &mut Table) {
    let Some(model) = table.get_mut("model").and_then(Value::as_table_mut) else { return };
    let n_experts = model.get("moe").and_then(|moe| moe.get("n_experts")).and_then(Value::as_integer).unwrap_or(0);
    let names = (0..n_experts).map(|idx| Value::String(format!("language{idx}"))).collect();
    model.entry("languages").or_insert(Value::Array(names));
}

fn variants(args: &TrainArgs, config: &RunConfig, torch: Option<&Torch>) -> Vec<Variant> {
    let default = if multicoder_model::device::HAS_CUDA { DeviceKind::Cuda } else { DeviceKind::Cpu };
    let device = args.device.unwrap_or(default);
    let twin = args.dense_twin.then(|| dense_twin(config)).flatten();
    let mut variants = Vec::new();
    for compute in &args.compute {
        let compute = if *compute == ComputeArg::Bf16 { Compute::Bf16 } else { Compute::F32 };
        let ours = |name: &str, config: &RunConfig, checkpoint_activations| Variant {
            name: name.to_owned(),
            compute,
            program: Program::Multicoder { checkpoint_activations },
            config: config.clone(),
            device,
        };
        variants.push(ours("multicoder", config, false));
        if args.checkpointing {
            variants.push(ours("multicoder, checkpointing", config, true));
        }
        variants.extend(twin.as_ref().map(|twin| ours("multicoder, dense twin", twin, false)));
        for mode in torch.map(|_| ["eager", "compile"]).into_iter().flatten() {
            let program = Program::Torch { torch: torch.cloned(), mode };
            variants.push(Variant { name: format!("torch {mode}"), compute, program, config: config.clone(), device });
        }
    }
    variants
}

/// The model without experts whose dense networks are as wide as what a token meets.
fn dense_twin(config: &RunConfig) -> Option<RunConfig> {
    let moe = config.model.moe.as_ref()?;
    let mut twin = config.clone();
    twin.model.d_ff = moe.d_ff_shared + moe.router.n_selected() * moe.d_ff_expert;
    twin.model.moe = None;
    Some(twin)
}

fn print(comparison: &Comparison, config: &RunConfig, threads: usize, profile: bool) {
    println!(
        "{} parameters, {} active; {} sequences of {} tokens a step, {threads} threads; medians of {} interleaved rounds",
        config.model.n_parameters(),
        config.model.n_active_parameters(),
        config.micro_batch_sequences(),
        config.data.sequence_tokens,
        comparison.rounds
    );
    print!("{}", table::plain(&comparison.cells()));
    for note in comparison.notes() {
        println!("{note}");
    }
    if profile {
        comparison.profiles().into_iter().for_each(|line| println!("{line}"));
    }
}
