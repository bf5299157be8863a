//! Without vector instructions: the definition of what the others compute, bit for bit.

use half::f16;

use super::super::packed::{COLS, Format, ROWS};
use super::{Rows, Tiles};

/// One tile and one row of activations; always 1.
pub(super) fn multiply(tiles: Tiles, rows: Rows, y: &mut [f32]) -> usize {
    match tiles.format {
        Format::F16 | Format::F32 => floats(tiles, rows.x, y),
        _ => integers(tiles, rows, y),
    }
    1
}

fn integers(tiles: Tiles, rows: Rows, y: &mut [f32]) {
    let size = tiles.format.block_bytes();
    let n_scales = tiles.format.scales();
    for (r, y) in y[..ROWS].iter_mut().enumerate() {
        *y = 0.0;
        for block in 0..tiles.n_blocks {
            let bytes = &tiles.blocks(0)[block * size..][..size];
            let scale = |i: usize| half(tiles.scales(0), (n_scales * block + i) * ROWS + r);
            let q = &rows.q[block * COLS..][..COLS];
            let (x_scale, sum) = (rows.scales[block], rows.sums[block]);
            let weight = |k: usize| match tiles.format {
                Format::Q8 => bytes[k / 4 * 4 * ROWS + 4 * r + k % 4],
                _ => bytes[k / 8 * 4 * ROWS + 4 * r + k % 4] >> (k % 8 / 4 * 4) & 15,
            };
            let offset = match tiles.format {
                Format::Q8 => 128,
                Format::Q4 => 8,
                _ => 0,
            };
            let start = -offset * sum;
            let product = (0..COLS).fold(start, |sum, k| sum + i32::from(weight(k)) * i32::from(q[k]));
            *y = (product as f32).mul_add(scale(0) * x_scale, *y);
            if tiles.format == Format::Q4Least {
                *y = (-(scale(1) * x_scale)).mul_add(sum as f32, *y);
            }
        }
    }
}

/// Four sums, of every fourth column.
fn floats(tiles: Tiles, x: &[f32], y: &mut [f32]) {
    for (r, y) in y[..ROWS].iter_mut().enumerate() {
        let mut sums = [0f32; 4];
        for (k, x) in x[..tiles.n_blocks * COLS].iter().enumerate() {
            let at = k * ROWS + r;
            let w = match tiles.format {
                Format::F16 => half(tiles.blocks(0), at),
                _ => f32::from_le_bytes(std::array::from_fn(|i| tiles.blocks(0)[4 * at + i])),
            };
            sums[k % 4] = w.mul_add(*x, sums[k % 4]);
        }
        *y = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_bits(u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]])).to_f32()
}

/// See [`super::scores`].
pub(super) fn scores(q: &[f32], k: &[u16], y: &mut [f32]) {
    for (k, y) in k.chunks_exact(q.len() * ROWS).zip(y.chunks_exact_mut(ROWS)) {
        for (lane, y) in y.iter_mut().enumerate() {
            let mut sums = [0f32; 4];
            for (i, q) in q.iter().enumerate() {
                sums[i % 4] = f16::from_bits(k[i * ROWS + lane]).to_f32().mul_add(*q, sums[i % 4]);
            }
            *y = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
    }
}

/// See [`super::weighted`].
pub(super) fn weighted(p: &[f32], v: &[u16], y: &mut [f32]) {
    let stride = y.len();
    for (i, y) in y.iter_mut().enumerate() {
        let mut sums = [0f32; 2];
        for (n, p) in p.iter().enumerate() {
            sums[n % 2] = f16::from_bits(v[n * stride + i]).to_f32().mul_add(*p, sums[n % 2]);
        }
        *y = sums[0] + sums[1];
    }
}
