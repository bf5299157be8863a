//! `multicoder tokenizer train|compare`: a byte-level BPE from a sample in which rare languages weigh more than their share, and
//! several beside each other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use multicoder_model::Tokenizer;
use multicoder_model::tokenizer::{Merges, TokenizerOptions};

use crate::data::density::{densities, take};
use crate::data::packer::balanced_weight;
use crate::data::shard;

mod compare;

/// Text of a language that the report of a training measures, in bytes.
const REPORT_BYTES: usize = 250_000;

/// Arguments of `multicoder tokenizer`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Learns a tokenizer from the training split of a corpus.
    Train(TrainArgs),
    /// Prints the bytes of a token in every language, for several tokenizers on the same text.
    Compare(compare::CompareArgs),
}

/// Arguments of `multicoder tokenizer train`.
#[derive(clap::Args, Debug)]
pub struct TrainArgs {
    /// Corpus with train/ shards.
    #[arg(long, value_name = "DIR")]
    pub shards: PathBuf,
    /// Entries, special tokens included.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub vocab_size: usize,
    /// Where tokenizer.json goes.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Bytes of text to learn from.
    #[arg(long, value_name = "N", default_value_t = 24_000_000)]
    pub sample_bytes: usize,
    /// Languages are sampled ~ bytes^(1/T).
    #[arg(long, value_name = "T", default_value_t = 2.0)]
    pub language_temperature: f64,
    /// Pairs seen less often are not merged.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub min_frequency: u64,
    /// Merges cross single spaces, and a phrase may be a token; otherwise a token is at most a word with the space before it.
    #[arg(long)]
    pub across_spaces: bool,
    /// Blanks are merged as any text; otherwise every run of 2 to 32 spaces and of 1 to 8 tabs is one token.
    #[arg(long)]
    pub no_blank_runs: bool,
}

/// Runs the command.
///
/// # Errors
/// Missing or broken shards, a vocabulary smaller than the bytes and special tokens, files that cannot be read or written.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Train(args) => train(args),
        Command::Compare(args) => compare::run(args),
    }
}

fn train(args: TrainArgs) -> Result<()> {
    ensure!(args.language_temperature > 0.0, "--language-temperature {}: expected above 0", args.language_temperature);
    ensure!(args.sample_bytes > 0, "--sample-bytes 0: expected at least 1");
    let start = Instant::now();
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(200));
    progress.set_message("reading shards");
    let texts = read_texts(&args.shards, "train")?;
    let sample = sample(&texts, args.sample_bytes, args.language_temperature);
    let n_bytes: usize = sample.iter().map(|text| text.len()).sum();
    progress.set_message(format!("learning {} tokens from {:.1} MB", args.vocab_size, n_bytes as f64 / 1e6));
    let languages = texts.iter().map(|(name, _)| name.clone()).collect();
    let options = TokenizerOptions {
        vocab_size: args.vocab_size,
        languages,
        min_frequency: args.min_frequency,
        merges: if args.across_spaces { Merges::AcrossSpaces } else { Merges::WithinWords },
        blank_runs: !args.no_blank_runs,
    };
    let tokenizer = Tokenizer::train(sample.iter(), &options)?;
    if let Some(folder) = args.out.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    tokenizer.save(&args.out)?;
    progress.finish_and_clear();
    eprintln!(
        "{}: {} tokens, {} languages, from {:.1} MB in {:.0} s",
        args.out.display(),
        tokenizer.vocab_size(),
        options.languages.len(),
        n_bytes as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    for density in densities(&tokenizer, &texts, REPORT_BYTES)? {
        eprintln!("  {:<12} {:.2} bytes/token", density.language, density.bytes_per_token());
    }
    Ok(())
}

/// Texts of a split by language, languages sorted.
fn read_texts(shards: &Path, split: &str) -> Result<Vec<(String, Vec<String>)>> {
    let mut texts: Vec<(String, Vec<String>)> = Vec::new();
    for document in shard::read_split(shards, split)? {
        let document = document?;
        match texts.binary_search_by(|(name, _)| name.as_str().cmp(&document.language)) {
            Ok(idx) => texts[idx].1.push(document.text),
            Err(idx) => texts.insert(idx, (document.language, vec![document.text])),
        }
    }
    Ok(texts)
}

/// About `sample_bytes` of text: whole documents in a seeded order, each language up to its quota.
fn sample(texts: &[(String, Vec<String>)], sample_bytes: usize, temperature: f64) -> Vec<&str> {
    let available: Vec<usize> = texts.iter().map(|(_, documents)| documents.iter().map(String::len).sum()).collect();
    let quotas = quotas(&available, sample_bytes, temperature);
    texts.iter().zip(quotas).flat_map(|((_, documents), quota)| take(documents, quota)).collect()
}

/// Bytes to take of each language: `~ n^(1/T)`, no more than there are, what one lacks being shared among the others.
fn quotas(available: &[usize], total: usize, temperature: f64) -> Vec<usize> {
    let mut quotas = vec![0; available.len()];
    let mut open: Vec<usize> = (0..available.len()).filter(|&idx| available[idx] > 0).collect();
    let mut left = total;
    while left > 0 && !open.is_empty() {
        let weight = |idx: usize| balanced_weight(available[idx], temperature);
        let sum: f64 = open.iter().map(|&idx| weight(idx)).sum();
        let share = |idx: usize| (left as f64 * weight(idx) / sum) as usize;
        let (full, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|&&idx| share(idx) >= available[idx]);
        if full.is_empty() {
            rest.iter().for_each(|&idx| quotas[idx] = share(idx));
            break;
        }
        for idx in full {
            quotas[idx] = available[idx];
            left = left.saturating_sub(available[idx]);
        }
        open = rest;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_balance_and_share_what_is_missing() {
        let quotas = quotas(&[1_000_000, 10_000, 0, 250_000], 300_000, 2.0);
        assert_eq!(quotas[1], 10_000);
        assert_eq!(quotas[2], 0);
        assert!((quotas[0] as f64 / quotas[3] as f64 - 2.0).abs() < 0.01, "{quotas:?}");
        assert!((299_990..=300_000).contains(&quotas.iter().sum::<usize>()), "{quotas:?}");
    }

    #[test]
    fn a_small_corpus_is_taken_whole() {
        assert_eq!(quotas(&[10, 20], 1000, 2.0), [10, 20]);
    }
}
