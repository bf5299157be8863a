//! What memory and arithmetic allow, and what the decoder makes of it: passes over more and more tokens at once, as a picture.
//!
//! Williams, Waterman and Patterson 2009: the operations a second of a program that does `x` operations for each byte that it reads are at
//! most `x` times the speed of memory, and at most the speed of arithmetic.

use std::fmt::Write;
use std::time::Instant;

use anyhow::Result;
use multicoder_model::decoder::{DecoderCache, Format, Packed, Quantized, Simd, Worker, multiply};
use serde::Serialize;

use super::subject::{Subject, Weights};
use super::{at, memory};

const AT_ONCE: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
const ROUNDS: usize = 7;

/// Passes of one thread over `tokens` tokens at once.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    pub weights: Weights,
    pub tokens: usize,
    /// Multiplications and additions for each byte of weights.
    pub ops_per_byte: f64,
    /// Thousand millions of them a second.
    pub gops: f64,
}

/// One thread's limits, and what it reached.
#[derive(Clone, Debug, Serialize)]
pub struct Roofline {
    pub memory_gb_per_s: f64,
    /// Of products whose factors are in the cache.
    pub gops: f64,
    pub points: Vec<Point>,
}

impl Roofline {
    /// Measures.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn measure(subject: &Subject, formats: &[Weights]) -> Result<Roofline> {
        let mut points = Vec::new();
        for &weights in formats {
            let decoder = subject.decoder(weights)?;
            let (mut cache, mut worker) = (DecoderCache::new(decoder.config(), AT_ONCE[7]), Worker::new(1));
            let (read, head) = subject.multiplied();
            for tokens in AT_ONCE.into_iter().filter(|tokens| *tokens <= subject.context_tokens()) {
                let ids = subject.ids(tokens);
                let mut once = || -> Result<f64> {
                    cache.truncate(0);
                    let start = Instant::now();
                    decoder.decode((&ids, 1), subject.language(), &mut cache, &mut worker, &|| false)?;
                    Ok(start.elapsed().as_secs_f64())
                };
                let seconds = at((0..ROUNDS).map(|_| once()).collect::<Result<_>>()?, 0.5);
                // Logits are of the last token alone.
                let ops = 2.0 * (tokens as f64 * (read - head) + head);
                let ops_per_byte = ops / (1e9 * subject.gb_per_token(weights));
                points.push(Point { weights, tokens, ops_per_byte, gops: ops / seconds / 1e9 });
            }
        }
        Ok(Roofline { memory_gb_per_s: memory::gb_per_s(1), gops: products_in_cache()?, points })
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let x_of =
            |ops_per_byte: f64| LEFT + (RIGHT - LEFT) * ops_per_byte.log2().clamp(0.0, X_DOUBLINGS) / X_DOUBLINGS;
        let y_of = |gops: f64| BOTTOM - (BOTTOM - TOP) * (gops.log10() - 1.0).clamp(0.0, Y_DECADES) / Y_DECADES;
        let mut svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 440\" font-family=\"sans-serif\" font-size=\"12\">\n\
                       <rect width=\"720\" height=\"440\" fill=\"white\"/>\n"
            .to_owned();
        axes(&mut svg, x_of, y_of);
        let knee = self.gops / self.memory_gb_per_s;
        let start = format!("M{:.1} {:.1}", x_of(1.0), y_of(self.memory_gb_per_s));
        let roof = format!("{start}L{:.1} {:.1}H{RIGHT}", x_of(knee), y_of(self.gops));
        let _ = writeln!(svg, "<path d=\"{roof}\" fill=\"none\" stroke=\"#404040\" stroke-width=\"2\"/>");
        let labels = [
            (x_of(1.1), y_of(self.memory_gb_per_s) + 24.0, format!("memory {:.0} GB/s", self.memory_gb_per_s)),
            (x_of(knee) + 8.0, y_of(self.gops) - 8.0, format!("products in the cache {:.0} Gop/s", self.gops)),
        ];
        for (x, y, text) in labels {
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"#404040\">{text}</text>");
        }
        let mut formats: Vec<Weights> = self.points.iter().map(|point| point.weights).collect();
        formats.dedup();
        for (i, (weights, colour)) in formats.iter().zip(["#0072b2", "#d55e00", "#009e73"]).enumerate() {
            for point in self.points.iter().filter(|point| point.weights == *weights) {
                let (x, y) = (x_of(point.ops_per_byte), y_of(point.gops));
                let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>");
                let beside = y + [18.0, -8.0, 32.0][i];
                let _ = writeln!(
                    svg,
                    "<text x=\"{x:.1}\" y=\"{beside:.1}\" fill=\"{colour}\" text-anchor=\"middle\" font-size=\"10\">{}</text>",
                    point.tokens
                );
            }
            let (y, name) = (TOP + 16.0 + 18.0 * i as f64, weights.name());
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{y:.1}\" fill=\"{colour}\">{name}, tokens at once</text>",
                LEFT + 12.0
            );
        }
        svg + "</svg>\n"
    }
}

const LEFT: f64 = 70.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 390.0;
/// The axes: 1 to 1,024 operations a byte, 10 to 10,000 Gop/s.
const X_DOUBLINGS: f64 = 10.0;
const Y_DECADES: f64 = 3.0;

fn axes(svg: &mut String, x_of: impl Fn(f64) -> f64, y_of: impl Fn(f64) -> f64) {
    for doubling in 0..=X_DOUBLINGS as i32 {
        let (value, x) = (2f64.powi(doubling), x_of(2f64.powi(doubling)));
        let _ = writeln!(svg, "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#e8e8e8\"/>");
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>", BOTTOM + 16.0);
    }
    for decade in 1..=1 + Y_DECADES as i32 {
        let (value, y) = (10f64.powi(decade), y_of(10f64.powi(decade)));
        let _ = writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#e8e8e8\"/>");
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", LEFT - 6.0, y + 4.0);
    }
    let middle = (LEFT + RIGHT) / 2.0;
    let _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"430\" text-anchor=\"middle\">operations for each byte of weights</text>"
    );
    let _ = writeln!(
        svg,
        "<text transform=\"translate(16 205) rotate(-90)\" text-anchor=\"middle\">Gop/s, one thread</text>"
    );
}

/// Thousand millions of operations a second of our product of eight-bit numbers, 64 rows of weights and 128 of activations.
fn products_in_cache() -> Result<f64> {
    const ROWS: usize = 64;
    const COLS: usize = 512;
    const N: usize = 128;
    let value = |i: usize| (i * 7919 % 255) as f32 / 255.0 - 0.5;
    let w = Packed::from_floats(Format::Q8, &(0..ROWS * COLS).map(value).collect::<Vec<_>>(), COLS)?;
    let mut x = Quantized::default();
    x.resize_for(N, &w);
    let row: Vec<f32> = (0..COLS).map(value).collect();
    (0..N).for_each(|n| x.set(n, &row));
    let mut y = vec![0f32; ROWS * N];
    let mut once = || {
        let start = Instant::now();
        (0..50).for_each(|_| multiply(&w, &x, 0..w.n_tiles(), &mut y, Simd::best()));
        (50 * 2 * ROWS * COLS * N) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    Ok((0..ROUNDS).map(|_| once()).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_their_numbers_are() {
        let point = |weights, tokens, ops_per_byte, gops| Point { weights, tokens, ops_per_byte, gops };
        let points = vec![point(Weights::Q8_0, 1, 2.0, 100.0), point(Weights::Q4_0, 1, 4.0, 1000.0)];
        let svg = Roofline { memory_gb_per_s: 32.0, gops: 1024.0, points }.svg();
        // One doubling of ten from the left, one decade of three from below; and two, and two.
        assert!(svg.contains("<circle cx=\"133.0\" cy=\"266.7\" r=\"4\" fill=\"#0072b2\"/>"), "{svg}");
        assert!(svg.contains("<circle cx=\"196.0\" cy=\"143.3\" r=\"4\" fill=\"#d55e00\"/>"), "{svg}");
        // The roof bends at 32 operations a byte.
        assert!(svg.contains("L385.0 "), "{svg}");
    }
}
