//! `multicoder eval`: a model through one benchmark suite, by language.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use multicoder_model::Bundle;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint;
use crate::device::{self, DeviceKind};
use crate::evaluate::ModelInfo;
use crate::run::StepsOn;
use crate::suites::answer::{Answerer, Answerers, Local, Truth};
use crate::suites::http::Http;
use crate::suites::{SUITES, Suite};

mod packages;
mod questions;
mod unseen;

/// The suite that is measured where none is named, and its line of help.
const PACKAGES: (&str, &str) =
    ("packages", "whole packages of a corpus that training never saw: bits per byte, tokens, lines");
/// The suite that reads text with the experts of other languages, and its line of help.
const UNSEEN: (&str, &str) =
    ("unseen", "languages that the model was never trained on, read with each of its experts, and those that it was");
/// What a model may be called instead of by its path: the one in this repository.
const STARTER: (&str, &str) = ("starter", "lsp/model/starter.gguf");

/// What the right answers are called as a model.
const TRUTH: &str = "truth";

/// Questions that a GPU answers at once.
const CLIENTS: usize = 32;

/// Arguments of `multicoder eval`.
#[derive(clap::Args)]
pub struct Args {
    /// What is measured.
    #[arg(default_value = PACKAGES.0, value_parser = suite_names())]
    suite: String,
    /// A checkpoint folder, a run folder (its newest checkpoint), a .gguf file or, in a clone of the repository, `starter`; for suites of
    /// questions also the address of a llama.cpp- or OpenAI-compatible server (http://127.0.0.1:8080), or `truth`, the right answers.
    #[arg(long, value_name = "PATH|URL")]
    model: Option<PathBuf>,
    /// Whether the model's copy component counts, if it has one.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    copy: Switch,
    /// Where the model runs [default: cuda in a program that was built for it, else cpu].
    #[arg(long, value_enum)]
    device: Option<DeviceKind>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    packages: packages::Args,
    #[command(flatten)]
    questions: questions::Args,
}

/// What every suite asks for.
#[derive(clap::Args)]
struct Common {
    /// Folder of Parquet shards (multicoder corpus build), for the suites that are made of packages.
    #[arg(long, value_name = "DIR")]
    shards: Option<PathBuf>,
    /// Which split of them is measured: whole packages that training never saw.
    #[arg(long, default_value = "test")]
    split: String,
    /// Only these languages [default: all that the suite has].
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    languages: Vec<String>,
    /// Seed of the sample of files, lines and questions.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write everything, settings and checksum included, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as a page with pictures.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Put the results into this CSV file, in place of the model's earlier ones, and say what changed in a suite of questions.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

impl Common {
    fn write_page(&self, page: impl FnOnce() -> String) -> Result<()> {
        let Some(path) = &self.html else { return Ok(()) };
        fs::write(path, page()).with_context(|| path.display().to_string())
    }

    fn write_json(&self, value: &impl Serialize) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let text = serde_json::to_string_pretty(value)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn suite_names() -> Vec<PossibleValue> {
    let rows = SUITES.iter().map(|suite| (suite.name, suite.about));
    [PACKAGES, UNSEEN].into_iter().chain(rows).map(|(name, about)| PossibleValue::new(name).help(about)).collect()
}

/// Who is measured, as `--model` says it.
enum Asked<'a> {
    Truth,
    Server(&'a str),
    Files(&'a Path),
}

impl Asked<'_> {
    fn of(model: &Path) -> Asked<'_> {
        match model.to_str() {
            Some(TRUTH) if !model.exists() => Asked::Truth,
            Some(address) if address.starts_with("http://") || address.starts_with("https://") => {
                Asked::Server(address)
            }
            _ => Asked::Files(model),
        }
    }
}

/// Runs `multicoder eval`.
///
/// # Errors
/// What the user has to know, in one line.
pub fn run(args: Args) -> Result<()> {
    let asked = args.model.as_deref().map(Asked::of);
    match Suite::by_name(&args.suite) {
        None if args.suite == UNSEEN.0 => run_unseen(&args, asked),
        None => run_packages(&args, asked),
        Some(suite) => run_questions(suite, &args, asked.context("--model PATH|URL: expected the model that answers")?),
    }
}

fn run_packages(args: &Args, asked: Option<Asked<'_>>) -> Result<()> {
    args.questions.refuse_any(PACKAGES.0)?;
    let loaded = match asked {
        None => None,
        Some(Asked::Files(path)) => Some(load_by(Bundle::load_to_score, path, (args, &device::open(args.device)?))?),
        Some(_) => bail!("--model: the suite packages needs every token's probability; expected a model of ours"),
    };
    packages::run(&args.packages, &args.common, loaded.as_ref().map(|(info, bundle)| (info, bundle)))
}

fn run_unseen(args: &Args, asked: Option<Asked<'_>>) -> Result<()> {
    args.packages.refuse_any(UNSEEN.0)?;
    args.questions.refuse_any(UNSEEN.0)?;
    let Some(Asked::Files(path)) = asked else {
        bail!("--model: the suite unseen chooses experts; expected a model of ours");
    };
    let (info, bundle) = load_by(Bundle::load, path, (args, &device::open(args.device)?))?;
    let options = unseen::Options {
        bench: &args.questions.bench,
        max_bytes_per_language: args.packages.max_bytes_per_language,
        tag: args.packages.tag == Switch::On,
    };
    unseen::run(&options, &args.common, &info, &bundle)
}

fn run_questions(suite: &Suite, args: &Args, asked: Asked<'_>) -> Result<()> {
    args.packages.refuse_any(suite.name)?;
    let run = |info: &ModelInfo, answerer: &mut dyn Answerer| {
        questions::run(suite, &args.questions, &args.common, info, (Answerers::One(answerer), None))
    };
    match asked {
        Asked::Truth => run(&named(TRUTH, TRUTH), &mut Truth),
        Asked::Server(address) => {
            let mut http = Http::connect(address)?;
            run(&named(&http.model.clone(), address), &mut http)
        }
        Asked::Files(path) => {
            let (device, steps_on) = device::for_steps(args.device)?;
            let (info, bundle) = load_by(Bundle::load, path, (args, &device))?;
            let mut local = None;
            let answerers = match steps_on {
                StepsOn::Gpu => Answerers::Many(Local::on_gpu(&bundle, CLIENTS).context("--device cuda")?),
                StepsOn::Tensors => Answerers::One(local.insert(Local::new(&bundle)?)),
            };
            questions::run(suite, &args.questions, &args.common, &info, (answerers, Some(&bundle)))
        }
    }
}

/// What is known of a model that is not in this process.
fn named(name: &str, path: &str) -> ModelInfo {
    ModelInfo {
        name: name.to_owned(),
        path: path.to_owned(),
        checksum: format!("{name} at {path}"),
        ..ModelInfo::default()
    }
}

type Loader = fn(&Path, &Device) -> multicoder_model::Result<Bundle>;

fn load_by(loader: Loader, path: &Path, (args, device): (&Args, &Device)) -> Result<(ModelInfo, Bundle)> {
    let path = if path == Path::new(STARTER.0) && !path.exists() { starter()? } else { newest_model(path)? };
    let mut bundle = loader(&path, device)?;
    if args.copy == Switch::Off {
        bundle.lm.set_copy(None)?;
    }
    let info = model_info(&path, &bundle)?;
    Ok((info, bundle))
}

/// The model of the repository around the working folder.
fn starter() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    let found = here.ancestors().map(|dir| dir.join(STARTER.1)).find(|path| path.exists());
    found.with_context(|| format!("--model starter: no {} in {} or above it", STARTER.1, here.display()))
}

/// `path` itself, or the newest intact checkpoint when it is the folder of a run; damaged ones are named on standard error.
///
/// # Errors
/// A run folder that cannot be listed, or that holds checkpoints of which none is intact.
pub(super) fn newest_model(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() || path.join("config.json").exists() {
        return Ok(path.to_owned());
    }
    let newest = checkpoint::newest_intact(path, &mut |message| eprintln!("{message}"))?;
    Ok(newest.unwrap_or_else(|| path.to_owned()))
}

fn model_info(path: &Path, bundle: &Bundle) -> Result<ModelInfo> {
    let mut checksum = bundle.info.checksum.clone();
    if checksum.is_empty() {
        checksum = weights_checksum(path)?;
    }
    Ok(ModelInfo {
        name: run_name(path).unwrap_or_else(|| bundle.info.name.clone()),
        path: path.display().to_string(),
        checksum,
        n_parameters: bundle.info.n_parameters,
        n_active_parameters: bundle.info.n_active_parameters,
        context_tokens: bundle.lm.config().context_tokens,
        quantization: bundle.info.quantization.clone(),
        copy: bundle.lm.config().copy.is_some(),
        languages: bundle.info.languages.clone(),
    })
}

/// Of a checkpoint in a run's folder the name of the run: its own is a number of steps.
fn run_name(path: &Path) -> Option<String> {
    let checkpoints = path.parent().filter(|parent| parent.ends_with(checkpoint::FOLDER))?;
    let run = fs::canonicalize(checkpoints.parent()?).ok()?;
    run.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// Over all files of weights in a folder, by name.
fn weights_checksum(dir: &Path) -> Result<String> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    files.retain(|path| path.file_stem().is_none_or(|name| name != "optimizer"));
    files.sort();
    let mut hash = Xxh3::new();
    for path in &files {
        hash.update(&fs::read(path).with_context(|| path.display().to_string())?);
    }
    Ok(format!("{:016x}", hash.digest()))
}

fn print_model(model: &ModelInfo) {
    if model.n_parameters == 0 {
        println!("{}", model.checksum);
        return;
    }
    println!(
        "{}: {} parameters ({} active), {}, {} tokens of context, copy component {}, checksum {}",
        model.name,
        model.n_parameters,
        model.n_active_parameters,
        model.quantization,
        model.context_tokens,
        if model.copy { "on" } else { "off" },
        model.checksum
    );
}
