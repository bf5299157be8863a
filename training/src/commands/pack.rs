//! `multicoder pack`: a checkpoint into the one GGUF file that is served, with golden pairs; and its model card.
#![allow(non_snake_case)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::ValueEnum;
use multicoder_model::gguf::{self, Contents, Quantization};
use multicoder_model::{Bundle, CodeLm, Golden, PromptBudget, Served, Tokenizer, VocabularyFilter, checkpoint, fim};

use super::eval::newest_model;
use crate::corpus::report::Report;
use crate::evaluate::sample::{self, LanguageSample, SampleOptions};
use crate::evaluate::vocabulary_fit::{self, Fitted};
use crate::evaluate::{Evaluation, copy_fit, progress_bar};
use crate::report::loss_curve::{self, RunCurves};
use crate::report::model_card::{self, CardInputs};

/// Golden pairs in the file; a server may check them each time it starts.
const N_GOLDENS: usize = 4;
/// Held-out text on which the copy component is fitted.
const COPY_BYTES_PER_LANGUAGE: usize = 40_000;
/// Text in which entries of the vocabulary are counted, a language.
const COUNTED_BYTES: usize = 4_000_000;
/// Length of a golden continuation, in tokens.
const GOLDEN_TOKENS: usize = 4;
/// Text of the golden inputs and of the comparison before and after quantization.
const PROMPTS: [&str; 4] = [
    "    for (int i = 0; i < n; i++) {\n        sum += values[i];\n    }\n    return ",
    "def read_lines(path):\n    with open(path) as f:\n        return [line.strip() for line in ",
    "// Returns the number of elements.\nfn len(&self) -> usize {\n    self.items.",
    "local function add(a, b)\n  return a + b\nend\n\nlocal result = ",
];

/// Arguments of `multicoder pack`.
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint folder, or a run folder (its newest checkpoint). Without it, the card of the file that exists is written.
    #[arg(long, value_name = "DIR", required_unless_present = "card")]
    checkpoint: Option<PathBuf>,
    /// The GGUF file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Name of the model [default: the file's name without .gguf].
    #[arg(long)]
    name: Option<String>,
    /// How weights are stored.
    #[arg(long, value_enum, default_value_t = Format::Q8_0)]
    quantize: Format,
    /// Keep the experts of these languages alone: a smaller file that answers the same in them.
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', requires = "checkpoint")]
    languages: Vec<String>,
    /// Fit the copy component, which mixes in what the text itself says, on the valid split of these shards.
    #[arg(long, value_name = "DIR", requires = "checkpoint")]
    fit_copy: Option<PathBuf>,
    /// Have each language compute no more of the vocabulary than it uses, counted in the train split of these shards; what the model says
    /// stays the same at 99.9 % of the tokens of the valid split. Serving alone is filtered.
    #[arg(long, value_name = "DIR", requires = "checkpoint")]
    filter_vocabulary: Option<PathBuf>,
    /// Write a model card of the file, and the loss curve beside it (.svg).
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,
    /// metrics.jsonl of the run, for the card.
    #[arg(long, value_name = "FILE", requires = "card")]
    metrics: Option<PathBuf>,
    /// JSON of multicoder eval, for the card.
    #[arg(long, value_name = "FILE", requires = "card")]
    eval: Option<PathBuf>,
    /// report.json of multicoder corpus build, for the card.
    #[arg(long, value_name = "FILE", requires = "card")]
    corpus_report: Option<PathBuf>,
    /// A text that the card quotes at its beginning, after the title: intended use, how the size was chosen.
    #[arg(long, value_name = "FILE", requires = "card")]
    notes: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    #[value(name = "q8_0")]
    Q8_0,
    /// Four bits for the layers, eight for embeddings, tables and the head.
    #[value(name = "q4_0")]
    Q4_0,
    /// As q4_0, in superblocks where rows are a multiple of 256 long.
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "f32")]
    F32,
}

/// Runs `multicoder pack`.
///
/// # Errors
/// What the user has to know, in one line.
pub fn run(args: Args) -> Result<()> {
    if let Some(dir) = &args.checkpoint {
        pack(&newest_model(dir)?, &args)?;
    }
    if let Some(card) = &args.card {
        write_card(card, &args)?;
    }
    Ok(())
}

fn pack(dir: &Path, args: &Args) -> Result<()> {
    let mut lm = checkpoint::load_lm(dir, true, &Device::Cpu)?;
    let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json"))?;
    if !lm.config().is_plain() {
        lm = lm.materialized()?;
    }
    if !args.languages.is_empty() {
        lm = lm.extract(&args.languages).context("--languages")?;
    }
    if let Some(shards) = &args.fit_copy {
        fit_copy(&mut lm, &tokenizer, shards)?;
    }
    let stem = args.out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = args.name.clone().unwrap_or(stem);
    let quantization = match args.quantize {
        Format::Q8_0 => Quantization::Q8_0,
        Format::Q4_0 => Quantization::Q4_0,
        Format::Q4K => Quantization::Q4K,
        Format::F32 => Quantization::F32,
    };
    let contents = |goldens, vocabulary| {
        let (name, lm, tokenizer) = (&*name, &lm, &tokenizer);
        Contents { name, lm, tokenizer, quantization, goldens, vocabulary }
    };
    // The pairs are what the quantized weights answer, so they are recorded from the file's own content.
    let draft = gguf::to_bytes(&contents(&[], None))?;
    let quantized = Bundle::from_gguf_bytes(&draft, &args.out.display().to_string(), &Device::Cpu)?;
    let goldens = goldens(&quantized)?;
    let shards = args.filter_vocabulary.as_deref();
    let filter = shards.map(|shards| filter_vocabulary((&lm, &tokenizer), shards, &goldens)).transpose()?;
    if let Some(folder) = args.out.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    gguf::write(&contents(&goldens, filter.as_ref()), &args.out)?;
    let packed = Bundle::load(&args.out, &Device::Cpu)?;
    packed.check_goldens().context("verification after writing")?;
    Served::load(&args.out)?.check_goldens().context("verification of what is served")?;
    let n_bytes = fs::metadata(&args.out).with_context(|| args.out.display().to_string())?.len();
    println!("{}: {n_bytes} bytes, checksum {}, from {}", args.out.display(), packed.info.checksum, dir.display());
    let (n_parameters, n_active) = (packed.info.n_parameters, packed.info.n_active_parameters);
    println!("{name}: {n_parameters} parameters, {n_active} active per token, {}", packed.info.quantization);
    println!("{} golden pairs recorded and verified after reading the file back", goldens.len());
    let error = quantization_error(&lm, &packed.lm, &tokenizer)?;
    println!(
        "quantization, {} positions in {} languages: largest logit difference {:.4}, mean KL divergence {:.6} nats, \
         likeliest token the same in {:.2} %",
        error.n_positions,
        lm.config().languages.len().max(1),
        error.max_logit_difference,
        error.mean_kl,
        error.same_best_percent
    );
    Ok(())
}

fn fit_copy(lm: &mut CodeLm, tokenizer: &Tokenizer, shards: &Path) -> Result<()> {
    let samples = texts(lm, shards, "valid", COPY_BYTES_PER_LANGUAGE)?;
    let bar = progress_bar(samples.iter().map(|sample| sample.texts.len() as u64).sum(), "copy component");
    let copy = copy_fit::fit(lm, tokenizer, &samples, &bar)?;
    bar.finish_and_clear();
    let rounded = |row: &Vec<f32>| row.iter().map(|weight| format!("{weight:.2}")).collect::<Vec<_>>().join(" ");
    println!(
        "copy component: discount {}, weights by tokens matched (rows) and the network's confidence:",
        copy.discount
    );
    copy.weights.iter().for_each(|row| println!("  {}", rounded(row)));
    Ok(lm.set_copy(Some(copy))?)
}

/// Text in each of the model's languages that a split has.
fn texts(lm: &CodeLm, shards: &Path, split: &str, max_bytes_per_language: usize) -> Result<Vec<LanguageSample>> {
    let draw = SampleOptions { languages: &[], max_bytes_per_language, n_lines: 0, seed: 1 };
    let mut samples = sample::draw(shards, split, &draw)?;
    // A small corpus has no text in some of its languages.
    samples.retain(|sample| lm.config().languages.contains(&sample.language));
    ensure!(!samples.is_empty(), "{}/{split}: expected text in a language of the model", shards.display());
    Ok(samples)
}

/// What each language uses of the vocabulary, with what the golden pairs need.
fn filter_vocabulary(
    (lm, tokenizer): (&CodeLm, &Tokenizer),
    shards: &Path,
    goldens: &[Golden],
) -> Result<VocabularyFilter> {
    let training = texts(lm, shards, "train", COUNTED_BYTES)?;
    let held_out = texts(lm, shards, "valid", COPY_BYTES_PER_LANGUAGE)?;
    let bar = progress_bar(held_out.iter().map(|sample| sample.texts.len() as u64).sum(), "vocabulary");
    let (mut filter, fitted) = vocabulary_fit::fit(lm, tokenizer, &training, &held_out, &bar)?;
    bar.finish_and_clear();
    let vocab_size = lm.config().vocab_size;
    for Fitted { language, n_kept, n_tokens, n_other } in &fitted {
        println!("{language}: {n_kept} of {vocab_size} entries, {n_other} of {n_tokens} likeliest tokens are others");
    }
    let is_whole = |language: &&String| !fitted.iter().any(|of| of.language == **language);
    let whole: Vec<&str> = lm.config().languages.iter().filter(is_whole).map(String::as_str).collect();
    if !whole.is_empty() {
        println!("the whole vocabulary: {}", whole.join(", "));
    }
    for Golden { language, next_ids, .. } in goldens {
        language.iter().for_each(|language| filter.add(language, next_ids));
    }
    Ok(filter)
}

fn prompt_ids(tokenizer: &Tokenizer, language: Option<&str>, text: &str) -> Result<Vec<u32>> {
    let budget = PromptBudget { max_tokens: 96, suffix_tokens: 0, snippet_tokens: 0 };
    Ok(fim::prompt(tokenizer, language, &[], text, "", &budget)?.ids)
}

/// Pairs for no language and for languages spread over the model's, so that several experts answer.
fn goldens(bundle: &Bundle) -> Result<Vec<Golden>> {
    let languages = &bundle.lm.config().languages;
    let spread = (1..N_GOLDENS).filter_map(|n| languages.get((n - 1) * languages.len() / (N_GOLDENS - 1)));
    let mut chosen: Vec<Option<&str>> = spread.map(|name| Some(name.as_str())).collect();
    chosen.dedup();
    chosen.insert(0, None);
    let golden = |(language, text): (Option<&str>, &str)| {
        let ids = prompt_ids(&bundle.tokenizer, language, text)?;
        Ok(bundle.golden(language, &ids, GOLDEN_TOKENS)?)
    };
    chosen.into_iter().zip(PROMPTS).map(golden).collect()
}

struct QuantizationError {
    n_positions: usize,
    max_logit_difference: f64,
    mean_kl: f64,
    same_best_percent: f64,
}

/// Compares both models' logits at every position of a prompt in every language.
fn quantization_error(exact: &CodeLm, quantized: &CodeLm, tokenizer: &Tokenizer) -> Result<QuantizationError> {
    let languages = &exact.config().languages;
    let languages: Vec<Option<&str>> =
        if languages.is_empty() { vec![None] } else { languages.iter().map(|name| Some(name.as_str())).collect() };
    let (mut n_positions, mut max_difference, mut kl_sum, mut n_same) = (0, 0f64, 0.0, 0);
    for (language, text) in languages.into_iter().zip(PROMPTS.into_iter().cycle()) {
        let ids = prompt_ids(tokenizer, language, text)?;
        let idx = exact.config().language_index(language);
        let exact_LV = exact.forward_logits(&ids, idx)?.to_vec2::<f32>()?;
        let quantized_LV = quantized.forward_logits(&ids, idx)?.to_vec2::<f32>()?;
        for (exact_V, quantized_V) in exact_LV.iter().zip(&quantized_LV) {
            let differences = exact_V.iter().zip(quantized_V).map(|(a, b)| f64::from((a - b).abs()));
            max_difference = differences.fold(max_difference, f64::max);
            kl_sum += kl_divergence(exact_V, quantized_V);
            n_same += usize::from(best(exact_V) == best(quantized_V));
            n_positions += 1;
        }
    }
    ensure!(max_difference.is_finite(), "the weights give logits that are not finite");
    let n = n_positions as f64;
    Ok(QuantizationError {
        n_positions,
        max_logit_difference: max_difference,
        mean_kl: kl_sum / n,
        same_best_percent: 100.0 * f64::from(u32::try_from(n_same).unwrap_or(u32::MAX)) / n,
    })
}

fn best(logits_V: &[f32]) -> Option<usize> {
    (0..logits_V.len()).max_by(|&a, &b| logits_V[a].total_cmp(&logits_V[b]))
}

fn kl_divergence(p_logits_V: &[f32], q_logits_V: &[f32]) -> f64 {
    let log_sum = |logits_V: &[f32]| {
        let max = logits_V.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(max) + logits_V.iter().map(|&logit| f64::from(logit - max).exp()).sum::<f64>().ln()
    };
    let (p_sum, q_sum) = (log_sum(p_logits_V), log_sum(q_logits_V));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
        p.exp() * (p - q)
    };
    p_logits_V.iter().zip(q_logits_V).map(term).sum()
}

fn write_card(card: &Path, args: &Args) -> Result<()> {
    let bundle = Bundle::load(&args.out, &Device::Cpu)?;
    let curves = args.metrics.as_deref().map(RunCurves::read).transpose()?;
    let picture = card.with_extension("svg");
    if let Some(curves) = &curves {
        fs::write(&picture, loss_curve::svg(curves)).with_context(|| picture.display().to_string())?;
    }
    let inputs = CardInputs {
        info: &bundle.info,
        config: bundle.lm.config(),
        file_name: file_name(&args.out),
        file_bytes: fs::metadata(&args.out).with_context(|| args.out.display().to_string())?.len(),
        notes: args.notes.as_deref().map(read).transpose()?,
        picture: curves.is_some().then(|| file_name(&picture)),
        curves,
        evaluation: args.eval.as_deref().map(read_json::<Evaluation>).transpose()?,
        corpus: args.corpus_report.as_deref().map(read_json::<Report>).transpose()?,
    };
    fs::write(card, model_card::render(&inputs)).with_context(|| card.display().to_string())?;
    println!("model card: {}", card.display());
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read(path)?).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use multicoder_model::ModelConfig;
    use multicoder_model::tokenizer::TokenizerOptions;

    fn checkpoint(dir: &Path) {
        let languages = vec!["lua".to_owned(), "python".to_owned()];
        let options = TokenizerOptions {
            vocab_size: 320,
            languages: languages.clone(),
            min_frequency: 2,
            ..TokenizerOptions::default()
        };
        let tokenizer = Tokenizer::train(std::iter::repeat_n(PROMPTS[1], 8), &options).unwrap();
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": tokenizer.vocab_size(), "d_model": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1,
            "d_head": 32, "d_ff": 96, "context_tokens": 128, "languages": languages,
        }))
        .unwrap();
        let lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
        checkpoint::save_folder(&lm, &tokenizer, dir).unwrap();
    }

    #[test]
    fn a_checkpoint_becomes_one_file_with_verified_goldens_and_a_card() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("step");
        fs::create_dir(&folder).unwrap();
        checkpoint(&folder);
        let card = dir.path().join("toy.md");
        let args = Args {
            checkpoint: Some(folder),
            out: dir.path().join("toy.gguf"),
            name: None,
            quantize: Format::Q8_0,
            languages: Vec::new(),
            fit_copy: None,
            filter_vocabulary: None,
            card: Some(card.clone()),
            metrics: None,
            eval: None,
            corpus_report: None,
            notes: None,
        };
        let out = args.out.clone();
        run(args).unwrap();
        let bundle = Bundle::load(&out, &Device::Cpu).unwrap();
        assert_eq!((bundle.info.name.as_str(), bundle.info.goldens.len()), ("toy", 3));
        assert!(fs::read_to_string(card).unwrap().contains(&bundle.info.checksum));
    }

    #[test]
    fn kl_divergence_is_zero_for_equal_and_known_for_two_coins() {
        assert!(kl_divergence(&[1.0, 2.0], &[3.0, 4.0]).abs() < 1e-6);
        let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((kl_divergence(&[0.0, 0.0], &[0.0, 3f32.ln()]) - expected).abs() < 1e-6);
    }
}
