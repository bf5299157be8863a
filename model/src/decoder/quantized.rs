//! Activations as eight-bit integers: what the rows of packed weights are multiplied by.

use super::crew::Pieces;
use super::packed::{COLS, Packed};
use crate::ops::simd::vectorized;

/// Rows of activations, each in blocks of [`COLS`] integers with a scale: `x = scale · q`. The memory is kept from call to call.
#[derive(Clone, Debug, Default)]
pub struct Quantized {
    /// The numbers themselves, for weights that are floats: rows of `n_cols`, filled up with zeros.
    pub(super) x: Vec<f32>,
    pub(super) q: Vec<i8>,
    /// By row and block.
    pub(super) scales: Vec<f32>,
    /// The sum of the integers of each block.
    pub(super) sums: Vec<i32>,
    n_rows: usize,
    n_blocks: usize,
    is_for_floats: bool,
}

/// Blocks of [`Quantized`] that several threads write, each its own.
pub(super) struct Writer<'a> {
    x: Pieces<'a, f32>,
    q: Pieces<'a, i8>,
    scales: Pieces<'a, f32>,
    sums: Pieces<'a, i32>,
    n_blocks: usize,
    is_for_floats: bool,
}

impl Quantized {
    /// Room for rows that are multiplied by `w`, written by [`Quantized::set`] next.
    pub fn resize_for(&mut self, n_rows: usize, w: &Packed) {
        (self.n_rows, self.n_blocks, self.is_for_floats) = (n_rows, w.n_blocks, w.format.scales() == 0);
        let n = n_rows * self.n_blocks;
        self.x.resize(if self.is_for_floats { n * COLS } else { 0 }, 0.0);
        self.q.resize(n * COLS, 0);
        self.scales.resize(n, 0.0);
        self.sums.resize(n, 0);
    }

    /// Writes row `row`: the largest of a block becomes 127 (the blocks of llama.cpp's Q8_0, with float32 scales).
    pub fn set(&mut self, row: usize, x: &[f32]) {
        // SAFETY: nobody else writes.
        unsafe { self.writer().set_row(row, x) };
    }

    pub(super) fn writer(&mut self) -> Writer<'_> {
        Writer {
            x: Pieces::new(&mut self.x),
            q: Pieces::new(&mut self.q),
            scales: Pieces::new(&mut self.scales),
            sums: Pieces::new(&mut self.sums),
            n_blocks: self.n_blocks,
            is_for_floats: self.is_for_floats,
        }
    }

    /// These rows alone, in this order.
    pub(super) fn pick(&self, rows: &[u32]) -> Quantized {
        let (n_rows, n_blocks, is_for_floats) = (rows.len(), self.n_blocks, self.is_for_floats);
        let mut picked = Quantized { n_rows, n_blocks, is_for_floats, ..Quantized::default() };
        for row in rows {
            let (from, n) = (*row as usize * n_blocks, n_blocks);
            if is_for_floats {
                picked.x.extend(&self.x[from * COLS..(from + n) * COLS]);
            }
            picked.q.extend(&self.q[from * COLS..(from + n) * COLS]);
            picked.scales.extend(&self.scales[from..from + n]);
            picked.sums.extend(&self.sums[from..from + n]);
        }
        picked
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(super) fn n_blocks(&self) -> usize {
        self.n_blocks
    }
}

impl Writer<'_> {
    /// # Safety
    /// Nobody else writes this row.
    pub(super) unsafe fn set_row(&self, row: usize, x: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.set_blocks(row, 0, x) };
    }

    /// Writes blocks of a row from `block` on; a last one that is not full ends in zeros.
    ///
    /// # Safety
    /// Nobody else writes these blocks.
    pub(super) unsafe fn set_blocks(&self, row: usize, block: usize, x: &[f32]) {
        let at = row * self.n_blocks + block;
        let range = at..at + x.len().div_ceil(COLS);
        // SAFETY: the caller's promise.
        unsafe {
            let q = self.q.take(range.start * COLS..range.end * COLS);
            quantize(x, q, self.scales.take(range.clone()), self.sums.take(range.clone()));
            if self.is_for_floats {
                let floats = self.x.take(range.start * COLS..range.end * COLS);
                floats[..x.len()].copy_from_slice(x);
                floats[x.len()..].fill(0.0);
            }
        }
    }
}

vectorized! {
    /// The integers of blocks, their scales and their sums.
    fn quantize(x: &[f32], q: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
        let (whole, rest) = x.as_chunks::<COLS>();
        let (q, _) = q.as_chunks_mut::<COLS>();
        let outputs = q.iter_mut().zip(scales).zip(sums);
        let mut last = [0f32; COLS];
        last[..rest.len()].copy_from_slice(rest);
        for (((q, scale), sum), x) in outputs.zip(whole.iter().chain([&last])) {
            (*scale, *sum) = quantize_block(x, q);
        }
    }
}

/// The scale of a block, and the sum of its integers.
#[inline(always)]
fn quantize_block(x: &[f32; COLS], q: &mut [i8; COLS]) -> (f32, i32) {
    // What is no number makes the scale none, so that it comes out as none. Eight lanes, for one sum would wait for itself; a comparison, for
    // `f32::max` has a rule for what is no number that keeps lanes apart.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (mut largest, mut nothing) = ([0f32; 8], [0f32; 8]);
    for x in x.as_chunks::<8>().0 {
        for i in 0..8 {
            largest[i] = larger(largest[i], x[i].abs());
            nothing[i] += x[i] * 0.0;
        }
    }
    let largest = largest.into_iter().fold(0f32, larger);
    // Of zeros, and of numbers too small to have one, none.
    let inverse = 127.0 / largest;
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let mut sums = [0i32; 8];
    for (q, x) in q.as_chunks_mut::<8>().0.iter_mut().zip(x.as_chunks::<8>().0) {
        for i in 0..8 {
            // The nearest integer, ties to even, in the low bits of a float of that size.
            let rounded = ((x[i] * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
            q[i] = rounded as i8;
            sums[i] = sums[i].wrapping_add(rounded);
        }
    }
    let sum = sums.into_iter().fold(0i32, i32::wrapping_add);
    let scale = largest / 127.0 + nothing.iter().sum::<f32>();
    (scale, if scale.is_finite() { sum } else { 0 })
}

/// 1.5 · 2^23.
const ROUND: f32 = 12_582_912.0;

#[cfg(test)]
mod tests {
    use super::super::packed::Format;
    use super::*;

    #[test]
    fn a_block_is_scaled_by_its_largest_and_rows_are_filled_up() {
        let mut quantized = Quantized::default();
        quantized.resize_for(2, &Packed::from_floats(Format::Q8, &[0.0; 40], 40).unwrap());
        let mut row = vec![0f32; 40];
        (row[0], row[1], row[35]) = (-2.0, 1.0, 0.5);
        quantized.set(1, &row);
        assert_eq!((quantized.n_rows(), quantized.n_blocks()), (2, 2));
        assert_eq!((quantized.q[64], quantized.q[65], quantized.q[66], quantized.q[64 + 35]), (-127, 64, 0, 127));
        assert!((quantized.scales[2] - 2.0 / 127.0).abs() < 1e-9 && (quantized.scales[3] - 0.5 / 127.0).abs() < 1e-9);
        assert_eq!(quantized.sums, [0, 0, -63, 127]);
        quantized.set(1, &[f32::NAN; 40]);
        assert!(quantized.scales[2].is_nan() && quantized.scales[3].is_nan());
        quantized.set(1, &[0.0; 40]);
        assert_eq!((quantized.scales[2], &quantized.q[64..96]), (0.0, &[0i8; 32][..]));
    }

    #[test]
    fn sums_of_four_bit_products_do_not_overflow_for_numbers_that_are_none_or_too_small() {
        let mut quantized = Quantized::default();
        quantized.resize_for(1, &Packed::from_floats(Format::Q8, &[0.0; 32], 32).unwrap());
        for extreme in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, f32::MIN_POSITIVE, f32::MAX] {
            for others in [0.0, 1e-40, extreme] {
                let mut row = [others; 32];
                row[3] = extreme;
                quantized.set(0, &row);
                assert!(quantized.sums[0].abs() <= 32 * 127, "{extreme} among {others}: {}", quantized.sums[0]);
                assert_eq!(quantized.scales[0].is_finite(), extreme.is_finite(), "{extreme} among {others}");
            }
        }
    }
}
