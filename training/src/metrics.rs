//! What a run reports: `metrics.jsonl`, TensorBoard events, and one line on the terminal.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

pub mod tensorboard;

use crate::step::StepReport;
use tensorboard::EventWriter;

/// Where numbers go.
pub struct Metrics {
    files: Option<Files>,
    progress: Option<ProgressBar>,
    log_every_steps: u64,
    smooth_tokens_per_s: Option<f64>,
}

struct Files {
    path: PathBuf,
    jsonl: File,
    events: EventWriter,
}

impl Metrics {
    /// Says nothing and writes nothing: for every rank but the first.
    pub fn silent() -> Metrics {
        Metrics { files: None, progress: None, log_every_steps: u64::MAX, smooth_tokens_per_s: None }
    }

    /// Opens `metrics.jsonl` and `tensorboard/` in `folder`. Lines of steps that will be done again (`>= next_step`) are removed.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn open(folder: &Path, next_step: u64, n_steps: u64, log_every_steps: u64) -> Result<Metrics> {
        let path = folder.join("metrics.jsonl");
        drop_lines_from(&path, next_step).with_context(|| path.display().to_string())?;
        let jsonl = OpenOptions::new().create(true).append(true).open(&path);
        let jsonl = jsonl.with_context(|| path.display().to_string())?;
        let events = EventWriter::create(&folder.join("tensorboard"))?;
        let progress = std::io::stderr().is_terminal().then(|| progress_bar(n_steps, next_step));
        let files = Some(Files { path, jsonl, events });
        Ok(Metrics { files, progress, log_every_steps, smooth_tokens_per_s: None })
    }

    /// Records one optimizer step.
    pub fn log_step(&mut self, step: u64, n_steps: u64, lr: f64, report: &StepReport) -> Result<()> {
        if self.files.is_none() {
            return Ok(());
        }
        let tokens_per_s = report.n_tokens as f64 / report.elapsed_s.max(1e-9);
        let fields = json!({
            "loss": report.loss, "aux_loss": report.aux_loss, "grad_norm": report.grad_norm, "lr": lr,
            "n_tokens": report.n_tokens, "n_counted": report.n_counted, "tokens_per_s": tokens_per_s,
            "elapsed_s": report.elapsed_s, "loader_wait_s": report.loader_wait_s, "load_E": report.load_E,
            "comm_bytes": report.comm_bytes, "comm_messages": report.comm_messages, "comm_wait_s": report.comm_wait_s,
        });
        self.record("train", step, fields)?;
        let smooth = self.smooth_tokens_per_s.map_or(tokens_per_s, |smooth| 0.95 * smooth + 0.05 * tokens_per_s);
        self.smooth_tokens_per_s = Some(smooth);
        let eta_s = n_steps.saturating_sub(step + 1) as f64 * report.n_tokens as f64 / smooth;
        let line = format!("loss {:.4}  lr {lr:.2e}  {smooth:.0} tokens/s  eta {}", report.loss, duration(eta_s));
        match &self.progress {
            Some(bar) => {
                bar.set_length(n_steps);
                bar.set_position(step + 1);
                bar.set_message(line);
            }
            None if (step + 1).is_multiple_of(self.log_every_steps.max(1)) || step == 0 => {
                eprintln!("step {}/{n_steps}  {line}", step + 1);
            }
            None => {}
        }
        Ok(())
    }

    /// Records named numbers (`loss`, `loss/python`, ...) of a kind (`valid`).
    pub fn log_values(&mut self, kind: &str, step: u64, values: &[(String, f64)]) -> Result<()> {
        let fields: Map<String, Value> = values.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        self.record(kind, step, Value::Object(fields))
    }

    /// Shows a message without breaking the progress line.
    pub fn note(&self, message: &str) {
        match &self.progress {
            Some(bar) => bar.suspend(|| eprintln!("{message}")),
            None if self.files.is_some() => eprintln!("{message}"),
            None => {}
        }
    }

    /// Brings everything onto the disk.
    pub fn flush(&mut self) -> Result<()> {
        let Some(Files { path, jsonl, events }) = &mut self.files else { return Ok(()) };
        jsonl.sync_data().with_context(|| path.display().to_string())?;
        events.flush()
    }

    /// Removes the progress line.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(bar) = self.progress.take() {
            bar.finish_and_clear();
        }
        self.flush()
    }

    fn record(&mut self, kind: &str, step: u64, fields: Value) -> Result<()> {
        let Some(Files { path, jsonl, events }) = &mut self.files else { return Ok(()) };
        let mut line = json!({"kind": kind, "step": step});
        if let (Some(line), Some(fields)) = (line.as_object_mut(), fields.as_object()) {
            line.extend(fields.clone());
            let numbers = fields.iter().filter_map(|(name, value)| Some((name, value.as_f64()?)));
            for (name, value) in numbers {
                events.scalar(&format!("{kind}/{name}"), step, value as f32)?;
            }
        }
        // One write a line: a killed run leaves at most its last line torn.
        jsonl.write_all(format!("{line}\n").as_bytes()).with_context(|| path.display().to_string())
    }
}

fn progress_bar(n_steps: u64, next_step: u64) -> ProgressBar {
    let bar = ProgressBar::new(n_steps);
    if let Ok(style) = ProgressStyle::with_template("step {pos}/{len} {wide_bar} {msg}") {
        bar.set_style(style);
    }
    bar.set_position(next_step);
    bar
}

fn duration(seconds: f64) -> String {
    let s = seconds as u64;
    match (s / 3600, s / 60 % 60) {
        (0, 0) => format!("{s}s"),
        (0, m) => format!("{m}m{:02}s", s % 60),
        (h, m) => format!("{h}h{m:02}m"),
    }
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

    #[test]
    fn steps_done_again_leave_one_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 0, 10, 1).unwrap();
        for step in 0..6 {
            metrics.log_values("valid", step, &[("loss".to_owned(), 1.0)]).unwrap();
        }
        metrics.finish().unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("metrics.jsonl"))
            .and_then(|mut file| file.write_all(b"{\"kind\":\"tr"))
            .unwrap();
        Metrics::open(dir.path(), 4, 10, 1).unwrap().log_values("valid", 4, &[]).unwrap();
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let steps: Vec<u64> =
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(["5s", "2m05s", "3h02m"], [duration(5.4), duration(125.0), duration(3.0 * 3600.0 + 130.0)]);
    }
}
