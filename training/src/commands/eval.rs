//! `multicoder eval`: bits per byte, token accuracy and line completion by language, beside an n-gram model with an in-file cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use multicoder_model::{Bundle, Tokenizer};
use xxhash_rust::xxh3::xxh3_64;

use crate::checkpoint;
use crate::device::{self, DeviceKind};
use crate::evaluate::{self, Candidate, EvalOptions, Evaluation, ModelInfo};
use crate::report::table;

/// Arguments of `multicoder eval`.
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint folder, a run folder (its newest checkpoint) or a .gguf file; without it only the n-gram baseline is measured.
    #[arg(long, value_name = "PATH", required_unless_present = "tokenizer")]
    model: Option<PathBuf>,
    /// The tokenizer.json of the baseline when no model is given.
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    tokenizer: Option<PathBuf>,
    /// Folder of Parquet shards (multicoder corpus build).
    #[arg(long, value_name = "DIR")]
    shards: PathBuf,
    /// Which split is measured: whole packages that training never saw.
    #[arg(long, default_value = "test")]
    split: String,
    /// Only these languages [default: all of the split].
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    languages: Vec<String>,
    /// Text scored per language, in bytes; a file takes at most a quarter of it.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    max_bytes_per_language: usize,
    /// Line completions per language.
    #[arg(long, value_name = "N", default_value_t = 100)]
    lines: usize,
    /// Longest line completion, in tokens.
    #[arg(long, value_name = "N", default_value_t = 48)]
    max_line_tokens: usize,
    /// Of a completion's prompt, tokens of the text after the line.
    #[arg(long, value_name = "N", default_value_t = 96)]
    suffix_tokens: usize,
    /// Whether the n-gram baseline is measured too.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    ngram: Switch,
    /// Longest n-gram of the baseline, in tokens.
    #[arg(long, value_name = "N", default_value_t = 6)]
    ngram_order: usize,
    /// Where the baseline keeps its tokens and scores [default: SHARDS/ngram].
    #[arg(long, value_name = "DIR")]
    ngram_cache: Option<PathBuf>,
    /// Seed of the sample of files, lines and carets.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Bootstrap resamples behind the intervals.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
    /// Whether the model's copy component counts, if it has one.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    copy: Switch,
    /// Where the model runs [default: cuda in a program that was built for it, else cpu].
    #[arg(long, value_enum)]
    device: Option<DeviceKind>,
    /// Write everything, settings and checksum included, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Runs `multicoder eval`.
///
/// # Errors
/// What the user has to know, in one line.
pub fn run(args: Args) -> Result<()> {
    let options = options(&args);
    let evaluation = match (&args.model, &args.tokenizer) {
        (Some(path), _) => {
            let device = device::open(args.device)?;
            let path = newest_model(path)?;
            let mut bundle = Bundle::load(&path, &device)?;
            if args.copy == Switch::Off {
                bundle.lm.set_copy(None)?;
            }
            let info = model_info(&path, &bundle)?;
            let candidate = Candidate { lm: &bundle.lm, info: &info };
            evaluate::evaluate(Some(candidate), &bundle.tokenizer, &options)?
        }
        (None, Some(path)) => evaluate::evaluate(None, &Tokenizer::from_file(path)?, &options)?,
        (None, None) => anyhow::bail!("--model PATH or --tokenizer FILE: expected one of them"),
    };
    print(&evaluation);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&evaluation)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
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

fn options(args: &Args) -> EvalOptions {
    EvalOptions {
        shards: args.shards.clone(),
        split: args.split.clone(),
        languages: args.languages.clone(),
        max_bytes_per_language: args.max_bytes_per_language,
        n_lines: args.lines,
        max_line_tokens: args.max_line_tokens,
        suffix_tokens: args.suffix_tokens,
        seed: args.seed,
        n_resamples: args.resamples,
        ngram: args.ngram == Switch::On,
        ngram_order: args.ngram_order,
        ngram_cache: args.ngram_cache.clone().unwrap_or_else(|| args.shards.join("ngram")),
    }
}

fn model_info(path: &Path, bundle: &Bundle) -> Result<ModelInfo> {
    let mut checksum = bundle.info.checksum.clone();
    if checksum.is_empty() {
        let weights = path.join("model.safetensors");
        // Weights in several files are told apart by their index.
        let file = if weights.exists() { weights } else { path.join("model.safetensors.index.json") };
        checksum = format!("{:016x}", xxh3_64(&fs::read(&file).with_context(|| file.display().to_string())?));
    }
    Ok(ModelInfo {
        name: bundle.info.name.clone(),
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

fn print(evaluation: &Evaluation) {
    if let Some(model) = &evaluation.model {
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
    if let Some(ngram) = &evaluation.ngram {
        let (order, n_tokens, n_ngrams) = (ngram.order, ngram.n_train_tokens, ngram.n_ngrams_all);
        println!("n-gram: order {order}, {n_tokens} training tokens, {n_ngrams} n-grams; {}", ngram.method);
    }
    println!("split {}, seed {}\n", evaluation.options.split, evaluation.options.seed);
    print!("{}", table::plain(&table::evaluation_cells(evaluation)));
    println!();
    table::evaluation_notes(evaluation).iter().for_each(|note| println!("{note}"));
    println!("{:.0} s", evaluation.elapsed_s);
}
