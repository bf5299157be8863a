//! The results that are kept beside the code: one CSV file a suite, a row for each model, setting and language.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::score::{Row, TextScores};
use crate::report::rows;
use crate::report::table::{self, Cells};

/// A row of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the model.
    pub model: String,
    /// Identity of its weights.
    pub checksum: String,
    /// The suite's way of asking.
    pub setting: String,
    /// Name of the language, or of the average over them.
    pub language: String,
    /// Questions.
    pub n: usize,
    /// Percent, to two decimals like all that follow; empty, like the next three, where the suite has no right texts.
    pub exact_match: Option<f64>,
    /// 0 to 100.
    pub edit_similarity: Option<f64>,
    /// Percent.
    pub identifier_exact_match: Option<f64>,
    /// Percent.
    pub identifier_f1: Option<f64>,
    /// Percent; empty where nothing was run.
    pub pass_at_1: Option<f64>,
}

impl Record {
    /// The record of a row of scores.
    pub fn of(model: &str, checksum: &str, row: &Row) -> Record {
        let rounded = |value: f64| (100.0 * value).round() / 100.0;
        let text = |value: fn(&TextScores) -> f64| row.text.as_ref().map(value).map(rounded);
        Record {
            model: model.to_owned(),
            checksum: checksum.to_owned(),
            setting: row.setting.clone(),
            language: row.language.clone(),
            n: row.n,
            exact_match: text(|of| of.exact_match),
            edit_similarity: text(|of| of.edit_similarity),
            identifier_exact_match: text(|of| of.identifier_exact_match),
            identifier_f1: text(|of| of.identifier_f1),
            pass_at_1: row.pass_at_1.map(rounded),
        }
    }

    fn key(&self) -> (&str, &str, &str) {
        (&self.model, &self.setting, &self.language)
    }
}

/// Writes `new` into `path` in place of all rows of their models; those of other models stay.
///
/// # Errors
/// As of [`rows::replace`].
pub fn replace(path: &Path, new: &[Record]) -> Result<()> {
    rows::replace(path, new, |old| new.iter().any(|new| new.model == old.model))
}

/// What `now` says otherwise than `before`, as a table; rows that only one of them has are left out, and where the number of
/// questions differs, both are said.
pub fn differences(before: &[Record], now: &[Record]) -> Cells {
    let mut cells = vec![
        ["setting", "language", "questions", "EM", "was", "ES", "was", "pass@1", "was"].map(str::to_owned).to_vec(),
    ];
    for row in now {
        let Some(old) = before.iter().find(|old| old.key() == row.key()) else { continue };
        let figures = |row: &Record| (row.exact_match, row.edit_similarity, row.pass_at_1);
        let (now, was) = (figures(row), figures(old));
        if row.n == old.n && now == was {
            continue;
        }
        let questions = if row.n == old.n { row.n.to_string() } else { format!("{}, was {}", row.n, old.n) };
        let figures = [now.0, was.0, now.1, was.1, now.2, was.2].map(|value| table::figure(value, 2));
        cells.push([row.setting.clone(), row.language.clone(), questions].into_iter().chain(figures).collect());
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(model: &str, language: &str, exact_match: f64) -> Record {
        let row = Row {
            setting: "retrieved, infill".to_owned(),
            language: language.to_owned(),
            n: 10,
            text: Some(TextScores {
                exact_match,
                exact_match_margin: 1.0,
                edit_similarity: 50.126,
                identifier_exact_match: 1.0,
                identifier_f1: 2.0,
            }),
            pass_at_1: Some(30.0),
            n_run: 10,
            median_ms: 3.0,
            p95_ms: 9.0,
        };
        Record::of(model, "0f", &row)
    }

    #[test]
    fn rows_of_a_model_are_replaced_and_those_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("suite.csv");
        let other = record("other", "lua", 1.0);
        replace(&path, &[record("ours", "lua", 10.0), record("ours", "gone", 0.0)]).unwrap();
        replace(&path, std::slice::from_ref(&other)).unwrap();
        let ours = record("ours", "lua", 20.0);
        replace(&path, std::slice::from_ref(&ours)).unwrap();
        assert_eq!(rows::read::<Record>(&path).unwrap(), [other, ours]);
        assert_eq!(rows::read::<Record>(&path).unwrap()[0].edit_similarity, Some(50.13));
        std::fs::write(&path, "model,checksum\na,b\n").unwrap();
        let error = rows::read::<Record>(&path).unwrap_err().to_string();
        assert!(error.contains("suite.csv") && error.contains("setting"), "{error}");
    }

    #[test]
    fn only_what_changed_is_told() {
        let before = [record("ours", "lua", 10.0), record("ours", "r", 5.0), record("other", "lua", 9.0)];
        let now = [record("ours", "lua", 12.5), record("ours", "r", 5.0), record("ours", "new", 1.0)];
        let cells = differences(&before, &now);
        assert_eq!(cells.len(), 2);
        assert_eq!(cells[1], ["retrieved, infill", "lua", "10", "12.50", "10.00", "50.13", "50.13", "30.00", "30.00"]);
    }
}
