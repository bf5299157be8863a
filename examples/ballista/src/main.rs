//! The three programs of near-duplicate removal on a Ballista cluster: scheduler, executor, and the one that asks.
//!
//! All three have our functions, because plans travel with the names of functions and without their code.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use ballista::extension::SessionConfigExt;
use ballista::prelude::SessionContextExt;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::start_server;
use clap::Parser;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use multicoder_training::corpus::{duplicates, fusion};

/// Near-duplicate removal on a cluster. Folders are shared: every machine has them under the same path.
#[derive(Parser)]
enum Command {
    /// Divides plans among executors; one in a cluster.
    Scheduler(SchedulerArgs),
    /// Does the work; one on each machine.
    Executor(ExecutorArgs),
    /// Finds duplicates by the cluster, then writes the shards without them.
    Dedup(DedupArgs),
}

#[derive(clap::Args)]
struct SchedulerArgs {
    /// Address to listen at.
    #[arg(long, default_value = "0.0.0.0")]
    bind: String,
    /// Port to listen at.
    #[arg(long, default_value_t = 50050)]
    port: u16,
}

#[derive(clap::Args)]
struct ExecutorArgs {
    /// Host of the scheduler.
    #[arg(long)]
    scheduler: String,
    /// Port of the scheduler.
    #[arg(long, default_value_t = 50050)]
    scheduler_port: u16,
    /// Name or address under which the other machines reach this one.
    #[arg(long)]
    host: String,
    /// Port at which it serves what the next stage reads; the port after it takes orders.
    #[arg(long, default_value_t = 50051)]
    port: u16,
    /// Tasks at once [default: one a core].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    tasks: usize,
    /// Most memory of all tasks together, MB; what does not fit goes to DIR.
    #[arg(long)]
    memory_mb: Option<u64>,
    /// Folder of this machine for what passes between stages.
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
}

#[derive(clap::Args)]
struct DedupArgs {
    /// The scheduler: df://HOST:50050.
    #[arg(long)]
    scheduler: String,
    /// Shared folder of shards; repeat it for a corpus that was built in parts.
    #[arg(long = "in", id = "input", value_name = "DIR", required = true)]
    inputs: Vec<PathBuf>,
    /// Folder for the shards without duplicates.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Shared folder for the table between the plans, empty.
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
    /// Parts into which a stage is divided: some for each core of the cluster.
    #[arg(long, default_value_t = 16)]
    partitions: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Scheduler(args) => schedule(args).await,
        Command::Executor(args) => execute(args).await,
        Command::Dedup(args) => dedup(args).await,
    }
}

async fn schedule(args: SchedulerArgs) -> anyhow::Result<()> {
    let config = SchedulerConfig {
        bind_host: args.bind.clone(),
        bind_port: args.port,
        override_session_builder: Some(Arc::new(|config| Ok(state(config)))),
        ..SchedulerConfig::default()
    };
    let cluster = BallistaCluster::new_from_config(&config).await?;
    let address = format!("{}:{}", args.bind, args.port);
    let address = address.parse().with_context(|| format!("--bind {address}: expected an address"))?;
    Ok(start_server(cluster, address, Arc::new(config)).await?)
}

async fn execute(args: ExecutorArgs) -> anyhow::Result<()> {
    let functions = BallistaFunctionRegistry::from(&state(SessionConfig::new_with_ballista()));
    let config = ExecutorProcessConfig {
        bind_host: "0.0.0.0".to_owned(),
        external_host: Some(args.host),
        port: args.port,
        grpc_port: args.port + 1,
        scheduler_host: args.scheduler,
        scheduler_port: args.scheduler_port,
        scheduler_connect_timeout_seconds: 60,
        concurrent_tasks: args.tasks,
        memory_pool_size: args.memory_mb.map(|mb| mb * 1_000_000),
        work_dir: Some(text(&args.work)?),
        override_function_registry: Some(Arc::new(functions)),
        ..ExecutorProcessConfig::default()
    };
    Ok(start_executor_process(Arc::new(config)).await?)
}

async fn dedup(args: DedupArgs) -> anyhow::Result<()> {
    let config = SessionConfig::new_with_ballista().with_target_partitions(args.partitions);
    let context = SessionContext::remote_with_state(&args.scheduler, state(config)).await?;
    let paths = duplicates::shards_of(&args.inputs)?.into_iter().flat_map(|(_, paths)| paths);
    let paths: Vec<String> = paths.map(|path| text(&path)).collect::<anyhow::Result<_>>()?;
    let found = fusion::find(&context, paths, &text(&args.work)?).await?;
    let counts = duplicates::write(&args.inputs, &args.out, &found)?;
    println!("{}", serde_json::to_string_pretty(&counts)?);
    Ok(())
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().with_context(|| format!("{}: expected a path in UTF-8", path.display()))?.to_owned())
}

/// What all three know: Ballista's functions, and ours.
fn state(config: SessionConfig) -> SessionState {
    let mut functions = ballista_core::extension::ballista_scalar_functions();
    functions.extend(fusion::functions().into_iter().map(Arc::new));
    SessionStateBuilder::new().with_config(config).with_default_features().with_scalar_functions(functions).build()
}
