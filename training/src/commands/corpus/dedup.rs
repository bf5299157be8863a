//! `multicoder corpus dedup`: near-duplicates out of finished shards, in memory or by the plans of an engine; the result is the same.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;

use crate::corpus::duplicates::{self, COUNTS_NAME, Counts, DROPPED_NAME, Duplicates};
use crate::corpus::filter::Drop;
use crate::corpus::stage::Count;

/// Arguments of `multicoder corpus dedup`.
#[derive(clap::Args)]
pub(super) struct DedupArgs {
    /// Folder of shards (SPLIT/LANGUAGE-NNNN.parquet); repeat it for a corpus that was built in parts.
    #[arg(long = "in", id = "input", value_name = "DIR", required = true)]
    inputs: Vec<PathBuf>,
    /// Folder for the shards without duplicates, dedup.json (counts) and dropped.jsonl (what went, and what stayed in its place).
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What looks for duplicates.
    #[arg(long, value_enum, default_value_t = Engine::BuiltIn)]
    engine: Engine,
    /// Print the counts as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Engine {
    /// All signatures in memory, 1.2 kB a document.
    BuiltIn,
    /// Plans of DataFusion, which a Ballista cluster runs too (docs/corpora.md).
    Datafusion,
}

/// Runs the command.
///
/// # Errors
/// What the user has to know, in one line.
pub(super) fn run(args: DedupArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let found = match args.engine {
        Engine::BuiltIn => duplicates::find(&args.inputs)?,
        Engine::Datafusion => by_plans(&args.inputs, &args.out).context("--engine datafusion")?,
    };
    let found_s = start.elapsed().as_secs_f64();
    let counts = duplicates::write(&args.inputs, &args.out, &found)?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&counts)?),
        false => print(&counts),
    }
    let write_s = start.elapsed().as_secs_f64() - found_s;
    let out = args.out.display();
    eprintln!("{out}: shards, {COUNTS_NAME}, {DROPPED_NAME}; found in {found_s:.1} s, written in {write_s:.1} s");
    Ok(())
}

#[cfg(feature = "datafusion")]
fn by_plans(inputs: &[PathBuf], out: &Path) -> anyhow::Result<Duplicates> {
    // The table between the plans lies beside the shards, where there is room for them.
    let work = out.join("work");
    let remove = || match work.exists() {
        true => std::fs::remove_dir_all(&work).with_context(|| work.display().to_string()),
        false => Ok(()),
    };
    remove()?;
    let found = crate::corpus::fusion::find_here(inputs, &work);
    remove()?;
    Ok(found?)
}

#[cfg(not(feature = "datafusion"))]
fn by_plans(_inputs: &[PathBuf], _out: &Path) -> anyhow::Result<Duplicates> {
    anyhow::bail!("not in this build; build with `cargo build --release -p multicoder-training --features datafusion`")
}

fn print(counts: &Counts) {
    let row = |what: &str, count: Count| {
        println!("{what:<16} {:>9} files {:>10.2} MB", count.files, count.bytes as f64 / 1e6)
    };
    row("kept", counts.n_kept());
    row("exact duplicates", counts.n_dropped(Drop::ExactDuplicate));
    row("near duplicates", counts.n_dropped(Drop::NearDuplicate));
}
