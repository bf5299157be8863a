//! Whether a model's probability of its answer is the share of such answers that are right. Pure.

use serde::{Deserialize, Serialize};

use super::answer::Answer;
use super::question::{self, Question};
use super::score::Score;

/// Bins of equal width of the reliability curve.
const N_BINS: usize = 10;
/// Shares of the answers, the likeliest first, of which the precision is told.
pub const COVERAGES: [f64; 4] = [0.1, 0.2, 0.3, 0.5];

/// Calibration in one setting, over all its languages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The suite's way of asking.
    pub setting: String,
    /// Answers.
    pub n: usize,
    /// Expected calibration error, 0 to 1: the mean over the answers of the distance between a bin's mean probability and its share of
    /// exact answers (Guo et al. 2017, arXiv 1706.04599, eq. 3).
    pub expected_error: f64,
    /// Percent of exact answers among the likeliest, for each of [`COVERAGES`].
    pub precision_at: [f64; 4],
    /// Bins that hold answers.
    pub bins: Vec<Bin>,
}

/// Answers of like probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Answers.
    pub n: usize,
    /// Mean probability, 0 to 1.
    pub probability: f64,
    /// Share of exact answers, 0 to 1.
    pub accuracy: f64,
}

/// One a setting, in the order of the questions; none for answers without a probability, and for questions without a right text.
pub fn calibrations(questions: &[Question], answers: &[(Answer, Score)]) -> Vec<Calibration> {
    let of_setting = |setting: &&'static str| {
        let is_own = |question: &Question| question.setting == *setting && !question.truth.is_empty();
        let own = questions.iter().zip(answers).filter(|(question, _)| is_own(question));
        let said: Vec<(f64, bool)> =
            own.filter_map(|(_, (answer, score))| Some((answer.probability?, score.is_exact))).collect();
        (!said.is_empty()).then(|| calibration(setting, said))
    };
    question::settings(questions).iter().filter_map(of_setting).collect()
}

fn calibration(setting: &str, mut answers: Vec<(f64, bool)>) -> Calibration {
    let n = answers.len();
    let mut sums = [(0usize, 0.0, 0usize); N_BINS];
    for (probability, is_exact) in &answers {
        let (n, probabilities, exact) = &mut sums[((probability * N_BINS as f64) as usize).min(N_BINS - 1)];
        *n += 1;
        *probabilities += probability;
        *exact += usize::from(*is_exact);
    }
    let bin = |&(n, probabilities, exact): &(usize, f64, usize)| {
        let of = n as f64;
        (n > 0).then(|| Bin { n, probability: probabilities / of, accuracy: exact as f64 / of })
    };
    let bins: Vec<Bin> = sums.iter().filter_map(bin).collect();
    let distance = |bin: &Bin| bin.n as f64 / n as f64 * (bin.probability - bin.accuracy).abs();
    answers.sort_by(|a, b| b.0.total_cmp(&a.0));
    let precision = |coverage: f64| {
        let likeliest = &answers[..((coverage * n as f64).ceil() as usize).clamp(1, n)];
        100.0 * likeliest.iter().filter(|(_, is_exact)| *is_exact).count() as f64 / likeliest.len() as f64
    };
    Calibration {
        setting: setting.to_owned(),
        n,
        expected_error: bins.iter().map(distance).sum(),
        precision_at: COVERAGES.map(precision),
        bins,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_and_precision_of_a_worked_case() {
        // Two bins: 0.25 said of four with one right (perfect), 0.95 said of four with two right.
        let mut answers = vec![(0.25, true), (0.25, false), (0.25, false), (0.25, false)];
        answers.extend([(0.95, true), (0.95, true), (0.95, false), (0.95, false)]);
        let calibration = calibration("infill", answers);
        assert!((calibration.expected_error - 0.5 * 0.45).abs() < 1e-12);
        assert_eq!(calibration.bins.iter().map(|bin| (bin.n, bin.accuracy)).collect::<Vec<_>>(), [(4, 0.25), (4, 0.5)]);
        // The likeliest answer; the likeliest two; three; four.
        assert_eq!(calibration.precision_at, [100.0, 100.0, 200.0 / 3.0, 50.0]);
    }

    #[test]
    fn a_model_that_says_what_is_so_has_no_error() {
        let answers: Vec<(f64, bool)> =
            (0..1000).map(|n| (f64::from(n % 10) / 10.0 + 0.05, n % 200 < n % 10 * 20 + 10)).collect();
        let calibration = calibration("infill", answers);
        assert!(calibration.expected_error < 0.03, "{calibration:?}");
        assert_eq!(calibration.bins.len(), N_BINS);
    }
}
