//! From results at several amounts of compute, what more of it would bring. Pure.

use serde::Serialize;

use super::summary::VariantSummary;

/// Floors that are tried between no bits and the fewest that were measured.
const N_FLOORS: usize = 200;
/// A backward pass is two forward passes more.
const PASSES: f64 = 3.0;
/// Points that a law needs: it has three numbers of its own.
const MIN_POINTS: usize = 4;

/// A model, by what it cost and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Name of the variant.
    pub name: String,
    /// Operations of its training.
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

/// `bits = floor + factor · flops^-exponent` (Hoffmann et al. 2022, arXiv 2203.15556, eq. 10, along the best use of compute).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Law {
    /// Bits that no compute takes away.
    pub floor: f64,
    /// Bits above it at one operation.
    pub factor: f64,
    /// How fast they fall.
    pub exponent: f64,
    /// Root mean square distance from the points, in bits.
    pub error: f64,
}

impl Law {
    /// Bits per byte at so many operations.
    pub fn bits(&self, flops: f64) -> f64 {
        self.floor + self.factor * flops.powf(-self.exponent)
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

/// The laws nearest to the points: with the floor that fits best, and with none. What lies beyond the points is between the two, if it
/// goes on as it did. None for fewer than four points.
pub fn laws(points: &[Point]) -> Option<[Law; 2]> {
    if points.len() < MIN_POINTS {
        return None;
    }
    let fewest = points.iter().map(|point| point.bits).fold(f64::INFINITY, f64::min);
    let floors = (0..N_FLOORS).map(|n| fewest * n as f64 / N_FLOORS as f64);
    let best = floors.map(|floor| above(floor, points)).min_by(|a, b| a.error.total_cmp(&b.error))?;
    Some([best, above(0.0, points)])
}

/// The laws in words.
pub fn forecast(laws: &[Law; 2], last: &Point) -> String {
    let [floor, none] = laws.map(|law| law.bits(10.0 * last.flops));
    format!(
        "{}: {:.3} bits at {:.2e} operations; ten times that: {floor:.3} if bits fall to a floor of {:.2} (exponent {:.3}, error {:.4}), {none:.3} \
         if they fall on (exponent {:.3}, error {:.4})",
        last.name,
        last.bits,
        last.flops,
        laws[0].floor,
        laws[0].exponent,
        laws[0].error,
        laws[1].exponent,
        laws[1].error
    )
}

/// The law above a given floor: a line between logarithms.
fn above(floor: f64, points: &[Point]) -> Law {
    let n = points.len() as f64;
    let logs: Vec<(f64, f64)> = points.iter().map(|point| (point.flops.ln(), (point.bits - floor).ln())).collect();
    let mean = |value: fn(&(f64, f64)) -> f64| logs.iter().map(value).sum::<f64>() / n;
    let (x, y) = (mean(|log| log.0), mean(|log| log.1));
    let covariance: f64 = logs.iter().map(|log| (log.0 - x) * (log.1 - y)).sum();
    let variance: f64 = logs.iter().map(|log| (log.0 - x).powi(2)).sum();
    let slope = if variance > 0.0 { covariance / variance } else { 0.0 };
    let law = Law { floor, factor: (y - slope * x).exp(), exponent: -slope, error: 0.0 };
    let squares: f64 = points.iter().map(|point| (law.bits(point.flops) - point.bits).powi(2)).sum();
    Law { error: (squares / n).sqrt(), ..law }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(flops: f64, bits: f64) -> Point {
        Point { name: format!("{flops:e}"), flops, bits }
    }

    #[test]
    fn a_law_is_found_again_in_points_that_obey_it() {
        let truth = Law { floor: 0.6, factor: 900.0, exponent: 0.2, error: 0.0 };
        let points: Vec<Point> = (12..17).map(|n| 10f64.powi(n)).map(|c| point(c, truth.bits(c))).collect();
        let [law, straight] = laws(&points).unwrap();
        assert!((law.floor - 0.6).abs() < 0.01 && (law.exponent - 0.2).abs() < 0.01 && law.error < 1e-3, "{law:?}");
        assert!((law.bits(1e18) - truth.bits(1e18)).abs() < 0.01);
        // Without a floor the same points promise more.
        assert!(straight.bits(1e18) < law.bits(1e18) && straight.error > law.error, "{straight:?}");
        assert!(laws(&points[..3]).is_none());
    }

    #[test]
    fn the_frontier_leaves_out_what_a_cheaper_model_beats() {
        let points = [point(4.0, 1.5), point(1.0, 2.0), point(2.0, 1.4), point(3.0, 1.4), point(5.0, 1.2)];
        let flops: Vec<f64> = frontier(&points).iter().map(|point| point.flops).collect();
        assert_eq!(flops, [1.0, 2.0, 5.0]);
    }
}
