//! The curves of a run as one SVG picture, from its `metrics.jsonl`. No fonts or scripts are needed to show it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 44.0;
/// Points drawn of one curve; more are averaged.
const MAX_POINTS: usize = 400;
/// Okabe and Ito's colours, told apart by everybody.
pub const COLOURS: [&str; 8] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00"];

/// The numbers of a run that the picture and the model card show.
#[derive(Clone, Debug, Default)]
pub struct RunCurves {
    /// Tokens seen after each step, and the training loss of that step in nats a token.
    pub train_loss: Vec<(f64, f64)>,
    /// By name (`loss`, `loss/python`): tokens seen, and nats a token on the valid split.
    pub valid: BTreeMap<String, Vec<(f64, f64)>>,
    /// Tokens in all steps.
    pub n_tokens: u64,
    /// Optimizer steps.
    pub n_steps: u64,
    /// Seconds of training, as the steps counted them.
    pub elapsed_s: f64,
}

impl RunCurves {
    /// Reads the `train` and `valid` lines of `metrics.jsonl`; others, and a torn last line, are skipped.
    ///
    /// # Errors
    /// A file that cannot be read or holds no training step.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut curves = RunCurves::default();
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            match line["kind"].as_str() {
                Some("train") => curves.add_step(&line),
                Some("valid") => curves.add_valid(&line),
                _ => {}
            }
        }
        let expected = "expected lines with \"kind\": \"train\", \"loss\" and \"n_tokens\"";
        ensure!(!curves.train_loss.is_empty(), "{}: no training step ({expected})", path.display());
        Ok(curves)
    }

    fn add_step(&mut self, line: &Value) {
        self.n_tokens += line["n_tokens"].as_u64().unwrap_or(0);
        self.n_steps += 1;
        self.elapsed_s += line["elapsed_s"].as_f64().unwrap_or(0.0);
        self.train_loss.extend(line["loss"].as_f64().map(|loss| (self.n_tokens as f64, loss)));
    }

    fn add_valid(&mut self, line: &Value) {
        for (name, value) in line.as_object().into_iter().flatten() {
            if let Some(loss) = value.as_f64().filter(|_| name == "loss" || name.starts_with("loss/")) {
                self.valid.entry(name.clone()).or_default().push((self.n_tokens as f64, loss));
            }
        }
    }
}

/// What a picture's axes say.
#[derive(Clone, Copy)]
pub struct Axes {
    /// Below.
    pub x: &'static str,
    /// Above.
    pub y: &'static str,
    /// Whether x is shown by powers of ten.
    pub is_log: bool,
}

/// Of training.
pub const LOSS: Axes = Axes { x: "million tokens", y: "loss, nats per token", is_log: false };

/// One line of the picture.
pub struct Curve<'a> {
    /// Beside the picture.
    pub label: String,
    /// Tokens seen, and loss in nats a token.
    pub points: Vec<(f64, f64)>,
    /// A colour of SVG.
    pub colour: &'a str,
    /// Of the line.
    pub width: f64,
}

/// The picture: training loss, validation loss (macro average), and the languages with the highest and the lowest final loss.
pub fn svg(curves: &RunCurves) -> String {
    let mut drawn = vec![Curve {
        label: "training".to_owned(),
        points: averaged(&curves.train_loss),
        colour: "#b8b8b8",
        width: 1.2,
    }];
    let macro_average = curves.valid.get("loss").map(|points| ("valid, macro", points.clone()));
    let mut languages: Vec<(&str, Vec<(f64, f64)>)> =
        curves.valid.iter().filter_map(|(name, points)| Some((name.strip_prefix("loss/")?, points.clone()))).collect();
    let last = |points: &[(f64, f64)]| points.last().map_or(0.0, |point| point.1);
    languages.sort_by(|a, b| last(&a.1).total_cmp(&last(&b.1)));
    if languages.len() > 6 {
        languages.drain(3..languages.len() - 3);
    }
    for (idx, (label, points)) in macro_average.into_iter().chain(languages).enumerate() {
        let width = if idx == 0 { 2.4 } else { 1.3 };
        drawn.push(Curve { label: label.to_owned(), points, colour: COLOURS[idx % COLOURS.len()], width });
    }
    draw(&drawn, LOSS)
}

/// The mean of each of at most 400 stretches.
pub fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let n = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let sum = chunk.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / chunk.len() as f64, sum.1 / chunk.len() as f64)
    };
    points.chunks(n).map(mean).collect()
}

/// The picture of these curves.
pub fn draw(curves: &[Curve<'_>], axes: Axes) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let shown = |x: f64| if axes.is_log { x.log10() } else { x };
    let x_max = points().map(|point| shown(point.0)).fold(1.0, f64::max);
    let x_min = if axes.is_log { points().map(|point| shown(point.0)).fold(x_max, f64::min).floor() } else { 0.0 };
    let y_min = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let y_max = points().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let y_step = tick_step(y_max - y_min);
    let (y_min, y_max) = ((y_min / y_step).floor() * y_step, (y_max / y_step).ceil() * y_step);
    let x = |value: f64| LEFT + (value - x_min) / (x_max - x_min).max(1e-9) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - (value - y_min) / (y_max - y_min).max(1e-9) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    let decimals = if y_step < 0.1 { 2 } else { 1 };
    for tick in ticks(y_min, y_max, y_step) {
        let (at, right) = (y(tick), WIDTH - RIGHT);
        let _ = writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#e0e0e0\"/>");
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.decimals$}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let step = if axes.is_log { 1.0 } else { tick_step(x_max) };
    for tick in ticks(x_min, x_max, step) {
        let (at, bottom) = (x(tick), HEIGHT - BOTTOM);
        let label = if axes.is_log { format!("1e{tick}") } else { format!("{}", tick / 1e6) };
        let _ = writeln!(svg, "<path d=\"M{at:.1} {bottom}v4\" stroke=\"#606060\"/>");
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", bottom + 18.0);
    }
    for (idx, curve) in curves.iter().enumerate() {
        let path: Vec<String> =
            curve.points.iter().map(|point| format!("{:.1} {:.1}", x(shown(point.0)), y(point.1))).collect();
        let (colour, width) = (curve.colour, curve.width);
        let path = path.join("L");
        let _ = writeln!(svg, "<path d=\"M{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>");
        let at = TOP + 18.0 * idx as f64;
        let (from, label) = (WIDTH - RIGHT + 10.0, &curve.label);
        let _ = writeln!(svg, "<path d=\"M{from} {at}h16\" stroke=\"{colour}\" stroke-width=\"{}\"/>", width + 0.8);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\">{label}</text>", from + 22.0, at + 4.0);
    }
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"16\">{}</text>", axes.y);
    let (right, below) = (WIDTH - RIGHT, HEIGHT - 8.0);
    let _ = writeln!(svg, "<text x=\"{right}\" y=\"{below}\" text-anchor=\"end\">{}</text>", axes.x);
    svg + "</svg>\n"
}

/// A round distance that gives about five ticks.
fn tick_step(range: f64) -> f64 {
    let rough = (range / 5.0).max(1e-6);
    let power = 10f64.powf(rough.log10().floor());
    let digit = rough / power;
    power
        * if digit < 1.5 {
            1.0
        } else if digit < 3.5 {
            2.0
        } else if digit < 7.5 {
            5.0
        } else {
            10.0
        }
}

fn ticks(from: f64, to: f64, step: f64) -> impl Iterator<Item = f64> {
    let n = ((to - from) / step + 1e-6).floor() as usize;
    (0..=n).map(move |tick| ((from + tick as f64 * step) * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_read_and_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut text = String::new();
        for step in 0..1000 {
            let loss = 3.0 + 6.0 / (1.0 + f64::from(step) / 50.0);
            text += &format!(
                "{{\"kind\":\"train\",\"step\":{step},\"loss\":{loss},\"n_tokens\":16384,\"elapsed_s\":2.5}}\n"
            );
            if step % 250 == 0 {
                text += &format!("{{\"kind\":\"valid\",\"step\":{step},\"loss\":{loss},\"loss/lua\":{loss}}}\n");
            }
        }
        fs::write(&path, text + "{\"kind\":\"tra").unwrap();
        let curves = RunCurves::read(&path).unwrap();
        assert_eq!((curves.n_steps, curves.n_tokens, curves.valid["loss/lua"].len()), (1000, 16_384_000, 4));
        let svg = svg(&curves);
        assert_eq!(svg.matches("fill=\"none\"").count(), 3);
        assert!(svg.len() < 40_000 && !svg.contains("NaN") && svg.contains(">lua</text>"));
        fs::write(&path, "{}\n").unwrap();
        assert!(RunCurves::read(&path).unwrap_err().to_string().contains("no training step"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(tick_step(6.3), 1.0);
        assert_eq!(tick_step(41e6), 1e7);
        assert_eq!(ticks(3.0, 5.0, 0.5).collect::<Vec<_>>(), [3.0, 3.5, 4.0, 4.5, 5.0]);
    }
}
