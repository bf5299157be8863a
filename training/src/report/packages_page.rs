//! The suite `packages` as one HTML page: bars by language of the model beside the n-gram model, and the table.

use crate::evaluate::summary::{Evaluation, SystemRow};
use crate::report::html::{self, COLOURS, Part, escape, legend, table_row};
use crate::report::table;

/// Colour of the baseline.
const NGRAM: &str = "#A0A0A0";

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

/// One row a language, longest where the figure is largest; nothing where nobody has the figure.
fn bars(page: &mut String, evaluation: &Evaluation, figure: &Figure) {
    let rows = || evaluation.languages.iter().chain([&evaluation.macro_average]);
    let value = |system: &Option<SystemRow>| system.as_ref().and_then(figure.value).filter(|value| value.is_finite());
    let largest = rows().flat_map(|row| [value(&row.model), value(&row.ngram)]).flatten().fold(0.0, f64::max);
    if largest <= 0.0 {
        return;
    }
    *page += &format!("<h2>{}</h2>\n<p><small>{}</small></p>\n", figure.title, figure.note);
    legend(
        page,
        [("model", COLOURS[0]), ("n-gram", NGRAM)].into_iter().map(|(name, colour)| (name.to_owned(), colour)),
    );
    page.push_str("<table><tr><th>language<th><th>model<th>n-gram</tr>\n");
    for row in rows() {
        let bar = |system: &Option<SystemRow>, colour: &'static str, name: &str| {
            let Some(value) = value(system) else { return String::new() };
            html::bar(&[Part { width: 100.0 * value / largest, colour, title: format!("{name} {value:.3}") }])
        };
        let both = bar(&row.model, COLOURS[0], "model") + &bar(&row.ngram, NGRAM, "n-gram");
        let text = |system| table::figure(value(system), figure.decimals);
        table_row(page, &[&escape(&row.language), &both, &text(&row.model), &text(&row.ngram)]);
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
    }
}
