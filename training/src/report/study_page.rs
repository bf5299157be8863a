//! A study as one HTML page: its table, training curves, and heat maps of the experts' loads by language and layer.

use std::fmt::Write as _;

use crate::lab::scaling::{self, Law, Point};
use crate::lab::study::Study;
use crate::lab::trial::Pictured;
use crate::metrics::n_covering;
use crate::report::html::{self, escape};
use crate::report::loss_curve::{Axes, COLOURS, Curve, LOSS, averaged, draw};
use crate::report::table::Cells;

/// The page; `pictured` are trials of which there are files, `points` what was reached at several amounts of compute.
pub fn render(name: &str, study: &Study, cells: &Cells, pictured: &[Pictured], points: &[Point]) -> String {
    let mut page = format!("<p>{}</p>\n<h2>Bits per byte</h2>\n", escape(&study.about));
    html::cells_table(&mut page, cells);
    let _ = writeln!(
        page,
        "<p><small>Mean and standard deviation over seeds, on text of the split valid. Against {}: differences of averages under two \
         standard deviations are none.</small></p>",
        escape(&study.baseline)
    );
    scaling(&mut page, points);
    page.push_str("<h2>Variants</h2>\n<ul>\n");
    for variant in &study.variant {
        let _ = writeln!(page, "<li><b>{}</b>: {}</li>", escape(&variant.name), escape(&variant.about));
    }
    page.push_str("</ul>\n");
    if !pictured.is_empty() {
        page.push_str("<h2>Training loss, first seed</h2>\n");
        page.push_str(&curves(pictured));
        heat_maps(&mut page, pictured);
    }
    html::page(&format!("Study: {name}"), &page)
}

fn curves(pictured: &[Pictured]) -> String {
    let curve = |(at, of): (usize, &Pictured)| Curve {
        label: escape(&of.variant),
        points: smoothed(&averaged(&of.curves.train_loss)),
        colour: COLOURS[at % COLOURS.len()],
        width: 1.6,
    };
    draw(&pictured.iter().enumerate().map(curve).collect::<Vec<_>>(), LOSS)
}

/// What no cheaper model beats, and the laws through that, ten times as far.
fn scaling(page: &mut String, points: &[Point]) {
    let best = scaling::frontier(points);
    let (Some(laws), Some(last)) = (scaling::laws(&best), best.last()) else { return };
    let of = |points: &[Point]| points.iter().map(|point| (point.flops, point.bits)).collect::<Vec<_>>();
    let line = |label: &str, points, colour, width| Curve { label: label.to_owned(), points, colour, width };
    let beyond = |law: &Law| {
        let steps = (0..=10).map(|n| last.flops * 10f64.powf(f64::from(n) / 10.0));
        steps.map(|flops| (flops, law.bits(flops))).collect::<Vec<_>>()
    };
    let curves = [
        line("measured, best", of(&best), COLOURS[0], 2.4),
        line("best law", beyond(&laws[0]), COLOURS[1], 1.4),
        line("none irreducible", beyond(&laws[1]), COLOURS[2], 1.4),
    ];
    page.push_str("<h2>Bits per byte by compute</h2>\n");
    page.push_str(&draw(&curves, Axes { x: "FLOPs of training", y: "bits per byte", is_log: true }));
    let _ = writeln!(page, "<p>{}</p>", escape(&scaling::forecast(&laws, last)));
}

/// The mean of each point and those before it, near ones counting more.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const KEEP: f64 = 0.9;
    let mut mean = points.first().map_or(0.0, |point| point.1);
    let smooth = |&(x, y): &(f64, f64)| {
        mean = KEEP * mean + (1.0 - KEEP) * y;
        (x, mean)
    };
    points.iter().map(smooth).collect()
}

fn heat_maps(page: &mut String, pictured: &[Pictured]) {
    for of in pictured.iter().filter(|of| of.loads.iter().any(|(_, layers)| !layers.is_empty())) {
        let n_layers = of.loads.iter().map(|(_, layers)| layers.len()).max().unwrap_or(0);
        let _ = writeln!(
            page,
            "<h2>Loads of the experts: {}</h2>\n<p><small>The share of a language's tokens that each expert has; darker is more. The number: how many experts have 80 % of \
             them.</small></p>",
            escape(&of.variant)
        );
        page.push_str("<div class=\"tiles\">\n");
        for layer in 0..n_layers {
            let _ = writeln!(page, "<div><small>layer {} of those with experts</small>", layer + 1);
            heat_map(page, of, layer);
            page.push_str("</div>\n");
        }
        page.push_str("</div>\n");
    }
}

fn heat_map(page: &mut String, of: &Pictured, layer: usize) {
    page.push_str("<table style=\"width:auto\">\n");
    for (language, layers) in &of.loads {
        let _ = write!(page, "<tr><td>{}", escape(language));
        let loads = layers.get(layer).map_or(&[][..], Vec::as_slice);
        for (expert, load) in loads.iter().enumerate() {
            let _ = write!(
                page,
                "<td style=\"background:rgb(0 114 178 / {load:.3});width:1.1rem;padding:0\" title=\"expert {expert}: {:.1} %\">",
                100.0 * load
            );
        }
        let _ = writeln!(page, "<td>{}</tr>", n_covering(loads, 0.8));
    }
    page.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::loss_curve::RunCurves;

    #[test]
    fn the_page_has_the_table_a_curve_a_trial_and_a_map_a_layer() {
        let study = Study::open("experiment").unwrap();
        let cells = vec![
            vec!["variant".to_owned(), "average".to_owned()],
            vec!["multi".to_owned(), "1.234 (0.001)".to_owned()],
        ];
        let curves = RunCurves { train_loss: vec![(1e6, 5.0), (2e6, 4.0)], ..RunCurves::default() };
        let loads = vec![("lua".to_owned(), vec![vec![0.25, 0.75], vec![1.0, 0.0]])];
        let trials = [
            Pictured { variant: "multi".to_owned(), curves: curves.clone(), loads: vec![("lua".to_owned(), vec![])] },
            Pictured { variant: "token".to_owned(), curves, loads },
        ];
        let page = render("experiment", &study, &cells, &trials, &[]);
        assert!(page.contains("<td>1.234 (0.001)") && page.contains("<b>pl_shared</b>"));
        assert_eq!((page.matches("fill=\"none\"").count(), page.matches("expert 0:").count()), (2, 2));
        assert!(page.contains("title=\"expert 1: 75.0 %\"><td>2</tr>"), "both have 80 % of it: {page}");
        assert!(page.contains("expert 1: 75.0 %") && !page.contains("Loads of the experts: multi"));
        assert!(!render("experiment", &study, &cells, &[], &[]).contains("<svg"));
        let point = |n: i32| Point { name: n.to_string(), flops: 10f64.powi(n), bits: 3.0 - 0.1 * f64::from(n) };
        let page = render("scaling", &study, &cells, &[], &[point(12), point(13), point(14), point(15)]);
        assert!(page.contains(">1e16</text>") && page.contains("ten times"), "{page}");
    }
}
