//! Ways of computing a layer of experts, measured in turn over loads that are more and more unlike.
#![allow(non_snake_case)]

use std::time::Instant;

use anyhow::{Result, ensure};
use multicoder_model::dispatch::{Dispatch, ExpertMatrices};
use serde::Serialize;

use super::median;
use crate::report::table::Cells;

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Layer {
    /// Tokens of a batch.
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Experts.
    #[arg(long, default_value_t = 8)]
    experts: usize,
    /// Width of the model.
    #[arg(long, default_value_t = 256)]
    d_model: usize,
    /// Hidden width of an expert.
    #[arg(long, default_value_t = 1024)]
    d_ff: usize,
    /// Shares of the tokens that one expert has; the others share the rest evenly.
    #[arg(long, value_delimiter = ',', default_value = "0.125,0.25,0.5,0.75,1")]
    shares: Vec<f64>,
    /// Capacities to measure, in mean loads.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    capacities: Vec<f64>,
    /// Rows of blocks to measure.
    #[arg(long, value_delimiter = ',', default_value = "16,64,128")]
    blocks: Vec<usize>,
    /// Rounds: each measures every way once, one after the other.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// One way with one load.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// Of the tokens, that of the expert that has most.
    pub largest_share: f64,
    pub name: String,
    /// Median of the rounds, forward and backward.
    pub seconds: f64,
    /// How much longer it takes than grouped products with the same loads.
    pub ratio: f64,
    /// Rows that were multiplied, those of zeros too.
    pub n_rows: usize,
    pub n_dropped: usize,
}

/// Measures all ways with all loads.
///
/// # Errors
/// Sizes that make no layer.
pub fn measure(layer: &Layer, report: &mut dyn FnMut(String)) -> Result<Vec<Timing>> {
    ensure!(layer.tokens > 0 && layer.experts > 0, "--tokens and --experts: expected at least 1");
    ensure!(layer.rounds > 0, "--rounds: expected at least 1");
    let ways = [Dispatch::Grouped, Dispatch::Naive].into_iter();
    let ways = ways.chain(layer.capacities.iter().map(|&factor| Dispatch::Padded { factor }));
    let ways: Vec<Dispatch> = ways.chain(layer.blocks.iter().map(|&block| Dispatch::BlockSparse { block })).collect();
    let mut timings = Vec::new();
    for &share in &layer.shares {
        ensure!((0.0..=1.0).contains(&share), "--shares: {share}: expected 0 to 1");
        let of_share = layer.measure_share(share, &ways)?;
        report(format!(
            "largest share {:.0} %: {:.2} ms grouped",
            100.0 * of_share[0].largest_share,
            1e3 * of_share[0].seconds
        ));
        timings.extend(of_share);
    }
    Ok(timings)
}

impl Layer {
    fn measure_share(&self, share: f64, ways: &[Dispatch]) -> Result<Vec<Timing>> {
        let (n, w) = (self.tokens * self.d_model, self.experts * self.d_model * self.d_ff);
        let [x_ND, dy_ND] = [1, 2].map(|seed| numbers(n, seed));
        let [up_EFD, down_EDF] = [3, 4].map(|seed| numbers(w, seed));
        let (n_experts, d, f) = (self.experts, self.d_model, self.d_ff);
        let experts = ExpertMatrices { n_experts, d, f, up_EFD: &up_EFD, down_EDF: &down_EDF };
        let expert_N = self.experts_of(share);
        let mut seconds = vec![Vec::new(); ways.len()];
        let mut counts = vec![(0, 0); ways.len()];
        // The first round warms up.
        for round in 0..=self.rounds {
            for (i, way) in ways.iter().enumerate() {
                let start = Instant::now();
                let computed = way.run(&x_ND, &expert_N, &experts, &dy_ND)?;
                if round > 0 {
                    seconds[i].push(start.elapsed().as_secs_f64());
                }
                counts[i] = (computed.n_rows, computed.n_dropped);
            }
        }
        let load = |expert: u32| expert_N.iter().filter(|&&of| of == expert).count();
        let most = (0..self.experts as u32).map(load).max().unwrap_or(0);
        let grouped = median(&seconds[0]);
        let timing = |(way, (seconds, (n_rows, n_dropped))): (&Dispatch, (&Vec<f64>, (usize, usize)))| Timing {
            largest_share: most as f64 / self.tokens as f64,
            name: way.name(),
            seconds: median(seconds),
            ratio: median(seconds) / grouped,
            n_rows,
            n_dropped,
        };
        Ok(ways.iter().zip(seconds.iter().zip(counts)).map(timing).collect())
    }

    /// The expert of each token, `share` of all the first one, in an order that mixes them.
    fn experts_of(&self, share: f64) -> Vec<u32> {
        let n_first = (share * self.tokens as f64).round() as usize;
        let others = (self.experts - 1).max(1);
        let expert = |i: usize| if i < n_first || self.experts == 1 { 0 } else { (1 + i % others) as u32 };
        let stride = (self.tokens / 2 + 1..).find(|stride| gcd(*stride, self.tokens) == 1).unwrap_or(1);
        (0..self.tokens).map(|i| expert(i * stride % self.tokens)).collect()
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Numbers between -0.5 and 0.5 that look random.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let number = |i: u32| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) % 2001) as f32 / 2000.0 - 0.5;
    (0..n as u32).map(number).collect()
}

/// A row for each load, a column for each way.
pub fn cells(timings: &[Timing]) -> Cells {
    let rows: Vec<&[Timing]> = timings.chunk_by(|a, b| a.largest_share == b.largest_share).collect();
    let first = rows.first().copied().unwrap_or_default();
    let title = |of: &Timing| if of.name == "grouped" { "grouped, ms".to_owned() } else { of.name.clone() };
    let mut cells =
        vec![std::iter::once("largest share".to_owned()).chain(first.iter().map(title)).collect::<Vec<_>>()];
    let figure = |of: &Timing| match (of.name.as_str(), of.n_dropped) {
        ("grouped", _) => format!("{:.2}", 1e3 * of.seconds),
        (_, 0) => format!("{:.2}x", of.ratio),
        (_, dropped) => format!("{:.2}x, {dropped} dropped", of.ratio),
    };
    cells.extend(rows.into_iter().map(|row| {
        let share = row.first().map_or(0.0, |of| 100.0 * of.largest_share);
        std::iter::once(format!("{share:.0} %")).chain(row.iter().map(figure)).collect()
    }));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        layer: Layer,
    }

    #[test]
    fn every_way_is_measured_with_every_load() {
        let arguments =
            "bench --tokens 40 --experts 4 --d-model 8 --d-ff 8 --shares 0.25,1 --capacities 1 --blocks 16 --rounds 1";
        let layer = Line::parse_from(arguments.split(' ')).layer;
        let even = layer.experts_of(0.25);
        assert_eq!((0..4).map(|e| even.iter().filter(|of| **of == e).count()).collect::<Vec<_>>(), [10; 4]);
        assert_eq!(layer.experts_of(1.0), [0; 40]);
        let timings = measure(&layer, &mut |_| ()).unwrap();
        let counts: Vec<_> = timings.iter().map(|of| (of.name.as_str(), of.n_rows, of.n_dropped)).collect();
        let even = [("grouped", 40, 0), ("one token at a time", 40, 0), ("capacity 1", 40, 0), ("blocks of 16", 64, 0)];
        let all_in_one =
            [("grouped", 40, 0), ("one token at a time", 40, 0), ("capacity 1", 40, 30), ("blocks of 16", 48, 0)];
        assert_eq!(counts, [even, all_in_one].concat());
        let cells = cells(&timings);
        assert_eq!((cells.len(), cells[0].len(), cells[1][0].as_str(), cells[2][0].as_str()), (3, 5, "25 %", "100 %"));
        assert!(cells[2][3].ends_with("x, 30 dropped"), "{cells:?}");
        let none = Line::parse_from(["bench", "--tokens", "0"]).layer;
        assert!(measure(&none, &mut |_| ()).unwrap_err().to_string().contains("--tokens"));
    }
}
