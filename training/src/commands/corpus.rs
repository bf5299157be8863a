//! `multicoder corpus fetch|build|dedup|report`: from a manifest of packages to Parquet shards.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Subcommand;

use crate::corpus::archive::is_archive;
use crate::corpus::build::{BuildOptions, build};
use crate::corpus::dataset::Columns;
use crate::corpus::decontaminate::Benchmarks;
use crate::corpus::fetch::{self, FetchOptions, FetchReport};
use crate::corpus::input::Inputs;
use crate::corpus::judge::Rules;
use crate::corpus::licence::Allowed;
use crate::corpus::manifest::{Manifest, PackageSplit};
use crate::corpus::report::Report;
use crate::corpus::stages::Stages;
use crate::report::corpus_page;

/// Packages in flight at once.
const DEFAULT_JOBS: usize = 4;

mod dedup;

/// Arguments of `multicoder corpus`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Download the packages of a manifest through cargo, npm, pip and apt; resumable, with a lock.
    Fetch(FetchArgs),
    /// Filter, mask, de-duplicate, split and cap packages and folders into Parquet shards.
    Build(Box<BuildArgs>),
    /// Remove exact and near-duplicates from finished shards, across splits and across builds.
    Dedup(dedup::DedupArgs),
    /// Print the report of a build again.
    Report(ReportArgs),
}

#[derive(clap::Args)]
struct FetchArgs {
    /// The manifest (training/corpora/*.toml).
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// Folder for the packages.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Versions to fetch, before those of DIR/corpus.lock [default: the manifest's name with .lock, if there is one].
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Packages in flight at once.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_JOBS)]
    jobs: usize,
    /// Fail when any package failed.
    #[arg(long)]
    strict: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct BuildArgs {
    /// The manifest whose packages were fetched.
    #[arg(long, value_name = "FILE", requires = "input")]
    manifest: Option<PathBuf>,
    /// Folder into which they were fetched.
    #[arg(long = "in", id = "input", value_name = "DIR", requires = "manifest")]
    input: Option<PathBuf>,
    /// Folder for the shards (train/, valid/, test/) and report.json.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One's own code in a plain folder or an archive (.zip, .tar, .tar.gz, ..); NAME=PATH@train (or valid, test) puts all of it into one split [default: divided by module].
    #[arg(long = "folder", value_name = "NAME=PATH")]
    folders: Vec<String>,
    /// A git checkout, tracked files only; PATH or NAME=PATH, with @split as above.
    #[arg(long = "git", value_name = "PATH")]
    checkouts: Vec<String>,
    /// Source files that lie in Parquet or JSON lines (.jsonl, .jsonl.gz), a row each: a file or a folder of them; with @split as
    /// above, else divided by the owners of repositories.
    #[arg(long = "dataset", value_name = "NAME=PATH")]
    datasets: Vec<String>,
    /// Columns of data sets, where their names are not the usual ones: text, path, package, language, licence.
    #[arg(long, value_delimiter = ',', value_name = "FIELD=COLUMN,..", requires = "datasets")]
    columns: Vec<String>,
    /// Languages taken from one's own code [default: those of the manifest; without one, all that have a grammar].
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    languages: Vec<String>,
    /// Benchmarks (.jsonl, .jsonl.gz, .u64le), a file or a folder of them, whose passages must not be in the corpus.
    #[arg(long, value_name = "PATH")]
    decontaminate: Option<PathBuf>,
    /// Licences (SPDX) that files may be under besides the permissive ones.
    #[arg(long, value_delimiter = ',', value_name = "SPDX,..")]
    allow_licences: Vec<String>,
    /// Most test text of a language, MB.
    #[arg(long, value_name = "MB", default_value_t = 2.0, value_parser = megabytes)]
    test_mb: f64,
    /// Most validation text of a language, MB.
    #[arg(long, value_name = "MB", default_value_t = 1.0, value_parser = megabytes)]
    valid_mb: f64,
    /// Most training text of a language that no manifest caps, MB; one input gives half as much again at most.
    #[arg(long, value_name = "MB", default_value_t = 1000.0, value_parser = megabytes)]
    train_mb: f64,
    /// Folder for what is kept between builds [default: OUT/stage].
    #[arg(long, value_name = "DIR")]
    stage: Option<PathBuf>,
    /// Fetch the packages first that are not there yet (as `corpus fetch --manifest FILE --out DIR` does).
    #[arg(long, requires = "manifest")]
    fetch: bool,
    /// Print report and stages as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct ReportArgs {
    /// Folder of the shards.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `multicoder corpus`.
///
/// # Errors
/// What the user has to know, in one line.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Fetch(args) => run_fetch(args),
        Action::Build(args) => run_build(*args),
        Action::Dedup(args) => dedup::run(args),
        Action::Report(args) => run_report(args),
    }
}

fn run_fetch(args: FetchArgs) -> anyhow::Result<()> {
    let manifest = Manifest::read(&args.manifest)?;
    let report = fetch(&manifest, &args.manifest, args.out, args.lock, args.jobs)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    if args.strict && !report.failed.is_empty() {
        bail!("{} packages failed and --strict was given", report.failed.len());
    }
    Ok(())
}

fn fetch(
    manifest: &Manifest,
    path: &Path,
    out: PathBuf,
    lock: Option<PathBuf>,
    n_jobs: usize,
) -> anyhow::Result<FetchReport> {
    let beside = path.with_extension("lock");
    let lock = lock.or_else(|| beside.exists().then_some(beside));
    let context = format!("corpus fetch into {}", out.display());
    fetch::fetch(manifest, &FetchOptions { out, lock, n_jobs }).context(context)
}

fn run_build(args: BuildArgs) -> anyhow::Result<()> {
    let manifest = args.manifest.as_deref().map(Manifest::read).transpose()?;
    if let (true, Some(manifest), Some(path), Some(dir)) = (args.fetch, &manifest, &args.manifest, &args.input) {
        eprint!("{}", fetch(manifest, path, dir.clone(), None, DEFAULT_JOBS)?.table());
    }
    let rules = Rules {
        allowed: Allowed::with(&args.allow_licences)?,
        benchmarks: args.decontaminate.as_deref().map(Benchmarks::read).transpose()?.unwrap_or_default(),
    };
    let inputs = inputs(&args, manifest.as_ref(), &rules.allowed)?;
    let bytes = |mb: f64| (mb * 1e6) as u64;
    let options = BuildOptions {
        stage: args.stage.unwrap_or_else(|| args.out.join("stage")),
        out: args.out,
        test_bytes: bytes(args.test_mb),
        valid_bytes: bytes(args.valid_mb),
        default_train_bytes: bytes(args.train_mb),
        rules,
    };
    let (report, stages) = build(&inputs, manifest.as_ref(), &options).context("corpus build")?;
    corpus_page::write(&options.out, &report, Some(&stages))?;
    print_report(&report, Some(&stages), args.json)?;
    for split in report.empty_splits() {
        let name = split.name();
        eprintln!(
            "warning: no text for {name}: what is divided goes by whole folders or owners; give an input {name} as NAME=PATH@{name}"
        );
    }
    if !args.json {
        println!("shards, report.html and report.json are in {}", options.out.display());
    }
    Ok(())
}

fn megabytes(text: &str) -> Result<f64, String> {
    let megabytes = text.parse().ok().filter(|mb: &f64| mb.is_finite() && *mb >= 0.0);
    megabytes.ok_or_else(|| "expected a number of megabytes, 0 or more".to_owned())
}

/// Everything that the arguments name.
fn inputs(args: &BuildArgs, manifest: Option<&Manifest>, allowed: &Allowed) -> anyhow::Result<Inputs> {
    let mut inputs = match (manifest, &args.input) {
        (Some(manifest), Some(dir)) => Inputs::of_manifest(manifest, dir, allowed)?,
        _ => Inputs::default(),
    };
    let mut languages = args.languages.clone();
    if let (true, Some(manifest)) = (languages.is_empty(), manifest) {
        languages.extend(manifest.language.keys().cloned());
    }
    for argument in &args.folders {
        let own = OwnCode::parse(argument)?;
        ensure!(own.path.is_dir() || is_archive(&own.path), "{argument:?}: expected NAME=PATH of a folder or archive");
        inputs.add_own(&own.name, &own.path, false, own.split, &languages)?;
    }
    for argument in &args.checkouts {
        let own = OwnCode::parse(argument)?;
        ensure!(own.path.is_dir(), "{argument:?}: expected NAME=PATH of a folder");
        inputs.add_own(&own.name, &own.path, true, own.split, &languages)?;
    }
    let columns = Columns::parse(&args.columns)?;
    for argument in &args.datasets {
        let own = OwnCode::parse(argument)?;
        inputs.add_dataset(&own.name, &own.path, &columns, own.split, &languages)?;
    }
    if inputs.usable.is_empty() {
        bail!(
            "nothing to build from: give --manifest FILE --in DIR (after `corpus fetch`, or with --fetch), --folder, --git or --dataset"
        );
    }
    Ok(inputs)
}

fn print_report(report: &Report, stages: Option<&Stages>, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "report": report, "stages": stages }))?);
        return Ok(());
    }
    print!("{}", report.table());
    if let Some(stages) = stages {
        print!("\n{}", stages.table());
    }
    Ok(())
}

/// One's own code as an argument names it: `[NAME=]PATH[@split]`.
#[derive(Debug, PartialEq)]
struct OwnCode {
    name: String,
    path: PathBuf,
    split: PackageSplit,
}

impl OwnCode {
    fn parse(argument: &str) -> anyhow::Result<Self> {
        let (rest, split) = match argument.rsplit_once('@') {
            Some((rest, "train")) => (rest, PackageSplit::Train),
            Some((rest, "valid")) => (rest, PackageSplit::Valid),
            Some((rest, "test")) => (rest, PackageSplit::Test),
            _ => (argument, PackageSplit::Modules),
        };
        let (name, path) = match rest.split_once('=') {
            Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
            None => {
                let path = PathBuf::from(rest);
                let full = path.canonicalize().with_context(|| format!("{rest}: no such folder"))?;
                (full.file_name().unwrap_or_default().to_string_lossy().into_owned(), path)
            }
        };
        if name.is_empty() || !path.exists() {
            bail!(
                "{argument:?}: expected NAME=PATH of something that is there, with @train, @valid or @test after it if wanted"
            );
        }
        Ok(Self { name, path, split })
    }
}

fn run_report(args: ReportArgs) -> anyhow::Result<()> {
    print_report(&Report::read(&args.dir)?, Stages::read(&args.dir)?.as_ref(), args.json)
}
