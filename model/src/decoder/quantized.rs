//! Activations as eight-bit integers: what the rows of packed weights are multiplied by.

use super::packed::COLS;

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
}

impl Quantized {
    /// Room for rows of `d` numbers, written by [`Quantized::set`] next.
    pub fn resize(&mut self, n_rows: usize, d: usize) {
        (self.n_rows, self.n_blocks) = (n_rows, d.div_ceil(COLS));
        let n = n_rows * self.n_blocks;
        self.x.resize(n * COLS, 0.0);
        self.q.resize(n * COLS, 0);
        self.scales.resize(n, 0.0);
        self.sums.resize(n, 0);
    }

    /// Writes row `row`: the largest of a block becomes 127 (the blocks of llama.cpp's Q8_0, with float32 scales).
    pub fn set(&mut self, row: usize, x: &[f32]) {
        let n = self.n_blocks * COLS;
        let own = &mut self.x[row * n..(row + 1) * n];
        own[..x.len()].copy_from_slice(x);
        own[x.len()..].fill(0.0);
        let blocks = own.chunks_exact(COLS).zip(self.q[row * n..(row + 1) * n].chunks_exact_mut(COLS));
        for (block, (x, q)) in blocks.enumerate() {
            let at = row * self.n_blocks + block;
            (self.scales[at], self.sums[at]) = quantize(x, q);
        }
    }

    /// These rows alone, in this order.
    pub(super) fn pick(&self, rows: &[u32]) -> Quantized {
        let mut picked = Quantized { n_rows: rows.len(), n_blocks: self.n_blocks, ..Quantized::default() };
        for row in rows {
            let (from, n) = (*row as usize * self.n_blocks, self.n_blocks);
            picked.x.extend(&self.x[from * COLS..(from + n) * COLS]);
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

/// The scale of a block, and the sum of its integers.
#[inline(always)]
fn quantize(x: &[f32], q: &mut [i8]) -> (f32, i32) {
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut sum = 0;
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * inverse).round_ties_even() as i8;
        sum += i32::from(*q);
    }
    (largest / 127.0, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_scaled_by_its_largest_and_rows_are_filled_up() {
        let mut quantized = Quantized::default();
        quantized.resize(2, 40);
        let mut row = vec![0f32; 40];
        (row[0], row[1], row[35]) = (-2.0, 1.0, 0.5);
        quantized.set(1, &row);
        assert_eq!((quantized.n_rows(), quantized.n_blocks()), (2, 2));
        assert_eq!((quantized.q[64], quantized.q[65], quantized.q[66], quantized.q[64 + 35]), (-127, 64, 0, 127));
        assert!((quantized.scales[2] - 2.0 / 127.0).abs() < 1e-9 && (quantized.scales[3] - 0.5 / 127.0).abs() < 1e-9);
        assert_eq!(quantized.sums, [0, 0, -63, 127]);
        quantized.set(1, &[0.0; 40]);
        assert_eq!((quantized.scales[2], &quantized.q[64..96]), (0.0, &[0i8; 32][..]));
    }
}
