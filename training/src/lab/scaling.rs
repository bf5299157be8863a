//! From results at several amounts of compute, what more of it would bring. Pure.

use serde::Serialize;

use super::summary::VariantSummary;

/// Irreducible bits that are tried between no bits and the fewest that were measured.
const N_TRIED: usize = 200;
/// A backward pass is two forward passes more.
const PASSES: f64 = 3.0;
/// Points that a law needs: it has three numbers of its own.
const MIN_POINTS: usize = 4;

/// A model, by what it cost and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Name of the variant.
    pub name: String,
    /// FLOPs of its training.
    pub flops: f64,
    /// Bits per byte, macro average.
    pub bits: f64,
}

impl Point {
    /// The point of a variant's mean.
    pub fn of(summary: &VariantSummary) -> Point {
        let flops = PASSES * summary.flops_per_token * summary.n_train_tokens as f64;
        Point { name: summary.name.clone(), flops, bits: summary.macro_average.mean }
    }
}

/// `bits = irreducible + factor · FLOPs^-exponent` (Henighan et al. 2020, arXiv 2010.14701, eq. 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Law {
    /// Bits that no compute takes away.
    pub irreducible: f64,
    /// Bits above it at one FLOP.
    pub factor: f64,
    /// How fast they fall.
    pub exponent: f64,
    /// Root mean square error at the points, in bits.
    pub rmse: f64,
}

impl Law {
    /// Bits per byte at so many FLOPs of training.
    pub fn bits(&self, flops: f64) -> f64 {
        self.irreducible + self.factor * flops.powf(-self.exponent)
    }
}

/// The points that no cheaper one beats, by compute.
pub fn frontier(points: &[Point]) -> Vec<Point> {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.flops.total_cmp(&b.flops).then(a.bits.total_cmp(&b.bits)));
    let mut best = f64::INFINITY;
    sorted.retain(|point| {
        let is_best = point.bits < best;
        best = best.min(point.bits);
        is_best
    });
    sorted
}

/// The laws nearest to the points: with the irreducible bits that fit best, and with none, which is the least that a law can promise to
/// leave. Neither is a bound: few points, of one recipe, say little about what is ten times as far. None for fewer than four points.
pub fn laws(points: &[Point]) -> Option<[Law; 2]> {
    if points.len() < MIN_POINTS {
        return None;
    }
    let fewest = points.iter().map(|point| point.bits).fold(f64::INFINITY, f64::min);
    let tried = (0..N_TRIED).map(|n| fewest * n as f64 / N_TRIED as f64);
    let best = tried.map(|irreducible| above(irreducible, points)).min_by(|a, b| a.rmse.total_cmp(&b.rmse))?;
    Some([best, above(0.0, points)])
}

/// The laws in words.
pub fn forecast(laws: &[Law; 2], last: &Point) -> String {
    let [best, none] = laws;
    let ahead = 10.0 * last.flops;
    format!(
        "{}: {:.3} bits at {:.2e} FLOPs of training; a law with {:.2} irreducible bits (exponent {:.3}, RMSE {:.4}) says {:.3} for ten times \
         that, one with none (exponent {:.3}, RMSE {:.4}) {:.3}",
        last.name,
        last.bits,
        last.flops,
        best.irreducible,
        best.exponent,
        best.rmse,
        best.bits(ahead),
        none.exponent,
        none.rmse,
        none.bits(ahead)
    )
}

/// The law above so many irreducible bits: a line between logarithms.
fn above(irreducible: f64, points: &[Point]) -> Law {
    let n = points.len() as f64;
    let logs: Vec<(f64, f64)> =
        points.iter().map(|point| (point.flops.ln(), (point.bits - irreducible).ln())).collect();
    let mean = |value: fn(&(f64, f64)) -> f64| logs.iter().map(value).sum::<f64>() / n;
    let (x, y) = (mean(|log| log.0), mean(|log| log.1));
    let covariance: f64 = logs.iter().map(|log| (log.0 - x) * (log.1 - y)).sum();
    let variance: f64 = logs.iter().map(|log| (log.0 - x).powi(2)).sum();
    let slope = if variance > 0.0 { covariance / variance } else { 0.0 };
    let law = Law { irreducible, factor: (y - slope * x).exp(), exponent: -slope, rmse: 0.0 };
    let squares: f64 = points.iter().map(|point| (law.bits(point.flops) - point.bits).powi(2)).sum();
    Law { rmse: (squares / n).sqrt(), ..law }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(flops: f64, bits: f64) -> Point {
        Point { name: format!("{flops:e}"), flops, bits }
    }

    #[test]
    fn a_law_is_found_again_in_points_that_obey_it() {
        let truth = Law { irreducible: 0.6, factor: 900.0, exponent: 0.2, rmse: 0.0 };
        let points: Vec<Point> = (12..17).map(|n| 10f64.powi(n)).map(|c| point(c, truth.bits(c))).collect();
        let [law, straight] = laws(&points).unwrap();
        assert!(
            (law.irreducible - 0.6).abs() < 0.01 && (law.exponent - 0.2).abs() < 0.01 && law.rmse < 1e-3,
            "{law:?}"
        );
        assert!((law.bits(1e18) - truth.bits(1e18)).abs() < 0.01);
        // Without irreducible bits the same points promise more.
        assert!(straight.bits(1e18) < law.bits(1e18) && straight.rmse > law.rmse, "{straight:?}");
        assert!(laws(&points[..3]).is_none());
    }

    #[test]
    fn the_frontier_leaves_out_what_a_cheaper_model_beats() {
        let points = [point(4.0, 1.5), point(1.0, 2.0), point(2.0, 1.4), point(3.0, 1.4), point(5.0, 1.2)];
        let flops: Vec<f64> = frontier(&points).iter().map(|point| point.flops).collect();
        assert_eq!(flops, [1.0, 2.0, 5.0]);
    }
}
