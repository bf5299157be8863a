//! The suite `packages`: bits per byte, token accuracy and line completion by language, beside an n-gram model with an in-file cache.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use multicoder_model::{Bundle, Tokenizer};
use serde::{Deserialize, Serialize};

use super::{Common, Switch, print_model};
use crate::evaluate::{self, Candidate, EvalOptions, Evaluation, LanguageRow, ModelInfo};
use crate::report::{packages_page, rows, table};

/// Text scored per language, in bytes.
const BYTES_PER_LANGUAGE: usize = 200_000;

/// What the baseline is called as a model.
const NGRAM: &str = "n-gram";

/// Arguments of this suite, of which `unseen` knows some.
#[derive(clap::Args)]
#[command(next_help_heading = "The suite packages")]
pub(super) struct Args {
    /// The tokenizer.json of the baseline when no model is given.
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    tokenizer: Option<PathBuf>,
    /// Text scored per language, in bytes; a file takes at most a quarter of it [default: 200000; 20000 in the suite unseen].
    #[arg(long, value_name = "N")]
    pub(super) max_bytes_per_language: Option<usize>,
    /// Line completions per language.
    #[arg(long, value_name = "N", default_value_t = 100)]
    lines: usize,
    /// Longest line completion, in tokens.
    #[arg(long, value_name = "N", default_value_t = 48)]
    max_line_tokens: usize,
    /// Of a completion's prompt, tokens of the text after the line.
    #[arg(long, value_name = "N", default_value_t = 96)]
    suffix_tokens: usize,
    /// Whether the model is told the language by its token: off for one that was trained without.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub(super) tag: Switch,
    /// Whether the n-gram baseline is measured too.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    ngram: Switch,
    /// Longest n-gram of the baseline, in tokens.
    #[arg(long, value_name = "N", default_value_t = 6)]
    ngram_order: usize,
    /// Where the baseline keeps its tokens and scores [default: SHARDS/ngram].
    #[arg(long, value_name = "DIR")]
    ngram_cache: Option<PathBuf>,
    /// Bootstrap resamples behind the intervals.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
}

impl Args {
    /// # Errors
    /// An argument that would do nothing in another suite.
    pub(super) fn refuse_any(&self, suite: &str) -> Result<()> {
        let given = [("--tokenizer", self.tokenizer.is_some()), ("--ngram-cache", self.ngram_cache.is_some())];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => anyhow::bail!("{name}: {suite} has no n-gram baseline; expected the suite packages"),
            None => Ok(()),
        }
    }
}

/// Measures `model`, or without one the n-gram baseline alone.
///
/// # Errors
/// What the user has to know, in one line.
pub(super) fn run(args: &Args, common: &Common, model: Option<(&ModelInfo, &Bundle)>) -> Result<()> {
    let shards =
        common.shards.as_ref().context("--shards DIR: the suite packages needs a corpus (multicoder corpus build)")?;
    let mut options = options(args, common, shards);
    let moe = model.and_then(|(_, bundle)| bundle.lm.config().moe.as_ref());
    if let Some(moe) = moe.filter(|moe| !moe.is_causal()) {
        eprintln!("router {} looks at later tokens: its model writes no lines", moe.router.name());
        options.n_lines = 0;
    }
    let evaluation = match (model, &args.tokenizer) {
        (Some((info, bundle)), _) => {
            let candidate = Candidate { lm: &bundle.lm, info };
            evaluate::evaluate(Some(candidate), &bundle.tokenizer, &options)?
        }
        (None, Some(path)) => evaluate::evaluate(None, &Tokenizer::from_file(path)?, &options)?,
        (None, None) => anyhow::bail!("--model PATH or --tokenizer FILE: expected one of them"),
    };
    print(&evaluation);
    record(common, &evaluation)?;
    common.write_page(|| packages_page::render(&evaluation))?;
    common.write_json(&evaluation)
}

/// A row of the CSV file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    model: String,
    checksum: String,
    language: String,
    n_bytes: usize,
    n_lines: usize,
    bits_per_byte: f64,
    token_accuracy: f64,
    line_exact_match: Option<f64>,
    line_edit_similarity: Option<f64>,
    infill_exact_match: Option<f64>,
    infill_edit_similarity: Option<f64>,
}

/// Puts the figures of the model, or of the baseline where there is none, into the CSV file.
fn record(common: &Common, evaluation: &Evaluation) -> Result<()> {
    let Some(path) = &common.csv else { return Ok(()) };
    let (name, checksum) = match &evaluation.model {
        Some(model) => (model.name.as_str(), model.checksum.as_str()),
        None => (NGRAM, ""),
    };
    let rounded = |value: f64| (1e4 * value).round() / 1e4;
    let of = |row: &LanguageRow| {
        let system = if evaluation.model.is_some() { row.model? } else { row.ngram? };
        Some(Record {
            model: name.to_owned(),
            checksum: checksum.to_owned(),
            language: row.language.clone(),
            n_bytes: row.n_bytes,
            n_lines: row.n_lines,
            bits_per_byte: rounded(system.bits_per_byte),
            token_accuracy: rounded(system.token_accuracy),
            line_exact_match: system.line_exact_match.map(rounded),
            line_edit_similarity: system.line_edit_similarity.map(rounded),
            infill_exact_match: system.line_exact_match_with_suffix.map(rounded),
            infill_edit_similarity: system.line_edit_similarity_with_suffix.map(rounded),
        })
    };
    let rows = evaluation.languages.iter().chain([&evaluation.macro_average]);
    let new: Vec<Record> = rows.filter_map(of).collect();
    rows::replace(path, &new, |old: &Record| old.model == name)
}

fn options(args: &Args, common: &Common, shards: &Path) -> EvalOptions {
    EvalOptions {
        shards: shards.to_owned(),
        split: common.split.clone(),
        languages: common.languages.clone(),
        max_bytes_per_language: args.max_bytes_per_language.unwrap_or(BYTES_PER_LANGUAGE),
        n_lines: args.lines,
        max_line_tokens: args.max_line_tokens,
        suffix_tokens: args.suffix_tokens,
        tag: args.tag == Switch::On,
        seed: common.seed,
        n_resamples: args.resamples,
        ngram: args.ngram == Switch::On,
        ngram_order: args.ngram_order,
        ngram_cache: args.ngram_cache.clone().unwrap_or_else(|| shards.join("ngram")),
    }
}

fn print(evaluation: &Evaluation) {
    evaluation.model.iter().for_each(print_model);
    if let Some(ngram) = &evaluation.ngram {
        let (order, n_tokens, n_ngrams) = (ngram.order, ngram.n_train_tokens, ngram.n_ngrams_all);
        println!("n-gram: order {order}, {n_tokens} training tokens, {n_ngrams} n-grams; {}", ngram.method);
    }
    println!("split {}, seed {}\n", evaluation.options.split, evaluation.options.seed);
    print!("{}", table::plain_with_total(&table::evaluation_cells(evaluation)));
    println!();
    table::evaluation_notes(evaluation).iter().for_each(|note| println!("{note}"));
    println!("{:.0} s", evaluation.elapsed_s);
}
