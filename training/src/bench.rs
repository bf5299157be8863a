//! Training steps of several implementations, measured in turn.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::{Compute, RunConfig};
use crate::device::DeviceKind;
use crate::report::table::Cells;

pub mod torch;
pub mod worker;

use torch::Torch;
use worker::Job;

/// One thing to measure.
#[derive(Clone, Debug)]
pub struct Variant {
    pub name: String,
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
    /// Largest resident memory.
    pub peak_bytes: u64,
    pub n_parameters: usize,
    /// Seconds of each kind of operation in a timed step, the longest first.
    #[serde(default)]
    pub profile: Vec<(String, f64)>,
}

/// All rounds of a variant.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
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
}

/// What was measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub rounds: usize,
    pub rows: Vec<Row>,
}

/// Measures every variant once a round, each in a process of its own.
///
/// # Errors
/// A process that fails, with what it said.
pub fn compare(
    variants: &[Variant],
    rounds: usize,
    steps: usize,
    threads: usize,
    report: &mut dyn FnMut(String),
) -> Result<Comparison> {
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); variants.len()];
    for round in 1..=rounds {
        for (variant, measured) in variants.iter().zip(&mut measured) {
            let result = variant.measure(steps, threads)?;
            let (name, compute) = (&variant.name, variant.compute.name());
            report(format!("round {round}/{rounds}: {name} {compute}: {:.3} s a step", median(&result.seconds)));
            measured.push(result);
        }
    }
    let rows = variants.iter().zip(measured).map(|(variant, measured)| variant.row(&measured)).collect();
    Ok(Comparison { rounds, rows })
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
                format!("{:.3}", row.seconds),
                format!("{least:.3}..{most:.3}"),
                format!("{:.0}", row.tokens_per_s),
                format!("{:.0}", row.flops_per_s / 1e9),
                format!("{:.0}", row.peak_bytes as f64 / 1e6),
                format!("{:.2}->{:.2}", row.first_loss, row.last_loss),
            ]);
        }
        cells
    }

    /// How our variants stand beside the best peer of the same compute, and beside our first of it.
    pub fn notes(&self) -> Vec<String> {
        let (ours, peers): (Vec<&Row>, Vec<&Row>) =
            self.rows.iter().partition(|row| row.name.starts_with("multicoder"));
        let mut notes = Vec::new();
        for row in &ours {
            let same = |other: &&&Row| other.compute == row.compute;
            let peer = peers.iter().filter(same).min_by(|a, b| a.seconds.total_cmp(&b.seconds));
            notes.extend(peer.map(|peer| relation(row, peer)));
            let first = ours.iter().find(same).filter(|first| first.name != row.name);
            notes.extend(first.map(|first| relation(row, first)));
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

    fn row(name: &str, compute: Compute, seconds: f64) -> Row {
        Row {
            name: name.to_owned(),
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
        }
    }

    #[test]
    fn ours_is_compared_with_the_best_peer_of_its_own_compute() {
        let rows = vec![
            row("multicoder", Compute::F32, 0.5),
            row("torch eager", Compute::F32, 1.0),
            row("torch compile", Compute::F32, 0.75),
            row("torch compile", Compute::Bf16, 0.1),
        ];
        let notes = Comparison { rounds: 1, rows }.notes();
        assert_eq!(notes, ["multicoder f32: 1.50 times the tokens of torch compile and 0.67 times its memory"]);
    }

    #[test]
    fn medians() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[2.0, 1.0])), (2.0, 2.0));
        assert!(median(&[]).is_nan());
    }
}
