//! Loops that the compiler vectorizes for the machine at hand, and a bounds-checked matrix product.

/// 1.5 * 2^23: added to a small float, it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// e^x to about 2 ulp by Cody and Waite's reduction and a degree-6 polynomial; vectorizes, unlike `f32::exp`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_2e-4f32;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // 2^n from the integer in `shifted`; a cast of `n` would not vectorize.
    y * f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits() - 127) << 23)
}

/// Runs a loop compiled for the best instruction set that this machine has.
#[inline(always)]
pub(super) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `a · b` of two equally long slices.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0f32; 16];
    let (a16, a_rest) = a.as_chunks::<16>();
    let (b16, b_rest) = b.as_chunks::<16>();
    for (a, b) in a16.iter().zip(b16) {
        for i in 0..16 {
            parts[i] += a[i] * b[i];
        }
    }
    parts.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Replaces a row of scores by its softmax and returns the logarithm of the sum of exponentials.
#[inline(always)]
pub(super) fn softmax_row(row: &mut [f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = row.as_chunks::<16>();
    let mut maxima = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for i in 0..16 {
            maxima[i] = larger(maxima[i], chunk[i]);
        }
    }
    let max = maxima.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    let mut sums = [0f32; 16];
    let (chunks, rest) = row.as_chunks_mut::<16>();
    for chunk in chunks {
        for i in 0..16 {
            chunk[i] = exp(chunk[i] - max);
            sums[i] += chunk[i];
        }
    }
    rest.iter_mut().for_each(|x| *x = exp(*x - max));
    let total = sums.iter().chain(&*rest).sum::<f32>();
    let scale = 1.0 / total;
    row.iter_mut().for_each(|x| *x *= scale);
    max + total.ln()
}

/// A strided view of a matrix: element `(i, j)` is `data[offset + i * row + j * col]`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) col: usize,
}

impl<'a> Mat<'a> {
    pub(super) fn rows(data: &'a [f32], row: usize) -> Mat<'a> {
        Mat { data, row, col: 1 }
    }

    pub(super) fn t(self) -> Mat<'a> {
        Mat { data: self.data, row: self.col, col: self.row }
    }
}

/// `dst = dst * keep + scale * a · b` for an `m` x `n` product over `k`; `dst` has rows of stride `dst_row`.
pub(super) fn matmul(
    (m, n, k): (usize, usize, usize),
    dst: &mut [f32],
    dst_row: usize,
    keep: bool,
    a: Mat,
    b: Mat,
    (scale, threads): (f32, usize),
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = |rows: usize, cols: usize, row: usize, col: usize| (rows - 1) * row + (cols - 1) * col;
    assert!(last(m, n, dst_row, 1) < dst.len(), "matmul: destination too short");
    assert!(k == 0 || last(m, k, a.row, a.col) < a.data.len(), "matmul: left operand too short");
    assert!(k == 0 || last(k, n, b.row, b.col) < b.data.len(), "matmul: right operand too short");
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: the assertions above bound every element that the strides reach.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_row as isize,
            keep,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            parallelism,
        )
    }
}

/// A slice that several threads write, each to rows of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    data: *mut f32,
    len: usize,
}

// SAFETY: `Shared::from` is only used by tasks that write disjoint elements.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(data: &mut [f32]) -> Shared {
        Shared { data: data.as_mut_ptr(), len: data.len() }
    }

    /// The elements from `start` on.
    ///
    /// # Safety
    /// No two tasks may write (or one write and another read) the same element through slices from this function, and the slice that
    /// this was made from must outlive them.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn from(&self, start: usize) -> &mut [f32] {
        assert!(start <= self.len);
        // SAFETY: in bounds by the assertion; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), self.len - start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let relative = (exp(x) as f64 / (x as f64).exp() - 1.0).abs();
            assert!(relative < 3e-7, "exp({x}): relative error {relative}");
        }
    }

    #[test]
    fn softmax_row_sums_to_one() {
        let mut row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let direct = row.iter().map(|x| (*x as f64).exp()).sum::<f64>().ln();
        let log_sum = vectorized(|| softmax_row(&mut row));
        assert!((log_sum as f64 - direct).abs() < 1e-5);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn matmul_reads_strides() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut dst = [10.0; 4];
        // a (2x3) times its transpose.
        matmul((2, 2, 3), &mut dst, 2, true, Mat::rows(&a, 3), Mat::rows(&a, 3).t(), (2.0, 1));
        assert_eq!(dst, [38.0, 74.0, 74.0, 164.0]);
    }
}
