//! The evaluation as a table, for the terminal and as Markdown.

use crate::evaluate::metric::Interval;
use crate::evaluate::summary::{Differences, Evaluation, LanguageRow, SystemRow};

/// Rows of equal length; the first is the heading. The first column is text, the others are numbers.
pub type Cells = Vec<Vec<String>>;

/// The figures of every language and the macro average, the model beside the baseline.
pub fn evaluation_cells(evaluation: &Evaluation) -> Cells {
    let (model, ngram) = (evaluation.model.is_some(), evaluation.ngram.is_some());
    let mut heading = vec!["language".to_owned(), "files".to_owned(), "kB".to_owned(), "lines".to_owned()];
    let mut pair = |name: &str, ngram: bool| {
        heading.extend(model.then(|| name.to_owned()));
        heading.extend(ngram.then(|| if model { "n-gram".to_owned() } else { name.to_owned() }));
    };
    pair("bits/byte", ngram);
    pair("token acc", ngram);
    pair("line EM", ngram);
    pair("line ES", ngram);
    pair("EM +suffix", false);
    pair("ES +suffix", false);
    let mut cells = vec![heading];
    for row in evaluation.languages.iter().chain([&evaluation.macro_average]) {
        cells.push(row_cells(row, model, ngram));
    }
    cells
}

fn row_cells(row: &LanguageRow, model: bool, ngram: bool) -> Vec<String> {
    let mut cells =
        vec![row.language.clone(), row.n_files.to_string(), kilobytes(row.n_bytes), row.n_lines.to_string()];
    let mut pair = |value: fn(&SystemRow) -> Option<f64>, decimals: usize, ngram: bool| {
        let show = |system: &Option<SystemRow>| figure(system.as_ref().and_then(value), decimals);
        cells.extend(model.then(|| show(&row.model)));
        cells.extend(ngram.then(|| show(&row.ngram)));
    };
    pair(|row| Some(row.bits_per_byte), 3, ngram);
    pair(|row| Some(row.token_accuracy), 1, ngram);
    pair(|row| row.line_exact_match, 1, ngram);
    pair(|row| row.line_edit_similarity, 1, ngram);
    pair(|row| row.line_exact_match_with_suffix, 1, false);
    pair(|row| row.line_edit_similarity_with_suffix, 1, false);
    cells
}

/// A number, or a dash where there is none.
pub fn figure(value: Option<f64>, decimals: usize) -> String {
    value.filter(|value| value.is_finite()).map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn kilobytes(n_bytes: usize) -> String {
    format!("{}", n_bytes.div_ceil(1000))
}

/// What stands below the table: intervals of the macro differences and in how many languages the model is ahead.
pub fn evaluation_notes(evaluation: &Evaluation) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(Differences { bits_per_byte, line_exact_match, line_edit_similarity }) =
        evaluation.macro_average.difference
    {
        let mut note = |name: &str, interval: Option<Interval>, decimals: usize| {
            notes.extend(interval.map(|Interval { value, low, high }| {
                format!(
                    "macro average, model minus n-gram, {name}: {value:+.decimals$} \
                     (95 % bootstrap interval {low:+.decimals$} to {high:+.decimals$})"
                )
            }));
        };
        note("bits per byte", bits_per_byte, 3);
        note("line exact match", line_exact_match, 1);
        note("line edit similarity", line_edit_similarity, 1);
    }
    if let Some(n) = evaluation.n_languages_fewer_bits {
        notes.push(format!(
            "fewer bits per byte than the n-gram model in {n} of {} languages",
            evaluation.languages.len()
        ));
    }
    notes
}

/// Columns aligned with spaces, a rule under the heading and above the last row, which is about all others.
pub fn plain_with_total(cells: &Cells) -> String {
    lines(cells, true)
}

/// Columns aligned with spaces, a rule under the heading.
pub fn plain(cells: &Cells) -> String {
    lines(cells, false)
}

fn lines(cells: &Cells, has_total: bool) -> String {
    let widths = widths(cells);
    let rule = widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().join("  ");
    let mut text = String::new();
    for (idx, row) in cells.iter().enumerate() {
        if idx == 1 || has_total && idx + 1 == cells.len() && idx > 1 {
            text += &rule;
            text.push('\n');
        }
        text += aligned(row, &widths, "  ").trim_end();
        text.push('\n');
    }
    text
}

/// A Markdown table.
pub fn markdown(cells: &Cells) -> String {
    let widths = widths(cells);
    let mut text = String::new();
    for (idx, row) in cells.iter().enumerate() {
        text += &format!("| {} |\n", aligned(row, &widths, " | "));
        if idx == 0 {
            let rule = |(column, &width): (usize, &usize)| match column {
                0 => "-".repeat(width),
                _ => "-".repeat(width.saturating_sub(1)) + ":",
            };
            text += &format!("| {} |\n", widths.iter().enumerate().map(rule).collect::<Vec<_>>().join(" | "));
        }
    }
    text
}

fn widths(cells: &Cells) -> Vec<usize> {
    let n_columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    (0..n_columns).map(|column| width(column).unwrap_or(0).max(2)).collect()
}

fn aligned(row: &[String], widths: &[usize], between: &str) -> String {
    let cell = |(column, (cell, &width)): (usize, (&String, &usize))| match column {
        0 => format!("{cell:<width$}"),
        _ => format!("{cell:>width$}"),
    };
    row.iter().zip(widths).enumerate().map(cell).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells() -> Cells {
        [["language", "bits"], ["c", "1.5"], ["macro average", "12.25"]]
            .map(|row| row.map(str::to_owned).to_vec())
            .to_vec()
    }

    #[test]
    fn plain_table_is_aligned() {
        let expected = "language        bits\n-------------  -----\nc                1.5\n-------------  -----\nmacro average  12.25\n";
        assert_eq!(plain_with_total(&cells()), expected);
        assert_eq!(plain(&cells()).lines().count(), 4);
    }

    #[test]
    fn markdown_table_has_its_rule() {
        let text = markdown(&cells());
        assert_eq!(text.lines().nth(1), Some("| ------------- | ----: |"));
        assert_eq!(text.lines().nth(3), Some("| macro average | 12.25 |"));
    }
}
