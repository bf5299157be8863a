//! The suite `packages` as one HTML page: bars by language of the model beside the n-gram model, and the table.

use std::fmt::Display;

use crate::evaluate::summary::{Evaluation, LanguageRow, SystemRow};
use crate::report::html::{self, COLOURS, Part, escape, legend, table_row};
use crate::report::table;

/// A system of a row, its name and its colour.
type System = (fn(&LanguageRow) -> &Option<SystemRow>, &'static str, &'static str);

const SYSTEMS: [System; 2] = [(|row| &row.model, "model", COLOURS[0]), (|row| &row.ngram, "n-gram", "#A0A0A0")];

/// A figure that is drawn.
struct Figure {
    title: &'static str,
    value: fn(&SystemRow) -> Option<f64>,
    decimals: usize,
    /// What is said of it.
    note: &'static str,
}

const FIGURES: [Figure; 4] = [
    Figure { title: "Bits per byte", value: |row| Some(row.bits_per_byte), decimals: 3, note: "less is better" },
    Figure {
        title: "Line exact match, with the text after the line",
        value: |row| row.line_exact_match_with_suffix,
        decimals: 1,
        note: "percent; more is better",
    },
    Figure {
        title: "Line exact match, from the left alone",
        value: |row| row.line_exact_match,
        decimals: 1,
        note: "percent; more is better",
    },
    Figure {
        title: "Token accuracy",
        value: |row| Some(row.token_accuracy),
        decimals: 1,
        note: "percent; more is better",
    },
];

/// The page of an evaluation.
pub fn render(evaluation: &Evaluation) -> String {
    let mut page = format!(
        "<p>Whole packages that training never saw: split {}, seed {}.</p>\n",
        escape(&evaluation.options.split),
        evaluation.options.seed
    );
    if let Some(model) = &evaluation.model {
        let tiles = [
            (escape(&model.name), format!("model, {} ({})", escape(&model.quantization), escape(&model.checksum))),
            (format!("{:.1}", model.n_parameters as f64 / 1e6), "million parameters".to_owned()),
            (format!("{:.1}", model.n_active_parameters as f64 / 1e6), "million that a token meets".to_owned()),
        ];
        html::tiles(&mut page, &tiles);
    }
    FIGURES.iter().for_each(|figure| bars(&mut page, evaluation, figure));
    page.push_str("<h2>All figures</h2>\n");
    html::cells_table(&mut page, &table::evaluation_cells(evaluation));
    table::evaluation_notes(evaluation)
        .iter()
        .for_each(|note| page += &format!("<p><small>{}</small></p>\n", escape(note)));
    html::page("packages", &page)
}

/// One row a language, longest where the figure is largest; nothing of a system that has the figure of no language.
fn bars(page: &mut String, evaluation: &Evaluation, figure: &Figure) {
    let rows = || evaluation.languages.iter().chain([&evaluation.macro_average]);
    let value = |(of, _, _): &System, row: &LanguageRow| {
        of(row).as_ref().and_then(figure.value).filter(|value| value.is_finite())
    };
    let systems: Vec<System> =
        SYSTEMS.into_iter().filter(|system| rows().any(|row| value(system, row).is_some())).collect();
    let largest =
        rows().flat_map(|row| systems.iter().filter_map(move |system| value(system, row))).fold(0.0, f64::max);
    if largest <= 0.0 {
        return;
    }
    *page += &format!("<h2>{}</h2>\n<p><small>{}</small></p>\n", figure.title, figure.note);
    legend(page, systems.iter().map(|(_, name, colour)| ((*name).to_owned(), *colour)));
    page.push_str("<table><tr><th>language<th>");
    systems.iter().for_each(|(_, name, _)| *page += &format!("<th>{name}"));
    page.push_str("</tr>\n");
    for row in rows() {
        let bar = |system: &System| {
            let Some(value) = value(system, row) else { return String::new() };
            let title = format!("{} {value:.3}", system.1);
            html::bar(&[Part { width: 100.0 * value / largest, colour: system.2, title }])
        };
        let figures = systems.iter().map(|system| table::figure(value(system, row), figure.decimals));
        let cells: Vec<String> =
            [escape(&row.language), systems.iter().map(bar).collect()].into_iter().chain(figures).collect();
        table_row(page, &cells.iter().map(|cell| cell as &dyn Display).collect::<Vec<_>>());
    }
    page.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::summary::LanguageRow;

    #[test]
    fn the_page_has_a_bar_for_each_system_that_has_the_figure() {
        let system = |bits_per_byte, line_exact_match| {
            Some(SystemRow { bits_per_byte, token_accuracy: 50.0, line_exact_match, ..SystemRow::default() })
        };
        let row = |language: &str| LanguageRow {
            language: language.to_owned(),
            model: system(1.5, Some(20.0)),
            ngram: system(3.0, Some(10.0)),
            ..LanguageRow::default()
        };
        let evaluation = Evaluation {
            options: crate::evaluate::tests::options(),
            model: None,
            ngram: None,
            languages: vec![row("lua")],
            macro_average: row("macro average"),
            n_languages_fewer_bits: None,
            elapsed_s: 1.0,
        };
        let page = render(&evaluation);
        // Bits, lines from the left and tokens of two rows and two systems; nobody has lines with the text after them.
        assert_eq!((page.matches("class=\"bar\"").count(), page.matches("<h2>").count()), (12, 4));
        assert!(page.contains("width:50.00%") && page.contains("width:100.00%"));
        let mut alone = evaluation;
        (alone.languages[0].ngram, alone.macro_average.ngram) = (None, None);
        let page = render(&alone);
        assert!(page.contains("<th>model</tr>") && page.matches("class=\"bar\"").count() == 6);
    }
}
