//! How fast memory is read.

use std::hint::black_box;
use std::time::Instant;

/// More than a cache holds.
const BYTES: usize = 512 << 20;
const ROUNDS: usize = 5;

/// Gigabytes a second that `threads` threads read together, the best of some rounds.
pub(super) fn gb_per_s(threads: usize) -> f64 {
    let values = vec![1u64; BYTES / 8];
    let share = values.len().div_ceil(threads.max(1));
    let once = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in values.chunks(share) {
                scope.spawn(|| black_box(sum(part)));
            }
        });
        BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..ROUNDS).map(|_| once()).fold(0.0, f64::max)
}

/// Sixteen sums, so that the processor waits for memory alone.
fn sum(values: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    for chunk in values.chunks_exact(16) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}
