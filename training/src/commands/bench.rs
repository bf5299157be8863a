//! `multicoder bench`: the training step measured, beside the same model in PyTorch; and a layer of experts, beside other ways.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use multicoder_model::ops::set_bf16_products;
use multicoder_model::router::RouterConfig;
use toml::{Table, Value};

use crate::bench::dispatch;
use crate::bench::torch::{self, Torch};
use crate::bench::worker::{self, Job};
use crate::bench::{Comparison, Model, Program, Rounds, Variant, compare};
use crate::config::{self, Compute, RunConfig};
use crate::device::{self, DeviceKind};
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
    /// One layer of experts, forward and backward: grouped products beside other ways, over loads that are more and more unlike.
    Experts(ExpertsArgs),
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
    /// Also measures the same models in another framework, and beside experts by language its experts by token.
    #[arg(long, value_name = "PEER")]
    against: Option<Peer>,
    /// Also measures the dense model with as many active parameters.
    #[arg(long)]
    dense_twin: bool,
    /// Also measures it with every other router in place of its own.
    #[arg(long)]
    routers: bool,
    /// Also measures with activations computed a second time instead of kept.
    #[arg(long)]
    checkpointing: bool,
    /// How PyTorch runs its steps.
    #[arg(long, value_delimiter = ',', default_value = "eager,compile")]
    torch_modes: Vec<TorchMode>,
    /// Numbers that matrix products multiply [default: f32,bf16; on a GPU bf16].
    #[arg(long, value_delimiter = ',')]
    compute: Vec<ComputeArg>,
    /// Rounds: each measures every variant once, one after the other.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Timed steps of a variant in a round, after three that are not timed.
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
    /// The same into a file, after each round; rounds of the same that it holds already are not measured again.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
struct ExpertsArgs {
    #[command(flatten)]
    layer: dispatch::Layer,
    /// Numbers that matrix products multiply.
    #[arg(long, default_value = "bf16")]
    compute: ComputeArg,
    /// Prints everything that was measured as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
enum Peer {
    Torch,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
enum TorchMode {
    Eager,
    Compile,
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
        Command::Experts(args) => experts(&args),
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
    let variants = variants(args, &config, torch.as_ref())?;
    let plan = Rounds { rounds: args.rounds, steps: args.steps, threads, out: args.out.as_deref() };
    let comparison = compare(&variants, &plan, &mut |line| eprintln!("{line}"))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
        return Ok(());
    }
    print(&comparison, &config, threads, args.profile);
    Ok(())
}

fn experts(args: &ExpertsArgs) -> Result<()> {
    let wants_bf16 = args.compute == ComputeArg::Bf16;
    ensure!(
        set_bf16_products(wants_bf16) || !wants_bf16,
        "--compute bf16: expected f32, for this processor gains nothing by bf16"
    );
    let timings = dispatch::measure(&args.layer, &mut |line| eprintln!("{line}"))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&timings)?);
        return Ok(());
    }
    println!("one layer of experts, forward and backward; beside grouped products: how much longer the others take");
    print!("{}", table::plain(&dispatch::cells(&timings)));
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

fn variants(args: &TrainArgs, config: &RunConfig, torch: Option<&Torch>) -> Result<Vec<Variant>> {
    let default = if multicoder_model::device::HAS_CUDA { DeviceKind::Cuda } else { DeviceKind::Cpu };
    let device = args.device.unwrap_or(default);
    let mut models = vec![(Model::Asked, config.clone())];
    models.extend(args.dense_twin.then(|| dense_twin(config)).flatten().map(|twin| (Model::DenseTwin, twin)));
    let by_token = by_token(config).map(|config| (Model::TokenRouter, config));
    let mut variants = Vec::new();
    for compute in computes(args, device)? {
        let mut push = |name: &str, (model, config): &(Model, RunConfig), program: Program| {
            let suffix = match model {
                Model::Asked => "",
                Model::DenseTwin => ", dense twin",
                Model::TokenRouter => ", token router",
                Model::OtherRouter => &format!(", {}", config.model.moe.as_ref().map_or("", |moe| moe.router.name())),
            };
            let (name, config) = (format!("{name}{suffix}"), config.clone());
            variants.push(Variant { name, model: *model, compute, program, config, device });
        };
        for model in &models {
            push("multicoder", model, Program::Multicoder { checkpoint_activations: false });
        }
        for model in args.routers.then(|| other_routers(config)).into_iter().flatten() {
            push("multicoder", &model, Program::Multicoder { checkpoint_activations: false });
        }
        if args.checkpointing {
            push("multicoder, checkpointing", &models[0], Program::Multicoder { checkpoint_activations: true });
        }
        for mode in torch.map(|_| &args.torch_modes).into_iter().flatten() {
            let mode = if *mode == TorchMode::Eager { "eager" } else { "compile" };
            for model in models.iter().chain(&by_token) {
                push(&format!("torch {mode}"), model, Program::Torch { torch: torch.cloned(), mode });
            }
        }
    }
    Ok(variants)
}

/// What to multiply, as asked for; by default what the device can.
fn computes(args: &TrainArgs, kind: DeviceKind) -> Result<Vec<Compute>> {
    let asked = args.compute.iter().map(|arg| if *arg == ComputeArg::Bf16 { Compute::Bf16 } else { Compute::F32 });
    let computes: Vec<Compute> = match kind {
        _ if !args.compute.is_empty() => asked.collect(),
        DeviceKind::Cpu => vec![Compute::F32, Compute::Bf16],
        DeviceKind::Cuda => vec![Compute::Bf16],
    };
    computes.iter().try_for_each(|&compute| device::check_compute(compute, device::steps_on(Some(kind))))?;
    Ok(computes)
}

/// The model of a router by language with a router by token in its place: as many experts of the same widths, one for each token.
fn by_token(config: &RunConfig) -> Option<RunConfig> {
    let mut by_token = config.clone();
    let router = &mut by_token.model.moe.as_mut()?.router;
    match router {
        RouterConfig::Token(_) => None,
        _ => {
            *router = RouterConfig::Token(Default::default());
            Some(by_token)
        }
    }
}

/// The model with each other router of the table that fits it; experts are narrower where a token meets more of them.
fn other_routers(config: &RunConfig) -> impl Iterator<Item = (Model, RunConfig)> {
    let own = config.model.moe.as_ref().map(|moe| moe.router.clone());
    let others = RouterConfig::all()
        .into_iter()
        .filter(move |router| own.as_ref().is_some_and(|own| own.name() != router.name()));
    let with = |router| {
        let mut config = config.clone();
        let moe = config.model.moe.as_mut()?;
        let met = moe.router.n_selected() * moe.d_ff_expert;
        moe.router = router;
        moe.d_ff_expert = met / moe.router.n_selected().max(1);
        config.model.validate().is_ok().then_some((Model::OtherRouter, config))
    };
    others.filter_map(with)
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TrainArgs,
    }

    fn named(arguments: &str) -> Result<Vec<String>> {
        let args = Line::parse_from(std::iter::once("bench").chain(arguments.split_whitespace())).args;
        let torch = Torch::at("python");
        let variants = variants(&args, &resolve(&args)?, args.against.map(|_| &torch))?;
        variants.iter().for_each(|variant| {
            let moe = variant.config.model.moe.as_ref();
            assert_eq!(moe.is_none(), variant.model == Model::DenseTwin || args.preset == "llama", "{}", variant.name);
            let by_token = moe.is_some_and(|moe| matches!(moe.router, RouterConfig::Token(_)));
            let is_other = variant.model == Model::OtherRouter;
            assert_eq!(by_token && !is_other, variant.model == Model::TokenRouter, "{}", variant.name);
        });
        Ok(variants.iter().map(|variant| format!("{} {}", variant.name, variant.compute.name())).collect())
    }

    #[test]
    fn each_model_of_ours_has_its_peer() {
        let named = |arguments| named(arguments).unwrap();
        assert_eq!(named("--device cpu"), ["multicoder f32", "multicoder bf16"]);
        let compared = named("--preset h200 --dense-twin --against torch --torch-modes compile --compute bf16");
        let expected = [
            "multicoder bf16",
            "multicoder, dense twin bf16",
            "torch compile bf16",
            "torch compile, dense twin bf16",
            "torch compile, token router bf16",
        ];
        assert_eq!(compared, expected);
        assert_eq!(named("--against torch --compute f32"), ["multicoder f32", "torch eager f32", "torch compile f32"]);
    }

    #[test]
    fn each_router_is_measured_once() {
        let mut expected: Vec<String> =
            RouterConfig::all().iter().map(|router| format!("multicoder, {} bf16", router.name())).collect();
        expected.retain(|name| name != "multicoder, pl_shared bf16");
        expected.insert(0, "multicoder bf16".to_owned());
        assert_eq!(named("--preset starter --device cpu --compute bf16 --routers").unwrap(), expected);
    }

    /// `pl_gate`'s two experts a token were as wide as the one of others.
    #[test]
    fn routers_are_compared_at_equal_flops() {
        let mut table = config::parse(config::preset("smoke").unwrap(), "smoke").unwrap();
        config::set(&mut table, "model.languages=[\"go\", \"lua\"]").unwrap();
        let own = config::resolve(&table, "smoke").unwrap();
        let flops = |run: &RunConfig| run.model.flops_per_token(run.data.sequence_tokens / 2) as f64;
        let mut n_routers = 0;
        for (_, other) in other_routers(&own) {
            let (ratio, router) = (flops(&other) / flops(&own), other.model.moe.unwrap().router);
            assert!((0.99..1.03).contains(&ratio), "{}: {ratio:.3}", router.name());
            n_routers += 1;
        }
        assert!(n_routers > 10, "{n_routers}");
    }

    #[test]
    fn a_gpu_multiplies_bfloat16() {
        assert_eq!(named("--device cuda").unwrap(), ["multicoder bf16"]);
        let asked = named("--device cuda --compute f32");
        match cfg!(feature = "cuda") {
            true => assert!(asked.unwrap_err().to_string().contains("compute = \"f32\": expected \"bf16\"")),
            false => assert_eq!(asked.unwrap(), ["multicoder f32"]),
        }
    }
}
