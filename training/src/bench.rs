//! Training steps of several implementations, measured in turn.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{Compute, RunConfig};
use crate::device::DeviceKind;
use crate::report::table::Cells;

pub mod dispatch;
pub mod torch;
pub mod worker;

use torch::Torch;
use worker::Job;

/// Which model a variant trains: speeds of the same one are compared, and of a model by language with that of one by token.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// The one that was asked for.
    Asked,
    /// A dense one with as many active parameters.
    DenseTwin,
    /// The same with a router that reads tokens.
    TokenRouter,
    /// The same with a router that the name of the variant tells.
    OtherRouter,
}

/// One thing to measure.
#[derive(Clone, Debug)]
pub struct Variant {
    pub name: String,
    pub model: Model,
    pub compute: Compute,
    pub program: Program,
    pub config: RunConfig,
    pub device: DeviceKind,
}

/// Who runs the steps.
#[derive(Clone, Debug)]
pub enum Program {
    Multicoder { checkpoint_activations: bool },
    Torch { torch: Option<Torch>, mode: &'static str },
}

/// What a process measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measured {
    /// Wall time of each timed step.
    pub seconds: Vec<f64>,
    pub first_loss: f64,
    pub last_loss: f64,
    /// Largest resident memory; of steps on a GPU, the most that was allocated there.
    pub peak_bytes: u64,
    pub n_parameters: usize,
    /// Seconds of each kind of operation in a timed step, the longest first.
    #[serde(default)]
    pub profile: Vec<(String, f64)>,
}

/// All rounds of a variant.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    pub name: String,
    pub model: Model,
    pub compute: Compute,
    pub tokens_per_step: usize,
    /// Median step of each round.
    pub round_seconds: Vec<f64>,
    /// Median of the rounds.
    pub seconds: f64,
    pub tokens_per_s: f64,
    /// Floating-point operations a second, of the products and attention (causal) alone.
    pub flops_per_s: f64,
    pub peak_bytes: u64,
    pub first_loss: f64,
    pub last_loss: f64,
    pub profile: Vec<(String, f64)>,
    /// What each round measured.
    pub measured: Vec<Measured>,
}

/// What was measured, in one run or several that went on with each other's rounds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Comparison {
    /// Stands for variants, steps and threads: rounds of the same can be put together.
    pub settings: String,
    pub rounds: usize,
    pub rows: Vec<Row>,
}

/// How variants are measured.
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'a> {
    pub rounds: usize,
    pub steps: usize,
    pub threads: usize,
    /// Where the rounds so far are kept: written after each, and gone on from where they are there already.
    pub out: Option<&'a Path>,
}

/// Measures every variant once a round, each in a process of its own.
///
/// # Errors
/// A process that fails, with what it said; a file that holds rounds of something else, or cannot be written.
pub fn compare(variants: &[Variant], plan: &Rounds, report: &mut dyn FnMut(String)) -> Result<Comparison> {
    let settings = settings(variants, plan)?;
    let mut measured = plan.out.map_or(Ok(None), |path| rounds_so_far(path, &settings))?;
    let measured = measured.get_or_insert_with(|| vec![Vec::new(); variants.len()]);
    let done = measured.first().map_or(0, Vec::len);
    for round in done + 1..=plan.rounds {
        for (variant, measured) in variants.iter().zip(&mut *measured) {
            let result = variant.measure(plan.steps, plan.threads)?;
            let (name, compute, rounds) = (&variant.name, variant.compute.name(), plan.rounds);
            report(format!("round {round}/{rounds}: {name} {compute}: {:.4} s a step", median(&result.seconds)));
            measured.push(result);
        }
        let comparison = comparison(variants, measured, &settings);
        plan.out.map_or(Ok(()), |path| write(path, &comparison))?;
    }
    Ok(comparison(variants, measured, &settings))
}

fn comparison(variants: &[Variant], measured: &[Vec<Measured>], settings: &str) -> Comparison {
    let rows = variants.iter().zip(measured).map(|(variant, measured)| variant.row(measured)).collect();
    Comparison { settings: settings.to_owned(), rounds: measured.first().map_or(0, Vec::len), rows }
}

/// All that a round depends on but the programs themselves.
fn settings(variants: &[Variant], plan: &Rounds) -> Result<String> {
    let mut text = format!("{} {}", plan.steps, plan.threads);
    for Variant { name, compute, config, device, .. } in variants {
        text += &format!("\n{name} {} {}\n{}", compute.name(), device.name(), config.to_toml()?);
    }
    Ok(format!("{:016x}", xxh3_64(text.as_bytes())))
}

/// What the rounds in the file have measured, by variant; none where there is no file.
fn rounds_so_far(path: &Path, settings: &str) -> Result<Option<Vec<Vec<Measured>>>> {
    let Ok(text) = std::fs::read(path) else { return Ok(None) };
    let origin = || path.display().to_string();
    let comparison: Comparison = serde_json::from_slice(&text).with_context(origin)?;
    ensure!(
        comparison.settings == settings,
        "{}: it holds other models, steps or threads; expected rounds of the same, or no file",
        origin()
    );
    Ok(Some(comparison.rows.into_iter().map(|row| row.measured).collect()))
}

fn write(path: &Path, comparison: &Comparison) -> Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, serde_json::to_vec_pretty(comparison)?).with_context(|| part.display().to_string())?;
    std::fs::rename(&part, path).with_context(|| path.display().to_string())
}

impl Variant {
    fn measure(&self, steps: usize, threads: usize) -> Result<Measured> {
        let mut command = match &self.program {
            Program::Multicoder { checkpoint_activations } => {
                let (model, optimizer) = (self.config.model.clone(), self.config.optimizer.clone());
                let (batch, sequence) = (self.config.micro_batch_sequences(), self.config.data.sequence_tokens);
                let (compute, checkpoint_activations) = (self.compute, *checkpoint_activations);
                let device = self.device;
                let job = Job { model, optimizer, batch, sequence, compute, checkpoint_activations, steps, device };
                let mut command = Command::new(std::env::current_exe().context("own program")?);
                command.args(["bench", "worker", &serde_json::to_string(&job)?]);
                command.env("RAYON_NUM_THREADS", threads.to_string());
                command
            }
            Program::Torch { torch, mode } => {
                let torch = torch.as_ref().context("no PyTorch")?;
                torch.command(self, mode, steps, threads)?
            }
        };
        let output = command.output().with_context(|| format!("{}: cannot start", self.name))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} failed ({}):\n{}", self.name, output.status, stderr.trim_end());
        let stdout = String::from_utf8_lossy(&output.stdout);
        let line = stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("{}: unexpected output {line:?}", self.name))
    }

    fn row(&self, measured: &[Measured]) -> Row {
        let round_seconds: Vec<f64> = measured.iter().map(|measured| median(&measured.seconds)).collect();
        let seconds = median(&round_seconds);
        let sequence = self.config.data.sequence_tokens;
        let tokens_per_step = self.config.micro_batch_sequences() * sequence;
        let tokens_per_s = tokens_per_step as f64 / seconds;
        let last = &measured[measured.len() - 1];
        Row {
            name: self.name.clone(),
            model: self.model,
            compute: self.compute,
            tokens_per_step,
            seconds,
            tokens_per_s,
            flops_per_s: 3.0 * self.config.model.flops_per_token(sequence / 2) as f64 * tokens_per_s,
            peak_bytes: measured.iter().map(|measured| measured.peak_bytes).max().unwrap_or(0),
            first_loss: last.first_loss,
            last_loss: last.last_loss,
            profile: last.profile.clone(),
            round_seconds,
            measured: measured.to_vec(),
        }
    }
}

impl Comparison {
    /// The table for the terminal.
    pub fn cells(&self) -> Cells {
        let heading = ["variant", "compute", "s/step", "least..most", "tokens/s", "GFLOP/s", "peak MB", "loss"];
        let mut cells = vec![heading.map(str::to_owned).to_vec()];
        for row in &self.rows {
            let (least, most) = (fold(&row.round_seconds, f64::min), fold(&row.round_seconds, f64::max));
            cells.push(vec![
                row.name.clone(),
                row.compute.name().to_owned(),
                format!("{:.4}", row.seconds),
                format!("{least:.4}..{most:.4}"),
                format!("{:.0}", row.tokens_per_s),
                format!("{:.0}", row.flops_per_s / 1e9),
                format!("{:.0}", row.peak_bytes as f64 / 1e6),
                format!("{:.2}->{:.2}", row.first_loss, row.last_loss),
            ]);
        }
        cells
    }

    /// How our variants stand beside the fastest peer of the same model, one by token, and our first variant; of the same compute.
    pub fn notes(&self) -> Vec<String> {
        let (ours, peers): (Vec<&Row>, Vec<&Row>) =
            self.rows.iter().partition(|row| row.name.starts_with("multicoder"));
        let mut notes = Vec::new();
        for row in &ours {
            let fastest = |model: Model| {
                let same = |peer: &&&Row| peer.compute == row.compute && peer.model == model;
                peers.iter().filter(same).min_by(|a, b| a.seconds.total_cmp(&b.seconds)).copied()
            };
            let by_token = fastest(Model::TokenRouter).filter(|_| row.model == Model::Asked);
            let first = ours.iter().find(|first| first.compute == row.compute && first.name != row.name);
            let first = first.filter(|_| row.name != ours[0].name).copied();
            let others = [fastest(row.model), by_token, first];
            notes.extend(others.into_iter().flatten().map(|other| relation(row, other)));
        }
        notes
    }

    /// Share of each kind of operation, for rows that know it.
    pub fn profiles(&self) -> Vec<String> {
        let profile = |row: &Row| {
            let total: f64 = row.profile.iter().map(|(_, seconds)| seconds).sum();
            let shares = row.profile.iter().map(|(name, s)| format!("{name} {:.1} % ({s:.3} s)", s / total * 100.0));
            format!("{} {}: {}", row.name, row.compute.name(), shares.collect::<Vec<_>>().join(", "))
        };
        self.rows.iter().filter(|row| !row.profile.is_empty()).map(profile).collect()
    }
}

fn relation(row: &Row, other: &Row) -> String {
    format!(
        "{} {}: {:.2} times the tokens of {} and {:.2} times its memory",
        row.name,
        row.compute.name(),
        row.tokens_per_s / other.tokens_per_s,
        other.name,
        row.peak_bytes as f64 / other.peak_bytes as f64
    )
}

fn fold(values: &[f64], f: fn(f64, f64) -> f64) -> f64 {
    values.iter().copied().reduce(f).unwrap_or(f64::NAN)
}

/// The middle value; the upper one of two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, model: Model, compute: Compute, seconds: f64) -> Row {
        Row {
            name: name.to_owned(),
            model,
            compute,
            tokens_per_step: 100,
            round_seconds: vec![seconds],
            seconds,
            tokens_per_s: 100.0 / seconds,
            flops_per_s: 1e9,
            peak_bytes: (seconds * 1e6) as u64,
            first_loss: 9.0,
            last_loss: 5.0,
            profile: Vec::new(),
            measured: Vec::new(),
        }
    }

    fn notes(rows: Vec<Row>) -> Vec<String> {
        Comparison { settings: String::new(), rounds: 1, rows }.notes()
    }

    #[test]
    fn ours_is_compared_with_the_best_peer_of_its_own_compute() {
        let rows = vec![
            row("multicoder", Model::Asked, Compute::F32, 0.5),
            row("torch eager", Model::Asked, Compute::F32, 1.0),
            row("torch compile", Model::Asked, Compute::F32, 0.75),
            row("torch compile", Model::Asked, Compute::Bf16, 0.1),
        ];
        assert_eq!(notes(rows), ["multicoder f32: 1.50 times the tokens of torch compile and 0.67 times its memory"]);
    }

    #[test]
    fn like_is_compared_with_like() {
        let rows = vec![
            row("multicoder", Model::Asked, Compute::Bf16, 0.5),
            row("multicoder, dense twin", Model::DenseTwin, Compute::Bf16, 0.4),
            row("torch compile", Model::Asked, Compute::Bf16, 0.75),
            row("torch compile, dense twin", Model::DenseTwin, Compute::Bf16, 0.48),
            row("torch compile, token router", Model::TokenRouter, Compute::Bf16, 1.0),
        ];
        let said = notes(rows);
        let beside: Vec<&str> = said.iter().map(|note| note.split(" and ").next().unwrap()).collect();
        let expected = [
            "multicoder bf16: 1.50 times the tokens of torch compile",
            "multicoder bf16: 2.00 times the tokens of torch compile, token router",
            "multicoder, dense twin bf16: 1.20 times the tokens of torch compile, dense twin",
            "multicoder, dense twin bf16: 1.25 times the tokens of multicoder",
        ];
        assert_eq!(beside, expected);
    }

    #[test]
    fn rounds_of_something_else_are_not_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench.json");
        assert!(rounds_so_far(&path, "a").unwrap().is_none());
        write(&path, &Comparison { settings: "a".to_owned(), rounds: 0, rows: Vec::new() }).unwrap();
        assert!(rounds_so_far(&path, "a").unwrap().unwrap().is_empty());
        let error = rounds_so_far(&path, "b").unwrap_err().to_string();
        assert!(error.contains("it holds other models, steps or threads"), "{error}");
    }

    #[test]
    fn medians() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[2.0, 1.0])), (2.0, 2.0));
        assert!(median(&[]).is_nan());
    }
}
