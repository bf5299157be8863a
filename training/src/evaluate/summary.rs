//! From single files and lines to rows, macro averages and intervals: the report that `--json` writes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::baseline::{BaselineInfo, BaselineOutput};
use super::metric::{Interval, LineScore, TextScore, bootstrap_macro};
use super::sample::LanguageSample;
use super::{EvalOptions, SystemOutput};

/// The whole result of `multicoder eval`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// The model measured; none when the baseline was measured alone.
    pub model: Option<ModelInfo>,
    /// The n-gram baseline; none when it was not asked for.
    pub ngram: Option<BaselineInfo>,
    /// What was measured on what.
    pub options: EvalOptions,
    /// Wall-clock seconds.
    pub elapsed_s: f64,
    /// One row a language, by name.
    pub languages: Vec<LanguageRow>,
    /// Means over languages, each language counting the same.
    pub macro_average: LanguageRow,
    /// Languages in which the model has fewer bits per byte than the baseline; none when only one was measured.
    pub n_languages_fewer_bits: Option<usize>,
}

/// Which weights were measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// File or folder as it was given.
    pub path: String,
    /// Checksum of the weights.
    pub checksum: String,
    /// Parameters in all.
    pub n_parameters: usize,
    /// Parameters that one token meets.
    pub n_active_parameters: usize,
    /// Positions that the model was trained for.
    pub context_tokens: usize,
    /// How the weights are stored.
    pub quantization: String,
    /// Whether a copy component counted.
    #[serde(default)]
    pub copy: bool,
    /// Languages that it was trained on.
    pub languages: Vec<String>,
}

/// Both systems on one language, or their macro averages.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LanguageRow {
    /// Name of the language, or `macro average`.
    pub language: String,
    /// Files scored.
    pub n_files: usize,
    /// Packages that they are from.
    pub n_packages: usize,
    /// UTF-8 bytes scored, the same for both systems.
    pub n_bytes: usize,
    /// Lines completed.
    pub n_lines: usize,
    /// The model's figures.
    pub model: Option<SystemRow>,
    /// The baseline's figures.
    pub ngram: Option<SystemRow>,
    /// Model minus baseline.
    pub difference: Option<Differences>,
    /// By layer with experts of the model, the share of the tokens that each has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expert_load: Vec<Vec<f32>>,
}

/// One system's figures. Absent where there was nothing to measure.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct SystemRow {
    /// Less is better.
    pub bits_per_byte: f64,
    /// Percent of tokens predicted right.
    pub token_accuracy: f64,
    /// Percent, from the text before the caret alone.
    pub line_exact_match: Option<f64>,
    /// 0 to 100, from the text before the caret alone.
    pub line_edit_similarity: Option<f64>,
    /// Percent, with the text after the line too.
    pub line_exact_match_with_suffix: Option<f64>,
    /// 0 to 100, with the text after the line too.
    pub line_edit_similarity_with_suffix: Option<f64>,
}

/// Model minus baseline on the same files and lines, with 95 % bootstrap intervals over files and over lines.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Differences {
    /// Bits per byte.
    pub bits_per_byte: Option<Interval>,
    /// Percentage points, without suffix on both sides.
    pub line_exact_match: Option<Interval>,
    /// Points, without suffix on both sides.
    pub line_edit_similarity: Option<Interval>,
}

/// Rows and averages of what was scored. `model` are its outputs in the order of `samples`.
pub(super) fn summarise(
    samples: &[LanguageSample],
    model: Option<(ModelInfo, Vec<SystemOutput>)>,
    baseline: Option<BaselineOutput>,
    options: &EvalOptions,
    elapsed: Duration,
) -> Evaluation {
    let (model_info, model) = model.unzip();
    let pairs: Vec<Pair<'_>> = samples
        .iter()
        .enumerate()
        .map(|(idx, sample)| Pair {
            model: model.as_ref().and_then(|outputs| outputs.get(idx)),
            ngram: baseline.as_ref().and_then(|baseline| baseline.languages.get(&sample.language)),
        })
        .collect();
    let languages: Vec<LanguageRow> =
        samples.iter().zip(&pairs).map(|(sample, pair)| language_row(sample, pair, options)).collect();
    let mut macro_average = LanguageRow {
        language: "macro average".to_owned(),
        n_files: languages.iter().map(|row| row.n_files).sum(),
        n_packages: languages.iter().map(|row| row.n_packages).sum(),
        n_bytes: languages.iter().map(|row| row.n_bytes).sum(),
        n_lines: languages.iter().map(|row| row.n_lines).sum(),
        model: mean_row(languages.iter().map(|row| row.model)),
        ngram: mean_row(languages.iter().map(|row| row.ngram)),
        difference: None,
        expert_load: Vec::new(),
    };
    macro_average.difference = differences(&pairs, options);
    let n_languages_fewer_bits = (model.is_some() && baseline.is_some()).then(|| {
        let fewer = |row: &&LanguageRow| match (&row.model, &row.ngram) {
            (Some(model), Some(ngram)) => model.bits_per_byte < ngram.bits_per_byte,
            _ => false,
        };
        languages.iter().filter(fewer).count()
    });
    Evaluation {
        model: model_info,
        ngram: baseline.map(|baseline| baseline.info),
        options: options.clone(),
        elapsed_s: elapsed.as_secs_f64(),
        languages,
        macro_average,
        n_languages_fewer_bits,
    }
}

#[derive(Clone, Copy)]
struct Pair<'a> {
    model: Option<&'a SystemOutput>,
    ngram: Option<&'a SystemOutput>,
}

fn language_row(sample: &LanguageSample, pair: &Pair<'_>, options: &EvalOptions) -> LanguageRow {
    LanguageRow {
        language: sample.language.clone(),
        n_files: sample.texts.len(),
        n_packages: sample.n_packages,
        n_bytes: sample.n_bytes(),
        n_lines: sample.lines.len(),
        model: pair.model.map(system_row),
        ngram: pair.ngram.map(system_row),
        difference: differences(&[*pair], options),
        expert_load: pair.model.map_or_else(Vec::new, |model| model.expert_load.clone()),
    }
}

fn system_row(output: &SystemOutput) -> SystemRow {
    let text = output.texts.iter().fold(TextScore::default(), |sum, score| sum.plus(*score));
    SystemRow {
        bits_per_byte: text.bits_per_byte(),
        token_accuracy: 100.0 * text.token_accuracy(),
        line_exact_match: mean(&output.lines, exact_match),
        line_edit_similarity: mean(&output.lines, edit_similarity),
        line_exact_match_with_suffix: mean(&output.lines_with_suffix, exact_match),
        line_edit_similarity_with_suffix: mean(&output.lines_with_suffix, edit_similarity),
    }
}

fn exact_match(score: &LineScore) -> f64 {
    if score.exact_match { 100.0 } else { 0.0 }
}

fn edit_similarity(score: &LineScore) -> f64 {
    score.edit_similarity
}

fn mean(scores: &[LineScore], value: fn(&LineScore) -> f64) -> Option<f64> {
    (!scores.is_empty()).then(|| scores.iter().map(value).sum::<f64>() / scores.len() as f64)
}

fn mean_row(rows: impl Iterator<Item = Option<SystemRow>>) -> Option<SystemRow> {
    let rows: Vec<SystemRow> = rows.flatten().collect();
    let mean = |value: &dyn Fn(&SystemRow) -> Option<f64>| {
        let values: Vec<f64> = rows.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Some(SystemRow {
        bits_per_byte: mean(&|row| Some(row.bits_per_byte))?,
        token_accuracy: mean(&|row| Some(row.token_accuracy))?,
        line_exact_match: mean(&|row| row.line_exact_match),
        line_edit_similarity: mean(&|row| row.line_edit_similarity),
        line_exact_match_with_suffix: mean(&|row| row.line_exact_match_with_suffix),
        line_edit_similarity_with_suffix: mean(&|row| row.line_edit_similarity_with_suffix),
    })
}

/// Paired differences over the languages that both systems were measured on.
fn differences(pairs: &[Pair<'_>], options: &EvalOptions) -> Option<Differences> {
    let both: Vec<(&SystemOutput, &SystemOutput)> =
        pairs.iter().filter_map(|pair| Some((pair.model?, pair.ngram?))).collect();
    if both.is_empty() {
        return None;
    }
    let n_files: Vec<usize> = both.iter().map(|(model, _)| model.texts.len()).collect();
    let n_lines: Vec<usize> = both.iter().map(|(model, _)| model.lines.len()).collect();
    let bits = |language: usize, units: &[usize]| {
        let (model, ngram) = both[language];
        let sum = |output: &SystemOutput| units.iter().map(|&unit| output.texts[unit].bits).sum::<f64>();
        let n_bytes: u64 = units.iter().map(|&unit| model.texts[unit].n_bytes).sum();
        (sum(model) - sum(ngram)) / n_bytes as f64
    };
    let lines = |value: fn(&LineScore) -> f64| {
        let both = &both;
        move |language: usize, units: &[usize]| {
            let (model, ngram) = both[language];
            let sum: f64 = units.iter().map(|&unit| value(&model.lines[unit]) - value(&ngram.lines[unit])).sum();
            sum / units.len() as f64
        }
    };
    Some(Differences {
        bits_per_byte: bootstrap_macro(&n_files, options.n_resamples, options.seed, bits),
        line_exact_match: bootstrap_macro(&n_lines, options.n_resamples, options.seed, lines(exact_match)),
        line_edit_similarity: bootstrap_macro(&n_lines, options.n_resamples, options.seed, lines(edit_similarity)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(bits: f64, matches: &[bool]) -> SystemOutput {
        let text = TextScore { n_bytes: 100, n_tokens: 30, bits, n_correct: 15 };
        let line =
            |&exact_match: &bool| LineScore { exact_match, edit_similarity: if exact_match { 100.0 } else { 40.0 } };
        SystemOutput {
            texts: vec![text; 4],
            lines: matches.iter().map(line).collect(),
            lines_with_suffix: vec![],
            expert_load: vec![],
        }
    }

    #[test]
    fn macro_average_counts_each_language_once() {
        let sample = |language: &str| LanguageSample { language: language.to_owned(), ..LanguageSample::default() };
        let samples = [sample("c"), sample("lua")];
        let model = vec![output(100.0, &[true, true, false, false]), output(300.0, &[true, false, false, false])];
        let ngram = BaselineOutput {
            languages: [("c".to_owned(), output(150.0, &[false; 4])), ("lua".to_owned(), output(250.0, &[false; 4]))]
                .into(),
            ..BaselineOutput::default()
        };
        let options = crate::evaluate::tests::options();
        let evaluation =
            summarise(&samples, Some((ModelInfo::default(), model)), Some(ngram), &options, Duration::ZERO);
        let average = evaluation.macro_average.model.unwrap();
        assert_eq!((average.bits_per_byte, average.token_accuracy), (2.0, 50.0));
        assert_eq!((average.line_exact_match, average.line_exact_match_with_suffix), (Some(37.5), None));
        assert_eq!(evaluation.n_languages_fewer_bits, Some(1));
        let difference = evaluation.macro_average.difference.unwrap();
        assert!(difference.bits_per_byte.unwrap().value.abs() < 1e-12);
        assert_eq!(difference.line_exact_match.unwrap().value, 37.5);
        assert_eq!(evaluation.languages[0].difference.unwrap().bits_per_byte.unwrap().value, -0.5);
    }
}
