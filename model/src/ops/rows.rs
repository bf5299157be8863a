//! Rows of a table by index, and their sum by index: each is the other's gradient.
//!
//! On a GPU candle adds rows by index in one thread a column, row after row: milliseconds for a batch of tokens. There the rows are
//! grouped by their index on the host, and the groups are summed all at once, in a fixed order.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::is_fused;

/// Rows that are summed together; more of one index are summed in several rounds.
const WIDTH: usize = 16;
/// candle's index that selects zeros.
const ZEROS: u32 = u32::MAX;

/// The rows `idx_A` of `table_VD`. Shape: `AD`. `idx_A` is u32, and best on the CPU, whatever the table's device.
pub fn gather_rows(table_VD: &Tensor, idx_A: &Tensor) -> Result<Tensor> {
    if is_fused(table_VD) {
        return table_VD.index_select(&idx_A.to_device(table_VD.device())?, 0);
    }
    let host_A = idx_A.to_device(&Device::Cpu)?.to_vec1::<u32>()?;
    let idx_A = idx_A.to_device(table_VD.device())?;
    table_VD.contiguous()?.apply_op2(&idx_A, Gather { idx_A: host_A })
}

/// For each of `n` rows the sum of the rows of `x_AD` whose index it is. Shape: `ND`.
pub fn add_rows(x_AD: &Tensor, idx_A: &[u32], n: usize) -> Result<Tensor> {
    if !is_fused(x_AD) {
        let groups = Groups::of(idx_A, n);
        // As good as always, one for each row or as many for each; a row that has fewer is filled up with zeros.
        if groups.n_widest * n <= 2 * idx_A.len() {
            let rows = Tensor::new(groups.padded(groups.n_widest), &Device::Cpu)?;
            return sum_middle(&gather_rows(x_AD, &rows)?.reshape((n, groups.n_widest, ()))?);
        }
    }
    let idx_A = Tensor::new(idx_A, x_AD.device())?;
    // index_add, not scatter_add: the latter's gradient is wrong in candle 0.11.1 for a base that needs one.
    Tensor::zeros((n, x_AD.dim(1)?), x_AD.dtype(), x_AD.device())?.index_add(&idx_A, x_AD, 0)
}

struct Gather {
    idx_A: Vec<u32>,
}

impl CustomOp2 for Gather {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((s1.index_select(s2, l1, l2, 0)?, self.shape(l1)))
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((s1.index_select(s2, l1, l2, 0)?, self.shape(l1)))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(sum_by_index(dy, &self.idx_A, table.dim(0)?)?), None))
    }
}

impl Gather {
    fn shape(&self, table: &Layout) -> Shape {
        let mut dims = table.dims().to_vec();
        dims[0] = self.idx_A.len();
        Shape::from(dims)
    }
}

/// As [`add_rows`], without a gradient of its own, in rounds that shrink each index's rows to a [`WIDTH`]th.
fn sum_by_index(x_AD: &Tensor, idx_A: &[u32], n: usize) -> Result<Tensor> {
    let select = |x: &Tensor, rows: Vec<u32>| x.index_select(&Tensor::new(rows, x.device())?, 0);
    let mut groups = Groups::of(idx_A, n);
    let mut x = x_AD.contiguous()?;
    while groups.n_widest > 1 {
        let width = groups.n_widest.min(WIDTH);
        let (rows, rest) = groups.round(width);
        x = sum_middle(&select(&x, rows)?.reshape((rest.rows.len(), width, ()))?)?;
        groups = rest;
    }
    select(&x, groups.padded(1))
}

/// The sum over the second of three dimensions, a few summands. candle's own takes a block of threads for each sum.
fn sum_middle(x: &Tensor) -> Result<Tensor> {
    let mut sum = x.narrow(1, 0, 1)?;
    for i in 1..x.dim(1)? {
        sum = (sum + x.narrow(1, i, 1)?)?;
    }
    sum.squeeze(1)
}

/// Which rows have each index, in their order.
struct Groups {
    /// All rows that count, those of one index together.
    rows: Vec<u32>,
    /// Where each index's rows begin in `rows`; one more at the end.
    starts: Vec<usize>,
    n_widest: usize,
}

impl Groups {
    fn of(idx_A: &[u32], n: usize) -> Groups {
        let mut starts = vec![0; n + 1];
        let counted = || idx_A.iter().enumerate().filter(|(_, idx)| **idx != ZEROS);
        counted().for_each(|(_, &idx)| starts[idx as usize + 1] += 1);
        let n_widest = starts.iter().copied().max().unwrap_or(0);
        (0..n).for_each(|i| starts[i + 1] += starts[i]);
        let (mut next, mut rows) = (starts.clone(), vec![0; starts[n]]);
        for (row, &idx) in counted() {
            rows[next[idx as usize]] = row as u32;
            next[idx as usize] += 1;
        }
        Groups { rows, starts, n_widest }
    }

    fn each(&self) -> impl Iterator<Item = &[u32]> {
        self.starts.windows(2).map(|ends| &self.rows[ends[0]..ends[1]])
    }

    /// `width` places for each index: its rows, then zeros.
    fn padded(&self, width: usize) -> Vec<u32> {
        let padding = |rows: &[u32]| std::iter::repeat_n(ZEROS, width - rows.len());
        self.each().flat_map(|rows| rows.iter().copied().chain(padding(rows))).collect()
    }

    /// Pieces of `width` rows, the last of an index filled up with zeros, and the groups of what their sums are.
    fn round(&self, width: usize) -> (Vec<u32>, Groups) {
        let (mut places, mut starts, mut n_widest) = (Vec::new(), vec![0], 0);
        for rows in self.each() {
            for piece in rows.chunks(width) {
                places.extend(piece);
                places.extend(std::iter::repeat_n(ZEROS, width - piece.len()));
            }
            let n_pieces = rows.len().div_ceil(width);
            starts.push(starts[starts.len() - 1] + n_pieces);
            n_widest = n_widest.max(n_pieces);
        }
        let rows = (0..(places.len() / width) as u32).collect();
        (places, Groups { rows, starts, n_widest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, assert_same_gradients, composed, values};

    /// Indices below `n`, of which the first is by far the most frequent.
    fn skewed(len: usize, n: u32) -> Vec<u32> {
        (0..len as u32).map(|i| if i.is_multiple_of(3) { 0 } else { i.wrapping_mul(2_654_435_761) % n }).collect()
    }

    #[test]
    fn gathered_rows_equal_candles() {
        for (len, n) in [(1, 1), (7, 3), (40, 90), (2_000, 11)] {
            let idx_A = Tensor::new(skewed(len, n), &Device::Cpu).unwrap();
            assert_same_gradients(
                &[values(&[n as usize, 5], 1)],
                |x| composed(|| gather_rows(&x[0], &idx_A)),
                |x| x[0].index_select(&idx_A, 0),
            );
        }
    }

    #[test]
    fn added_rows_equal_candles() {
        // One for each, none for some, two for each, all for one.
        let every = |n: u32, per: u32| -> Vec<u32> { (0..n * per).map(|i| i * 7 % (n * per) / per).collect() };
        let without_two: Vec<u32> = (0..10).filter(|i| i % 5 != 2).collect();
        for (idx_A, n) in [(every(10, 1), 10), (without_two, 10), (every(10, 2), 10), (vec![3; 10], 10)] {
            let x = [values(&[idx_A.len(), 5], 1)];
            assert_same_gradients(&x, |x| composed(|| add_rows(&x[0], &idx_A, n)), |x| add_rows(&x[0], &idx_A, n));
        }
    }

    #[test]
    fn sums_of_many_rounds_are_exact() {
        let idx_A = skewed(5_000, 4);
        let ones = Tensor::ones((5_000, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let sums = sum_by_index(&ones, &idx_A, 6).unwrap();
        let counts: Vec<f32> = (0..6).map(|i| idx_A.iter().filter(|&&idx| idx == i).count() as f32).collect();
        let counts = Tensor::new(counts, &Device::Cpu).unwrap().unsqueeze(1).unwrap().broadcast_as((6, 2)).unwrap();
        assert_close(&sums, &counts.contiguous().unwrap(), "counts");
    }
}
