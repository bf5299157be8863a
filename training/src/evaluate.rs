//! How good a model is on text it was never trained on, language by language, beside an n-gram model on the same text.
//!
//! Bits per byte and token accuracy over whole files; line completion (CodeXGLUE rules) with and without the text after the
//! line. The same bytes and the same carets for both systems.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use multicoder_model::{CodeLm, Tokenizer};
use serde::{Deserialize, Serialize};

pub mod baseline;
pub mod copy_fit;
pub mod metric;
pub mod neural;
pub mod sample;
pub mod summary;
pub mod token_store;
pub mod unseen;
pub mod vocabulary_fit;

use metric::{LineScore, TextScore};
use sample::SampleOptions;
pub use summary::{Evaluation, LanguageRow, ModelInfo, SystemRow};

/// What is measured, and on what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalOptions {
    /// Folder of Parquet shards.
    pub shards: PathBuf,
    /// `test` or `valid`.
    pub split: String,
    /// Only these languages; empty for all of the split.
    pub languages: Vec<String>,
    /// Text scored per language, in bytes.
    pub max_bytes_per_language: usize,
    /// Line completions per language.
    pub n_lines: usize,
    /// Longest line completion, in tokens.
    pub max_line_tokens: usize,
    /// Of a line completion's prompt, tokens of the text after the line.
    pub suffix_tokens: usize,
    /// Whether the model is told the language by its token.
    #[serde(default = "yes")]
    pub tag: bool,
    /// Of the sample and the bootstrap.
    pub seed: u64,
    /// Resamples behind each interval.
    pub n_resamples: usize,
    /// Whether the baseline is measured too.
    pub ngram: bool,
    /// Longest n-gram, in tokens.
    pub ngram_order: usize,
    /// Folder in which tokens and scores of the baseline are kept.
    pub ngram_cache: PathBuf,
}

fn yes() -> bool {
    true
}

/// What one system scored on one language, unit by unit, in the order of the sample.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SystemOutput {
    /// One a file.
    pub texts: Vec<TextScore>,
    /// One a line, from the text before the caret alone.
    pub lines: Vec<LineScore>,
    /// One a line, with the text after the line; empty for a system that cannot use it.
    pub lines_with_suffix: Vec<LineScore>,
    /// By layer with experts, the share of the tokens that each has; empty for a system without experts.
    #[serde(default)]
    pub expert_load: Vec<Vec<f32>>,
}

/// A model to be measured.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// The decoder.
    pub lm: &'a CodeLm,
    /// What stands in the report.
    pub info: &'a ModelInfo,
}

/// Measures `candidate` (or, with none, the baseline alone) on the sample that `options` draw.
///
/// # Errors
/// Missing shards or languages; errors of the model.
pub fn evaluate(candidate: Option<Candidate<'_>>, tokenizer: &Tokenizer, options: &EvalOptions) -> Result<Evaluation> {
    ensure!(candidate.is_some() || options.ngram, "nothing to measure: neither a model nor the n-gram baseline");
    let started = Instant::now();
    let samples = sample::draw(
        &options.shards,
        &options.split,
        &SampleOptions {
            languages: &options.languages,
            max_bytes_per_language: options.max_bytes_per_language,
            n_lines: options.n_lines,
            seed: options.seed,
        },
    )?;
    let baseline = options.ngram.then(|| baseline::evaluate(tokenizer, &samples, options)).transpose()?;
    let mut outputs = Vec::new();
    if let Some(candidate) = candidate {
        let n_units = samples.iter().map(|sample| sample.texts.len() + 2 * sample.lines.len()).sum::<usize>();
        let bar = progress_bar(n_units as u64, "model");
        for sample in &samples {
            bar.set_message(format!("model: {}", sample.language));
            outputs.push(neural::score(candidate.lm, tokenizer, sample, options, &bar)?);
        }
        bar.finish_and_clear();
    }
    let model = candidate.map(|candidate| (candidate.info.clone(), outputs));
    Ok(summary::summarise(&samples, model, baseline, options, started.elapsed()))
}

/// A bar on standard error that shows at least every second, or nothing where that is no terminal.
pub(crate) fn progress_bar(length: u64, message: &'static str) -> ProgressBar {
    let bar = if length == 0 { ProgressBar::no_length() } else { ProgressBar::new(length) };
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {human_pos}/{human_len} {msg}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::data::shard::{Document, ShardWriter};
    use candle_core::Device;
    use multicoder_model::ModelConfig;
    use multicoder_model::tokenizer::TokenizerOptions;

    fn write_shards(dir: &std::path::Path) -> Vec<String> {
        let mut texts = Vec::new();
        for (language, line) in [("lua", "local x_N = f(N, y)\n"), ("python", "x_N = g(N)  # N\n")] {
            for split in ["train", "valid", "test"] {
                let mut writer = ShardWriter::create(dir, split, language).unwrap();
                for n in 0..12 {
                    let text: String = (0..20).map(|k| line.replace('N', &(n * k % 17).to_string())).collect();
                    texts.push(text.clone());
                    let (path, package) = (n.to_string(), split.to_owned());
                    let (language, split) = (language.to_owned(), split.to_owned());
                    writer.push(Document { text, language, path, package, split, ..Document::default() }).unwrap();
                }
                writer.finish().unwrap();
            }
        }
        texts
    }

    #[test]
    fn both_systems_are_measured_on_the_same_text() {
        let dir = tempfile::tempdir().unwrap();
        let texts = write_shards(dir.path());
        let languages = vec!["lua".to_owned(), "python".to_owned()];
        let tokenizer_options = TokenizerOptions {
            vocab_size: 400,
            languages: languages.clone(),
            min_frequency: 2,
            ..TokenizerOptions::default()
        };
        let tokenizer = Tokenizer::train(texts.iter().map(String::as_str), &tokenizer_options).unwrap();
        let vocab_size = tokenizer.vocab_size();
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": vocab_size, "d_model": 32, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1,
            "d_head": 32, "d_ff": 32, "context_tokens": 64, "languages": languages,
        }))
        .unwrap();
        let lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
        let options = EvalOptions {
            shards: dir.path().to_owned(),
            ngram_cache: dir.path().join("ngram"),
            max_bytes_per_language: 2000,
            n_lines: 4,
            ..options()
        };
        let info = ModelInfo::default();
        let first = evaluate(Some(Candidate { lm: &lm, info: &info }), &tokenizer, &options).unwrap();
        for row in &first.languages {
            let (model, ngram) = (row.model.unwrap(), row.ngram.unwrap());
            assert!((1500..=2000).contains(&row.n_bytes) && row.n_lines == 4, "{row:?}");
            assert!(ngram.bits_per_byte < 0.5 * model.bits_per_byte, "{row:?}");
            assert!(row.difference.unwrap().bits_per_byte.unwrap().low > 0.0, "{row:?}");
            assert!(model.line_exact_match_with_suffix.is_some() && ngram.line_exact_match_with_suffix.is_none());
        }
        assert_eq!(first.n_languages_fewer_bits, Some(0));
        let kept = evaluate(None, &tokenizer, &options).unwrap();
        let bits = |evaluation: &Evaluation| evaluation.macro_average.ngram.unwrap().bits_per_byte;
        assert_eq!(bits(&first), bits(&kept));

        // With all weights zero every token is equally likely: log2(V) bits each.
        for (_, parameter) in lm.parameters() {
            parameter.set(&parameter.zeros_like().unwrap()).unwrap();
        }
        let options = EvalOptions { ngram: false, n_lines: 0, ..options };
        let uniform = evaluate(Some(Candidate { lm: &lm, info: &info }), &tokenizer, &options).unwrap();
        let samples = sample::draw(
            &options.shards,
            "test",
            &SampleOptions { languages: &[], max_bytes_per_language: 2000, n_lines: 0, seed: options.seed },
        );
        for (row, sample) in uniform.languages.iter().zip(samples.unwrap()) {
            let n_tokens: usize = sample.texts.iter().map(|text| tokenizer.encode(text).unwrap().len()).sum();
            let expected = (vocab_size as f64).log2() * n_tokens as f64 / sample.n_bytes() as f64;
            assert!((row.model.unwrap().bits_per_byte - expected).abs() < 1e-4 * expected, "{row:?}");
        }
    }

    pub(crate) fn options() -> EvalOptions {
        EvalOptions {
            shards: PathBuf::from("shards"),
            split: "test".to_owned(),
            languages: Vec::new(),
            max_bytes_per_language: 20_000,
            n_lines: 10,
            max_line_tokens: 24,
            suffix_tokens: 32,
            tag: true,
            seed: 1,
            n_resamples: 200,
            ngram: true,
            ngram_order: 4,
            ngram_cache: PathBuf::from("cache"),
        }
    }
}
