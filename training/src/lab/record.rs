//! What trials measured: one CSV file, a row for each language of each trial. A trial that stands in it is not run again.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::report::rows;

/// One language in one trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialRow {
    /// Name of the study.
    pub study: String,
    /// Of its budgets.
    pub budget: String,
    /// Name of the variant.
    pub variant: String,
    /// Of weights and data.
    pub seed: u64,
    /// Hash of corpus and tokenizer.
    pub data: String,
    /// Hash of all that the row depends on: these, the trial's configurations, and what was measured.
    pub identity: String,
    /// Name of the language.
    pub language: String,
    /// Less is better.
    pub bits_per_byte: f64,
    /// Percent of tokens predicted right.
    pub token_accuracy: f64,
    /// Percent, from the text before the caret; empty where no line was completed.
    pub line_exact_match: Option<f64>,
    /// 0 to 100, likewise.
    pub line_edit_similarity: Option<f64>,
    /// Percent of lines, with the text after them too.
    #[serde(default)]
    pub infill_exact_match: Option<f64>,
    /// Parameters of the trial's models.
    pub n_parameters: usize,
    /// Tokens that they were trained on.
    pub n_train_tokens: u64,
    /// Seconds of training.
    pub train_s: f64,
}

impl TrialRow {
    /// Whether this row is of that trial.
    pub fn is_of(&self, study: &str, budget: &str, variant: &str, seed: u64) -> bool {
        (self.study.as_str(), self.budget.as_str(), self.variant.as_str(), self.seed) == (study, budget, variant, seed)
    }
}

/// The rows of a trial that is the same by all that they depend on, whatever study and variant it was for.
pub fn same_trial(rows: &[TrialRow], identity: &str) -> Vec<TrialRow> {
    let is_same = |row: &&TrialRow| row.identity == identity;
    let Some(first) = rows.iter().find(is_same) else { return Vec::new() };
    let of_first = |row: &&TrialRow| row.is_of(&first.study, &first.budget, &first.variant, first.seed);
    rows.iter().filter(is_same).filter(of_first).cloned().collect()
}

/// Adds the rows of one trial, in place of those of an earlier one of the same variant and seed.
///
/// # Errors
/// As of [`rows::replace`].
pub fn add(path: &Path, new: &[TrialRow]) -> Result<()> {
    rows::replace(path, new, |old| new.iter().any(|new| old.is_of(&new.study, &new.budget, &new.variant, new.seed)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::lab) fn row(variant: &str, seed: u64, language: &str, bits_per_byte: f64) -> TrialRow {
        TrialRow {
            study: "s".to_owned(),
            budget: "small".to_owned(),
            variant: variant.to_owned(),
            seed,
            data: "0e".to_owned(),
            identity: "0f".to_owned(),
            language: language.to_owned(),
            bits_per_byte,
            token_accuracy: 50.0,
            line_exact_match: None,
            line_edit_similarity: Some(40.0),
            infill_exact_match: Some(20.0),
            n_parameters: 10,
            n_train_tokens: 20,
            train_s: 3.0,
        }
    }

    #[test]
    fn a_trial_that_is_run_again_takes_the_place_of_its_earlier_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trials.csv");
        add(&path, &[row("dense", 1, "lua", 2.0), row("dense", 1, "r", 2.5)]).unwrap();
        add(&path, &[row("dense", 2, "lua", 2.1)]).unwrap();
        let again = [row("dense", 1, "lua", 1.9)];
        add(&path, &again).unwrap();
        assert_eq!(rows::read::<TrialRow>(&path).unwrap(), [row("dense", 2, "lua", 2.1), again[0].clone()]);
    }

    #[test]
    fn a_trial_is_found_by_what_it_is_whatever_its_name() {
        let named = |variant: &str, identity: &str, language: &str| TrialRow {
            identity: identity.to_owned(),
            ..row(variant, 1, language, 2.0)
        };
        let mut other_study = named("dense", "aa", "lua");
        other_study.study = "t".to_owned();
        let rows = [named("token", "bb", "lua"), named("dense", "aa", "lua"), named("dense", "aa", "r"), other_study];
        assert_eq!(same_trial(&rows, "aa"), rows[1..3]);
        assert_eq!(same_trial(&rows, "cc"), []);
    }
}
