//! From the rows of trials to a table: means and standard deviations over seeds, and what differs from the baseline. Pure.

use serde::Serialize;

use super::record::TrialRow;
use super::study::Study;

/// A figure over the seeds of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; 0 for one seed.
    pub deviation: f64,
    /// Seeds.
    pub n: usize,
}

/// What a difference from the baseline is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is the baseline.
    Baseline,
    Better,
    Worse,
    /// Under two standard deviations.
    NoDifference,
    /// Of one seed no deviation is known.
    OneSeed,
    /// There are no rows of the baseline.
    NoBaseline,
}

/// One variant.
#[derive(Clone, Debug, Serialize)]
pub struct VariantSummary {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Bits per byte of each language of the study.
    pub languages: Vec<Spread>,
    /// Over all languages, each counting the same.
    pub macro_average: Spread,
    /// Over those with little text; none where the study names none.
    pub low_resource: Option<Spread>,
    /// Of the language with the most bits per byte.
    pub worst: Spread,
    /// Percent, over all languages; none where no line was completed.
    pub line_exact_match: Option<Spread>,
    /// Percent, with the text after the line too.
    pub infill_exact_match: Option<Spread>,
    /// Of the macro average of bits per byte.
    pub verdict: Verdict,
    /// Of `infill_exact_match`.
    pub infill_verdict: Verdict,
    /// FLOPs of a token, forward.
    pub flops_per_token: f64,
    /// Parameters.
    pub n_parameters: usize,
    /// Tokens trained on.
    pub n_train_tokens: u64,
    /// Seconds of training, mean over seeds; other work on the machine counts.
    pub train_s: f64,
}

/// The variants that have rows, in the order of the study.
pub fn summarise(study: &Study, rows: &[TrialRow], flops_per_token: impl Fn(&str) -> f64) -> Vec<VariantSummary> {
    let mut summaries: Vec<VariantSummary> = Vec::new();
    for variant in &study.variant {
        let own: Vec<&TrialRow> = rows.iter().filter(|row| row.variant == variant.name).collect();
        let Some(first) = own.first() else { continue };
        let all: Vec<&str> = study.languages.iter().map(String::as_str).collect();
        let low: Vec<&str> = study.low_resource.iter().map(String::as_str).collect();
        let bits = |languages: &[&str]| spread(&per_seed(&own, languages, |row| Some(row.bits_per_byte)));
        let languages: Vec<Spread> = all.iter().map(|language| bits(&[language])).collect();
        let worst = languages.iter().copied().max_by(|a, b| a.mean.total_cmp(&b.mean)).unwrap_or(bits(&all));
        let matches = |value: fn(&TrialRow) -> Option<f64>| {
            let matches = per_seed(&own, &all, value);
            (!matches.is_empty()).then(|| spread(&matches))
        };
        summaries.push(VariantSummary {
            name: variant.name.clone(),
            about: variant.about.clone(),
            languages,
            macro_average: bits(&all),
            low_resource: (!low.is_empty()).then(|| bits(&low)),
            worst,
            line_exact_match: matches(|row| row.line_exact_match),
            infill_exact_match: matches(|row| row.infill_exact_match),
            verdict: Verdict::Baseline,
            infill_verdict: Verdict::Baseline,
            flops_per_token: flops_per_token(&variant.name),
            n_parameters: first.n_parameters,
            n_train_tokens: first.n_train_tokens,
            train_s: own.iter().map(|row| row.train_s).sum::<f64>() / own.len() as f64,
        });
    }
    let baseline = summaries.iter().find(|summary| summary.name == study.baseline);
    let (bits, infill) = (baseline.map(|of| of.macro_average), baseline.and_then(|of| of.infill_exact_match));
    for summary in summaries.iter_mut().filter(|summary| summary.name != study.baseline) {
        summary.verdict = bits.map_or(Verdict::NoBaseline, |bits| verdict(summary.macro_average, bits));
        // More exact answers are better, where fewer bits are.
        let negative = |of: Spread| Spread { mean: -of.mean, ..of };
        let both = summary.infill_exact_match.zip(infill);
        summary.infill_verdict =
            both.map_or(Verdict::NoBaseline, |(own, baseline)| verdict(negative(own), negative(baseline)));
    }
    summaries
}

/// The mean over `languages` of a figure, for each seed that has all of them.
fn per_seed(rows: &[&TrialRow], languages: &[&str], value: impl Fn(&TrialRow) -> Option<f64>) -> Vec<f64> {
    let mut seeds: Vec<u64> = rows.iter().map(|row| row.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let of_seed = |seed: u64| -> Option<f64> {
        let of = |language: &&str| rows.iter().find(|row| row.seed == seed && row.language == **language);
        let values: Option<Vec<f64>> =
            languages.iter().map(|language| of(language).and_then(|row| value(row))).collect();
        values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    seeds.into_iter().filter_map(of_seed).collect()
}

fn spread(values: &[f64]) -> Spread {
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Spread { mean, deviation: if n > 1 { (squares / (n - 1) as f64).sqrt() } else { 0.0 }, n }
}

/// Fewer bits are better. The deviation is the root of the mean of both variances.
pub fn verdict(own: Spread, baseline: Spread) -> Verdict {
    if own.n < 2 || baseline.n < 2 {
        return Verdict::OneSeed;
    }
    let deviation = ((own.deviation.powi(2) + baseline.deviation.powi(2)) / 2.0).sqrt();
    let difference = own.mean - baseline.mean;
    match difference == 0.0 || difference.abs() < 2.0 * deviation {
        true => Verdict::NoDifference,
        false if difference < 0.0 => Verdict::Better,
        false => Verdict::Worse,
    }
}

impl Verdict {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Baseline => "baseline",
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::NoDifference => "no difference",
            Verdict::OneSeed => "one seed",
            Verdict::NoBaseline => "no baseline",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::row;
    use super::super::study::tests::TEXT;
    use super::*;

    #[test]
    fn means_deviations_and_verdicts_of_a_worked_case() {
        let study = Study::parse(TEXT).unwrap();
        let mut rows = Vec::new();
        for (seed, noise) in [(1, -0.02), (2, 0.0), (3, 0.02)] {
            rows.extend([row("dense", seed, "lua", 3.0 + noise), row("dense", seed, "python", 2.0 + noise)]);
            rows.extend([row("pl_shared", seed, "lua", 2.8 + noise), row("pl_shared", seed, "python", 2.0 + noise)]);
        }
        rows.push(row("each", 1, "lua", 4.0));
        rows.push(row("each", 1, "python", 2.0));
        let summaries = summarise(&study, &rows, |_| 1e6);
        let names: Vec<_> = summaries.iter().map(|of| (of.name.as_str(), of.verdict)).collect();
        assert_eq!(names, [("dense", Verdict::Baseline), ("each", Verdict::OneSeed), ("pl_shared", Verdict::Better)]);
        let dense = &summaries[0];
        assert!((dense.macro_average.mean - 2.5).abs() < 1e-12 && (dense.macro_average.deviation - 0.02).abs() < 1e-12);
        assert_eq!((dense.low_resource.unwrap().mean, dense.worst.mean, dense.languages.len()), (3.0, 3.0, 2));
        assert!(dense.line_exact_match.is_none());
        assert_eq!(summaries[2].infill_verdict, Verdict::NoDifference);
        rows.iter_mut().filter(|row| row.variant == "pl_shared").for_each(|row| row.infill_exact_match = Some(25.0));
        assert_eq!(summarise(&study, &rows, |_| 1e6)[2].infill_verdict, Verdict::Better);
    }

    #[test]
    fn less_than_two_deviations_is_no_difference() {
        let spread = |mean, deviation| Spread { mean, deviation, n: 3 };
        assert_eq!(verdict(spread(2.039, 0.02), spread(2.0, 0.02)), Verdict::NoDifference);
        assert_eq!(verdict(spread(2.041, 0.02), spread(2.0, 0.02)), Verdict::Worse);
        assert_eq!(verdict(spread(1.9, 0.02), spread(2.0, 0.06)), Verdict::Better);
    }
}
