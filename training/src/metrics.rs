//! What a run reports: `metrics.jsonl`, TensorBoard events, and one line on the terminal.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

pub mod peak;
mod rates;
pub mod tensorboard;

use crate::step::StepReport;
use peak::Peak;
pub use rates::n_covering;
use rates::{Balance, Work};
use tensorboard::EventWriter;

/// What the numbers of a run's steps are measured against, and the names of what they count.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Steps of the run.
    pub n_steps: u64,
    /// Steps between lines on standard error when it is not a terminal.
    pub log_every_steps: u64,
    /// Languages of the texts, in their order.
    pub languages: Vec<String>,
    /// Which layers have experts.
    pub moe_layers: Vec<usize>,
    /// Floating-point operations of a forward and backward pass: three times `ModelConfig::flops_per_token`.
    pub flops_per_token: f64,
    /// The most that a rank's machine can do, where that is known.
    pub peak: Option<Peak>,
    /// Number of ranks.
    pub world: usize,
}

/// Where numbers go; nowhere on any rank but the first.
pub struct Metrics(Option<Open>);

struct Open {
    facts: Facts,
    path: PathBuf,
    jsonl: File,
    events: EventWriter,
    progress: Option<ProgressBar>,
    /// All steps since the start or the resume.
    total: Work,
    /// The newest steps.
    recent: Work,
    /// Passes over the text of each language, from the start of the run.
    epochs: Vec<f64>,
    last_validation: Vec<(String, f64)>,
}

impl Metrics {
    /// Says nothing and writes nothing: for every rank but the first.
    pub fn silent() -> Metrics {
        Metrics(None)
    }

    /// Opens `metrics.jsonl` and `tensorboard/` in `folder`. Lines of steps that will be done again (`>= next_step`) are removed.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn open(folder: &Path, next_step: u64, facts: Facts) -> Result<Metrics> {
        let path = folder.join("metrics.jsonl");
        drop_lines_from(&path, next_step).with_context(|| path.display().to_string())?;
        let jsonl = OpenOptions::new().create(true).append(true).open(&path);
        let jsonl = jsonl.with_context(|| path.display().to_string())?;
        let events = EventWriter::create(&folder.join("tensorboard"))?;
        let progress = std::io::stderr().is_terminal().then(|| progress_bar(facts.n_steps, next_step));
        let (total, recent) = (Work::default(), Work::default());
        let (epochs, last_validation) = (Vec::new(), Vec::new());
        Ok(Metrics(Some(Open { facts, path, jsonl, events, progress, total, recent, epochs, last_validation })))
    }

    /// Records one optimizer step of a run of `n_steps`, an end that the clock may have moved, and for which it leaves at most `most_s` seconds.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn log_step(&mut self, step: u64, (n_steps, most_s): (u64, f64), lr: f64, report: &StepReport) -> Result<()> {
        let Some(open) = &mut self.0 else { return Ok(()) };
        let work = Work::of(report);
        open.total = open.total.plus(work);
        open.recent = open.recent.smoothed(work);
        open.record("train", step, step_fields(&open.facts, lr, report), &open.balances(report))?;
        let left_s = n_steps.saturating_sub(step + 1) as f64 * work.n_tokens / open.recent.tokens_per_s();
        let left_s = left_s.min(most_s);
        open.epochs.clone_from(&report.epochs);
        let line = open.recent.line(&open.facts, report.loss, most(&report.epochs), left_s);
        match &open.progress {
            Some(bar) => {
                bar.set_length(n_steps);
                bar.set_position(step + 1);
                bar.set_message(line);
            }
            None if (step + 1).is_multiple_of(open.facts.log_every_steps.max(1)) || step == 0 => {
                eprintln!("step {}/{n_steps}  {line}", step + 1);
            }
            None => {}
        }
        Ok(())
    }

    /// Records the named numbers (`loss`, `loss/python`, ...) of a validation.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn log_validation(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let Some(open) = &mut self.0 else { return Ok(()) };
        open.last_validation = values.to_vec();
        let fields: Map<String, Value> = values.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        open.record("valid", step, fields, &[])
    }

    /// Shows a message without breaking the progress line.
    pub fn note(&self, message: &str) {
        match &self.0 {
            Some(Open { progress: Some(bar), .. }) => bar.suspend(|| eprintln!("{message}")),
            Some(_) => eprintln!("{message}"),
            None => {}
        }
    }

    /// Brings everything onto the disk.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        let Some(Open { path, jsonl, events, .. }) = &mut self.0 else { return Ok(()) };
        jsonl.sync_data().with_context(|| path.display().to_string())?;
        events.flush()
    }

    /// Replaces the progress line by a summary of all steps since the start or the resume.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn finish(&mut self) -> Result<()> {
        let Some(open) = &mut self.0 else { return Ok(()) };
        if let Some(bar) = open.progress.take() {
            bar.finish_and_clear();
        }
        if open.total.n_tokens > 0.0 {
            eprintln!("{}", open.total.summary(&open.facts));
            eprintln!("{}", epochs_line(&open.facts.languages, &open.epochs));
        }
        validation_lines(&open.last_validation).iter().for_each(|line| eprintln!("{line}"));
        self.flush()
    }
}

impl Open {
    /// Writes a line of `fields`, their numbers as curves `kind/...`, and further curves.
    fn record(&mut self, kind: &str, step: u64, fields: Map<String, Value>, curves: &[(String, f64)]) -> Result<()> {
        for (name, value) in &fields {
            match (value.as_f64(), value.as_object()) {
                (Some(value), _) => self.events.scalar(&format!("{kind}/{name}"), step, value as f32)?,
                // By language: one curve each.
                (None, Some(values)) => {
                    let Some((_, curve)) = CURVES_BY_LANGUAGE.iter().find(|(field, _)| field == name) else { continue };
                    for (language, value) in values.iter().filter_map(|(name, value)| Some((name, value.as_f64()?))) {
                        self.events.scalar(&format!("{kind}/{curve}/{language}"), step, value as f32)?;
                    }
                }
                _ => {}
            }
        }
        for (name, value) in curves {
            self.events.scalar(&format!("{kind}/{name}"), step, *value as f32)?;
        }
        let mut line = Map::from_iter([("kind".to_owned(), json!(kind)), ("step".to_owned(), json!(step))]);
        line.extend(fields);
        // One write a line: a killed run leaves at most its last line torn.
        let line = format!("{}\n", Value::Object(line));
        self.jsonl.write_all(line.as_bytes()).with_context(|| self.path.display().to_string())
    }

    /// The balance of every layer with experts, as `NAME/LAYER`.
    fn balances(&self, report: &StepReport) -> Vec<(String, f64)> {
        let layers = self.facts.moe_layers.iter().zip(&report.load_E);
        let of_layer = layers.filter_map(|(layer, shares)| Some((layer, Balance::of(shares)?)));
        let curves = |(layer, balance): (&usize, Balance)| {
            balance.curves().map(|(name, value)| (format!("{name}/{layer}"), value))
        };
        of_layer.flat_map(curves).collect()
    }
}

/// The fields by language that are curves, and what these are called.
const CURVES_BY_LANGUAGE: [(&str, &str); 2] = [("loss_by_language", "loss"), ("epochs_by_language", "epochs")];

/// The line of a step. Nothing in it is smoothed.
fn step_fields(facts: &Facts, lr: f64, report: &StepReport) -> Map<String, Value> {
    let work = Work::of(report);
    let named = facts.languages.iter().zip(&report.languages).filter(|(_, language)| language.n_counted > 0);
    let (losses, counted): (Map<String, Value>, Map<String, Value>) = named
        .map(|(name, language)| {
            let loss = language.nll_sum / language.n_counted as f64;
            ((name.clone(), json!(loss)), (name.clone(), json!(language.n_counted)))
        })
        .unzip();
    let epochs: Map<String, Value> =
        facts.languages.iter().zip(&report.epochs).map(|(name, epochs)| (name.clone(), json!(epochs))).collect();
    let fields = json!({
        "loss": report.loss, "aux_loss": report.aux_loss, "grad_norm": report.grad_norm, "lr": lr,
        "loss_by_language": losses, "counted_by_language": counted, "epochs_by_language": epochs,
        "n_tokens": report.n_tokens, "n_counted": report.n_counted, "elapsed_s": report.elapsed_s,
        "tokens_per_s": work.tokens_per_s(), "flops_per_s": work.flops_per_s(facts), "mfu": work.mfu(facts),
        "peak_flops": facts.peak.as_ref().map(|peak| peak.flops_per_s),
        "peak_source": facts.peak.as_ref().map(|peak| &peak.source),
        "loader_wait_s": report.loader_wait_s, "loader_wait_share": work.loader_wait_share(),
        "comm_wait_s": report.comm_wait_s, "comm_share": work.comm_share(),
        "comm_bytes": report.comm_bytes, "comm_messages": report.comm_messages, "load_E": report.load_E,
    });
    fields.as_object().cloned().unwrap_or_default()
}

/// The passes over the text of the language that had most.
fn most(epochs: &[f64]) -> f64 {
    epochs.iter().copied().fold(0.0, f64::max)
}

/// The passes over each language's text, for people.
fn epochs_line(languages: &[String], epochs: &[f64]) -> String {
    let each: Vec<String> = languages.iter().zip(epochs).map(|(name, epochs)| format!("{name} {epochs:.2}")).collect();
    format!("epochs of each language: {}", each.join(", "))
}

/// A validation for people: the averages, then a line for each language.
fn validation_lines(values: &[(String, f64)]) -> Vec<String> {
    let of = |name: &str| values.iter().find(|(known, _)| known == name).map_or(f64::NAN, |(_, value)| *value);
    let line = |name: &str, end: &str| {
        let (loss, bits) = (of(&format!("loss{end}")), of(&format!("bits_per_byte{end}")));
        format!("  {name:<12} loss {loss:.4}, {bits:.4} bits per byte")
    };
    if values.is_empty() {
        return Vec::new();
    }
    let languages = values.iter().filter_map(|(name, _)| name.strip_prefix("loss/"));
    let heading = ["last validation:".to_owned(), line("all, macro", "")];
    heading.into_iter().chain(languages.map(|name| line(name, &format!("/{name}")))).collect()
}

fn progress_bar(n_steps: u64, next_step: u64) -> ProgressBar {
    let bar = ProgressBar::new(n_steps);
    if let Ok(style) = ProgressStyle::with_template("step {pos}/{len} {wide_bar} {msg}") {
        bar.set_style(style);
    }
    bar.set_position(next_step);
    bar
}

/// Rewrites `path` without lines of steps from `next_step` on and without torn lines.
fn drop_lines_from(path: &Path, next_step: u64) -> Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let mut kept = String::new();
    for line in BufReader::new(file).lines().map_while(|line| line.ok()) {
        let step = serde_json::from_str::<Value>(&line).ok().and_then(|value| value["step"].as_u64());
        if step.is_some_and(|step| step < next_step) {
            kept += &line;
            kept.push('\n');
        }
    }
    let part = path.with_extension("jsonl.part");
    std::fs::write(&part, kept)?;
    Ok(std::fs::rename(&part, path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::LanguageLoss;

    fn facts() -> Facts {
        let peak = Some(Peak { flops_per_s: 1e9, source: "products_peak".to_owned() });
        let languages = ["go", "lua", "python"].map(str::to_owned).to_vec();
        Facts {
            n_steps: 10,
            log_every_steps: 1,
            languages,
            moe_layers: vec![1, 3],
            flops_per_token: 1e6,
            peak,
            world: 1,
        }
    }

    fn line(text: &str, idx: usize) -> Value {
        serde_json::from_str(text.lines().nth(idx).unwrap()).unwrap()
    }

    #[test]
    fn steps_done_again_leave_one_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0, facts()).unwrap();
        for step in 0..6 {
            metrics.log_validation(step, &[("loss".to_owned(), 1.0)]).unwrap();
        }
        metrics.finish().unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("metrics.jsonl"))
            .and_then(|mut file| file.write_all(b"{\"kind\":\"tr"))
            .unwrap();
        Metrics::open(dir.path(), 4, facts()).unwrap().log_validation(4, &[]).unwrap();
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let steps: Vec<u64> = (0..text.lines().count()).map(|idx| line(&text, idx)["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_step_is_written_with_its_languages_and_layers() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0, facts()).unwrap();
        let language = |nll_sum, n_counted| LanguageLoss { nll_sum, n_counted };
        let report = StepReport {
            loss: 2.5,
            languages: vec![language(30.0, 10), language(0.0, 0), language(20.0, 10)],
            load_E: vec![vec![0.5, 0.5], vec![0.0, 1.0]],
            n_tokens: 50,
            elapsed_s: 0.5,
            loader_wait_s: 0.1,
            epochs: vec![1.25, 0.0, 0.5],
            ..StepReport::default()
        };
        metrics.log_step(0, (10, f64::INFINITY), 1e-3, &report).unwrap();
        metrics.finish().unwrap();
        let written = line(&std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap(), 0);
        assert_eq!(written["loss_by_language"], json!({"go": 3.0, "python": 2.0}));
        assert_eq!(written["counted_by_language"], json!({"go": 10, "python": 10}));
        assert_eq!(written["epochs_by_language"], json!({"go": 1.25, "lua": 0.0, "python": 0.5}));
        for (name, value) in [("tokens_per_s", 100.0), ("flops_per_s", 1e8), ("mfu", 0.1), ("loader_wait_share", 0.2)] {
            assert!((written[name].as_f64().unwrap() - value).abs() < 1e-9 * value, "{name}: {written}");
        }
        let file = dir.path().join("tensorboard").read_dir().unwrap().next().unwrap().unwrap().path();
        let events = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
        for tag in [
            "train/loss/go",
            "train/mfu",
            "train/load_max/3",
            "train/load_entropy/1",
            "train/overflow/1",
            "train/comm_share",
            "train/epochs/go",
        ] {
            assert!(events.contains(tag), "{tag}");
        }
        assert!(!events.contains("train/loss/lua") && !events.contains("counted_by_language"));
    }

    #[test]
    fn epochs_are_said_of_each_language() {
        let languages = ["go", "lua"].map(str::to_owned);
        assert_eq!(epochs_line(&languages, &[1.371, 0.0]), "epochs of each language: go 1.37, lua 0.00");
        assert_eq!((most(&[1.371, 0.0]), most(&[])), (1.371, 0.0));
    }

    #[test]
    fn a_validation_is_summed_up_by_language() {
        let values = [("loss", 2.0), ("bits_per_byte", 1.0), ("loss/lua", 1.5), ("bits_per_byte/lua", 0.75)];
        let lines = validation_lines(&values.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(
            lines[1..],
            ["  all, macro   loss 2.0000, 1.0000 bits per byte", "  lua          loss 1.5000, 0.7500 bits per byte"]
        );
        assert!(validation_lines(&[]).is_empty());
    }
}
