//! Scores: of one answer, and their means by setting and language. Pure.

use std::collections::BTreeSet;

use multicoder_grammars::LanguageId;
use multicoder_grammars::lexical::identifiers;
use serde::{Deserialize, Serialize};

use super::answer::Answer;
use super::question::{self, Question};
use crate::evaluate::metric::edit_similarity;

/// What stands in place of a language in the mean over languages.
pub const MACRO: &str = "macro average";

/// The scores of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// By the suite's own rule.
    pub is_exact: bool,
    /// 0 to 100, as of [`edit_similarity`].
    pub edit_similarity: f64,
    /// Whether the identifiers are the same, in the same order.
    pub is_identifier_exact: bool,
    /// F1 of the sets of identifiers, 0 to 1; 0 where neither has any.
    pub identifier_f1: f64,
    /// Whether the program around it passed its tests; absent where it was not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_passing: Option<bool>,
}

/// Scores `answer` (CrossCodeEval, Ding et al. 2023, arXiv 2310.11248, §3.2, and its released scorer).
pub fn score(question: &Question, answer: &str, is_exact: fn(&str, &str) -> bool) -> Score {
    let language = LanguageId::by_name(question.language);
    let of = |text| language.map_or_else(Vec::new, |language| identifiers(language, text));
    let (predicted, truth) = (of(answer), of(&question.truth));
    Score {
        is_exact: is_exact(answer, &question.truth),
        edit_similarity: edit_similarity(answer, &question.truth),
        is_identifier_exact: predicted == truth,
        identifier_f1: f1(&predicted, &truth),
        is_passing: None,
    }
}

fn f1(predicted: &[&str], truth: &[&str]) -> f64 {
    let (predicted, truth): (BTreeSet<&str>, BTreeSet<&str>) =
        (predicted.iter().copied().collect(), truth.iter().copied().collect());
    let both = predicted.intersection(&truth).count();
    match predicted.len() + truth.len() {
        0 => 0.0,
        all => 2.0 * both as f64 / all as f64,
    }
}

/// Equality but for white space at both ends.
pub fn is_exact_stripped(predicted: &str, truth: &str) -> bool {
    predicted.trim() == truth.trim()
}

/// The means of what is told by the texts of answers alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextScores {
    /// Percent.
    pub exact_match: f64,
    /// Half the width of the 95 % interval of `exact_match`, in percentage points (Wilson); of the macro average the root mean square of
    /// those of the languages over their number.
    pub exact_match_margin: f64,
    /// 0 to 100.
    pub edit_similarity: f64,
    /// Percent.
    pub identifier_exact_match: f64,
    /// Percent.
    pub identifier_f1: f64,
}

impl TextScores {
    fn of(scores: &[&Score]) -> Option<TextScores> {
        let n = scores.len();
        let mean = |value: &dyn Fn(&Score) -> f64| scores.iter().map(|score| value(score)).sum::<f64>() / n as f64;
        let percent = |is: fn(&Score) -> bool| mean(&|score| if is(score) { 100.0 } else { 0.0 });
        let exact_match = percent(|score| score.is_exact);
        (n > 0).then(|| TextScores {
            exact_match,
            exact_match_margin: 100.0 * wilson_margin(exact_match / 100.0, n),
            edit_similarity: mean(&|score| score.edit_similarity),
            identifier_exact_match: percent(|score| score.is_identifier_exact),
            identifier_f1: mean(&|score| 100.0 * score.identifier_f1),
        })
    }

    /// Of all languages, each counting the same.
    fn mean(languages: &[TextScores]) -> Option<TextScores> {
        let n = languages.len() as f64;
        let mean = |value: fn(&TextScores) -> f64| languages.iter().map(value).sum::<f64>() / n;
        (n > 0.0).then(|| TextScores {
            exact_match: mean(|of| of.exact_match),
            exact_match_margin: languages.iter().map(|of| of.exact_match_margin.powi(2)).sum::<f64>().sqrt() / n,
            edit_similarity: mean(|of| of.edit_similarity),
            identifier_exact_match: mean(|of| of.identifier_exact_match),
            identifier_f1: mean(|of| of.identifier_f1),
        })
    }
}

/// The means of one language in one setting, or of all languages, each counting the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The suite's way of asking.
    pub setting: String,
    /// Name of the language, or [`MACRO`].
    pub language: String,
    /// Questions.
    pub n: usize,
    /// Of the texts; absent where the suite has no right ones.
    #[serde(flatten)]
    pub text: Option<TextScores>,
    /// Percent of the answers that were run whose programs passed their tests; absent where none was run.
    pub pass_at_1: Option<f64>,
    /// Answers that were run.
    pub n_run: usize,
    /// Median time of an answer, in milliseconds.
    pub median_ms: f64,
    /// Time in which 95 % of the answers were there, in milliseconds.
    pub p95_ms: f64,
}

/// Rows by setting in the order of the questions, in each the languages by name and last, where there are several, their average.
pub fn rows(questions: &[Question], answers: &[(Answer, Score)]) -> Vec<Row> {
    let mut rows = Vec::new();
    for setting in question::settings(questions) {
        let of_setting = || questions.iter().zip(answers).filter(|(question, _)| question.setting == setting);
        let languages: BTreeSet<&str> = of_setting().map(|(question, _)| question.language).collect();
        let of_language = |language: &&str| {
            let answers: Vec<_> = of_setting().filter(|(question, _)| question.language == *language).collect();
            row(setting, language, &answers)
        };
        let of_setting: Vec<Row> = languages.iter().map(of_language).collect();
        let average = (of_setting.len() > 1).then(|| macro_row(setting, &of_setting));
        rows.extend(of_setting);
        rows.extend(average);
    }
    rows
}

fn row(setting: &str, language: &str, answers: &[(&Question, &(Answer, Score))]) -> Row {
    let n = answers.len();
    let with_truth = answers.iter().filter(|(question, _)| !question.truth.is_empty());
    let run: Vec<bool> = answers.iter().filter_map(|(_, (_, score))| score.is_passing).collect();
    let passing = run.iter().filter(|&&passed| passed).count() as f64;
    let mut times: Vec<f64> = answers.iter().map(|(_, (answer, _))| answer.elapsed_ms).collect();
    times.sort_by(f64::total_cmp);
    Row {
        setting: setting.to_owned(),
        language: language.to_owned(),
        n,
        text: TextScores::of(&with_truth.map(|(_, (_, score))| score).collect::<Vec<_>>()),
        pass_at_1: (!run.is_empty()).then(|| 100.0 * passing / run.len() as f64),
        n_run: run.len(),
        median_ms: times[n / 2],
        p95_ms: times[(95 * n).div_ceil(100) - 1],
    }
}

fn macro_row(setting: &str, rows: &[Row]) -> Row {
    let mean = |value: fn(&Row) -> f64| rows.iter().map(value).sum::<f64>() / rows.len() as f64;
    let texts: Vec<TextScores> = rows.iter().filter_map(|row| row.text).collect();
    let passed: Vec<f64> = rows.iter().filter_map(|row| row.pass_at_1).collect();
    Row {
        setting: setting.to_owned(),
        language: MACRO.to_owned(),
        n: rows.iter().map(|row| row.n).sum(),
        text: TextScores::mean(&texts),
        pass_at_1: (!passed.is_empty()).then(|| passed.iter().sum::<f64>() / passed.len() as f64),
        n_run: rows.iter().map(|row| row.n_run).sum(),
        median_ms: mean(|row| row.median_ms),
        p95_ms: mean(|row| row.p95_ms),
    }
}

/// Half the width of the 95 % score interval of a share `p` of `n` (Wilson 1927).
fn wilson_margin(p: f64, n: usize) -> f64 {
    const Z: f64 = 1.96;
    let n = n as f64;
    Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::question::tests::question;
    use super::*;

    #[test]
    fn scores_of_a_worked_case_are_those_of_the_published_scorer() {
        let mut asked = question("1", "python", "in file");
        asked.truth = "decode(prompt_ids, \"of a string\")[0]".to_owned();
        let score = score(&asked, "decode(input_ids, 'x')[0]", is_exact_stripped);
        // Identifiers: {decode, input_ids} against {decode, prompt_ids}; 2 * 1 / (2 + 2).
        assert_eq!((score.is_exact, score.is_identifier_exact, score.identifier_f1), (false, false, 0.5));
        // A longest common subsequence is 19 of 25 and 36 characters long: `decode(` `pt_ids, ` `)[0]`.
        assert!((score.edit_similarity - 100.0 * 38.0 / 61.0).abs() < 0.05, "{}", score.edit_similarity);
    }

    #[test]
    fn identifiers_without_any_on_both_sides_match_exactly_with_an_f1_of_zero() {
        let mut asked = question("1", "python", "in file");
        asked.truth = "1 + 2".to_owned();
        let score = score(&asked, "3", is_exact_stripped);
        assert_eq!((score.is_identifier_exact, score.identifier_f1), (true, 0.0));
    }

    #[test]
    fn wilson_interval_of_a_textbook_case() {
        // 10 of 20: 0.299 to 0.701.
        assert!((wilson_margin(0.5, 20) - 0.2007).abs() < 1e-3);
        assert!(wilson_margin(0.0, 20) > 0.05);
    }

    #[test]
    fn a_language_counts_once_in_the_average_however_many_questions_it_has() {
        let mut questions: Vec<Question> = (0..3).map(|n| question(&n.to_string(), "lua", "infill")).collect();
        questions.push(question("3", "r", "infill"));
        let answer = |elapsed_ms| Answer { elapsed_ms, ..Answer::default() };
        let score = |is_exact| Score { is_exact, ..Score::default() };
        let answers =
            [true, true, true, false].map(|is_exact| (answer(if is_exact { 2.0 } else { 4.0 }), score(is_exact)));
        let rows = rows(&questions, &answers);
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.language.as_str(), row.n, row.text.unwrap().exact_match, row.median_ms))
            .collect();
        assert_eq!(seen, [("lua", 3, 100.0, 2.0), ("r", 1, 0.0, 4.0), (MACRO, 4, 50.0, 3.0)]);
    }

    #[test]
    fn where_nobody_knows_the_right_text_only_the_tests_count() {
        let mut asked = question("1", "lua", "function");
        asked.truth.clear();
        let rows = rows(&[asked], &[(Answer::default(), Score { is_passing: Some(true), ..Score::default() })]);
        assert_eq!((rows[0].text, rows[0].pass_at_1, rows[0].n), (None, Some(100.0), 1));
    }
}
