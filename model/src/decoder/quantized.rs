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
        for (block, x) in x.chunks(COLS).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.set_block(row, block, x) };
        }
    }

    /// Writes a block of a row; one that is not full ends in zeros.
    ///
    /// # Safety
    /// Nobody else writes this block.
    pub(super) unsafe fn set_block(&self, row: usize, block: usize, x: &[f32]) {
        let at = row * self.n_blocks + block;
        let mut whole = [0f32; COLS];
        whole[..x.len()].copy_from_slice(x);
        // SAFETY: the caller's promise.
        unsafe {
            let q = self.q.take(at * COLS..(at + 1) * COLS);
            let (scale, sum) = vectorized(|| quantize(&whole, q));
            self.scales.take(at..at + 1)[0] = scale;
            self.sums.take(at..at + 1)[0] = sum;
            if self.is_for_floats {
                self.x.take(at * COLS..(at + 1) * COLS).copy_from_slice(&whole);
            }
        }
    }
}

/// The scale of a block, and the sum of its integers.
#[inline(always)]
fn quantize(x: &[f32; COLS], q: &mut [i8]) -> (f32, i32) {
    let mut largest = [0f32; 8];
    for x in x.as_chunks::<8>().0 {
        largest.iter_mut().zip(x).for_each(|(largest, x)| *largest = largest.max(x.abs()));
    }
    let largest = largest.into_iter().fold(0f32, f32::max);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut rounded = [0i32; COLS];
    for (rounded, x) in rounded.iter_mut().zip(x) {
        // The nearest integer, ties to even, in the low bits of a float of that size.
        *rounded = ((x * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    }
    q.iter_mut().zip(&rounded).for_each(|(q, rounded)| *q = *rounded as i8);
    // What is no number makes the scale none, so that it comes out as none.
    let nothing: f32 = x.iter().map(|x| x * 0.0).sum();
    (largest / 127.0 + nothing, q.iter().map(|q| i32::from(*q)).sum())
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
}
