//! The results of a suite as one HTML page: bars by language, and the reliability curve.

use std::fmt::Write as _;

use crate::evaluate::ModelInfo;
use crate::report::html::{self, COLOURS, Part, escape, legend, table_row};
use crate::report::table;
use crate::suites::Suite;
use crate::suites::calibrate::{COVERAGES, Calibration};
use crate::suites::score::{Row, TextScores};

/// The page for one model.
pub fn render(suite: &Suite, model: &ModelInfo, rows: &[Row], calibrations: &[Calibration]) -> String {
    let mut page = format!("<p>{}.</p>\n", escape(suite.about));
    let stored =
        if model.quantization.is_empty() { String::new() } else { format!(", {}", escape(&model.quantization)) };
    let tiles = [
        (escape(&model.name), format!("model{stored} ({})", escape(&model.checksum))),
        (format!("{:.1}", model.n_parameters as f64 / 1e6), "million parameters".to_owned()),
        (format!("{:.1}", model.n_active_parameters as f64 / 1e6), "million that a token meets".to_owned()),
    ];
    // Of a model behind an address no sizes are known.
    html::tiles(&mut page, if model.n_parameters > 0 { &tiles } else { &tiles[..1] });
    let mut rest = rows;
    while let Some(first) = rest.first() {
        let n = rest.iter().take_while(|row| row.setting == first.setting).count();
        bars(&mut page, &first.setting, &rest[..n]);
        rest = &rest[n..];
    }
    if !calibrations.is_empty() {
        reliability(&mut page, calibrations);
    }
    html::page(suite.name, &page)
}

fn bars(page: &mut String, setting: &str, rows: &[Row]) {
    let _ = writeln!(page, "<h2>{}</h2>", escape(setting));
    let named = [("exact match", COLOURS[0]), ("edit similarity beyond it", "#0072B255")];
    legend(page, named.into_iter().map(|(name, colour)| (name.to_owned(), colour)));
    let is_run = rows.iter().any(|row| row.pass_at_1.is_some());
    let heading = if is_run { "<th>pass@1 %<th>run" } else { "" };
    let _ = writeln!(
        page,
        "<table><tr><th>language<th><th>exact %<th>±<th>similarity{heading}<th>questions<th>ms<th>95 % in</tr>"
    );
    for row in rows {
        let figure = |value: Option<f64>| table::figure(value, 1);
        let text = |value: fn(&TextScores) -> f64| figure(row.text.as_ref().map(value));
        let exact = text(|of| of.exact_match);
        let (margin, similarity) = (text(|of| of.exact_match_margin), text(|of| of.edit_similarity));
        let ms = format!("{:.1}<td>{:.1}", row.median_ms, row.p95_ms);
        let language = escape(&row.language);
        let passing = figure(row.pass_at_1);
        let run = if is_run { format!("{passing}<td>{}", row.n_run) } else { String::new() };
        let bar = html::bar(&parts(row));
        match is_run {
            true => table_row(page, &[&language, &bar, &exact, &margin, &similarity, &run, &row.n, &ms]),
            false => table_row(page, &[&language, &bar, &exact, &margin, &similarity, &row.n, &ms]),
        }
    }
    page.push_str("</table>\n");
}

/// Of texts the exact answers and beyond them the likeness, else the programs that passed.
fn parts(row: &Row) -> Vec<Part<'static>> {
    let part = |width, colour, title| Part { width, colour, title };
    let Some(text) = row.text else {
        let passing = row.pass_at_1.unwrap_or_default();
        return vec![part(passing, COLOURS[0], format!("pass@1 {passing:.1} %"))];
    };
    let (exact, similarity) = (text.exact_match, text.edit_similarity);
    vec![
        part(exact, COLOURS[0], format!("exact match {exact:.1} %")),
        part(similarity - exact, "#0072B255", format!("edit similarity {similarity:.1}")),
    ]
}

fn reliability(page: &mut String, calibrations: &[Calibration]) {
    page.push_str(
        "<h2>Calibration</h2>\n<p><small>Of the answers that the model gave a probability, the share that was right. On the dashed line \
         it says what is so. Larger dots are more answers.</small></p>\n",
    );
    let colour = |at: usize| COLOURS[at % COLOURS.len()];
    legend(page, calibrations.iter().enumerate().map(|(at, of)| (escape(&of.setting), colour(at))));
    let (size, margin) = (420.0, 44.0);
    let x = |value: f64| margin + value * size;
    let y = |value: f64| 8.0 + (1.0 - value) * size;
    let _ = writeln!(page, "<svg width=\"{0}\" height=\"{0}\" viewBox=\"0 0 {0} {0}\">", size + margin + 12.0);
    for tick in 0..=5 {
        let value = f64::from(tick) / 5.0;
        let (x, y, bottom) = (x(value), y(value), y(0.0) + 18.0);
        let _ = writeln!(
            page,
            "<text x=\"{x:.1}\" y=\"{bottom:.1}\" text-anchor=\"middle\">{value:.1}</text><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{value:.1}</text><path d=\"M{margin} {y:.1}h{size}\" stroke=\"#8884\"/>",
            margin - 6.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        page,
        "<path d=\"M{} {}L{} {}\" stroke=\"#888\" stroke-dasharray=\"5 5\"/>",
        x(0.0),
        y(0.0),
        x(1.0),
        y(1.0)
    );
    for (at, of) in calibrations.iter().enumerate() {
        let points: Vec<String> =
            of.bins.iter().map(|bin| format!("{:.1},{:.1}", x(bin.probability), y(bin.accuracy))).collect();
        let _ = writeln!(
            page,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            points.join(" "),
            colour(at)
        );
        for bin in &of.bins {
            let radius = 2.5 + 9.0 * (bin.n as f64 / of.n as f64).sqrt();
            let (x, y) = (x(bin.probability), y(bin.accuracy));
            let title = format!("{} answers, said {:.2}, were {:.2}", bin.n, bin.probability, bin.accuracy);
            let _ = writeln!(
                page,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"{}\" fill-opacity=\".6\"><title>{title}</title></circle>",
                colour(at)
            );
        }
    }
    page.push_str("</svg>\n<table><tr><th>setting<th>answers<th>calibration error");
    for coverage in COVERAGES {
        let _ = write!(page, "<th>% right of the likeliest {:.0} %", 100.0 * coverage);
    }
    page.push_str("</tr>\n");
    for of in calibrations {
        let (setting, error) = (escape(&of.setting), format!("{:.3}", of.expected_error));
        let [a, b, c, d] = of.precision_at.map(|value| format!("{value:.1}"));
        table_row(page, &[&setting, &of.n, &error, &a, &b, &c, &d]);
    }
    page.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suites::SUITES;
    use crate::suites::calibrate::Bin;

    #[test]
    fn the_page_has_a_bar_for_every_row_and_a_dot_for_every_bin() {
        let row = |setting: &str, language: &str| Row {
            setting: setting.to_owned(),
            language: language.to_owned(),
            n: 7,
            text: Some(TextScores {
                exact_match: 25.0,
                exact_match_margin: 3.0,
                edit_similarity: 60.0,
                identifier_exact_match: 1.0,
                identifier_f1: 2.0,
            }),
            pass_at_1: None,
            n_run: 0,
            median_ms: 4.0,
            p95_ms: 9.0,
        };
        let bins = vec![Bin { n: 3, probability: 0.1, accuracy: 0.0 }, Bin { n: 4, probability: 0.9, accuracy: 0.75 }];
        let calibration =
            Calibration { setting: "infill".into(), n: 7, expected_error: 0.1, precision_at: [100.0; 4], bins };
        let rows = [row("infill", "lua"), row("infill", "r"), row("left <to> right", "lua")];
        let page = render(&SUITES[0], &ModelInfo::default(), &rows, &[calibration]);
        assert_eq!((page.matches("class=\"bar\"").count(), page.matches("<circle").count()), (3, 2));
        assert_eq!((page.matches("<h2>infill").count(), page.matches("<h2>left &lt;to&gt; right").count()), (1, 1));
        assert!(page.contains("width:25.00%") && page.contains("width:35.00%"), "{page}");
    }
}
