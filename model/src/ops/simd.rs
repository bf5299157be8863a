//! Loops that the compiler vectorizes for the machine at hand, and a bounds-checked matrix product.

/// 1.5 * 2^23: added to a small float, it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// e^x to about 2 ulp by Cody and Waite's reduction and a degree-6 polynomial; vectorizes, unlike `f32::exp`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
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

/// Makes a function compiled for AVX2 and FMA, which the machine runs if it has them, beside one for any machine. The bits are the same: what
/// is added to what stands in the source, and products are not fused. (A closure given to a function of those instructions is compiled
/// without them where the compiler does not inline it.)
macro_rules! vectorized {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $returns:ty)? $body:block) => {
        $(#[$attribute])*
        $vis fn $name($($argument: $type),*) $(-> $returns)? {
            #[inline(always)]
            fn plain($($argument: $type),*) $(-> $returns)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn wide($($argument: $type),*) $(-> $returns)? {
                plain($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                // SAFETY: the machine has these instructions.
                return unsafe { wide($($argument),*) };
            }
            plain($($argument),*)
        }
    };
}
pub(crate) use vectorized;

/// `a · b` of two equally long slices.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
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
pub(super) fn softmax_row(row: &mut [f32]) -> f32 {
    scaled_softmax_row(row, 1.0)
}

vectorized! {
    /// As [`softmax_row`], with every probability multiplied by `factor`.
    pub(super) fn scaled_softmax_row(row: &mut [f32], factor: f32) -> f32 {
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
        let scale = factor / total;
        row.iter_mut().for_each(|x| *x *= scale);
        max + total.ln()
    }
}

vectorized! {
    /// Replaces logits `z` by `cap · tanh(z / cap)`, and `slopes` by the derivative of that.
    pub(super) fn softcap_row(logits: &mut [f32], slopes: &mut [f32], cap: f32) {
        for (z, slope) in logits.iter_mut().zip(slopes) {
            let tanh = 1.0 - 2.0 / (exp(2.0 * *z / cap) + 1.0);
            *z = cap * tanh;
            *slope = 1.0 - tanh * tanh;
        }
    }
}

vectorized! {
    /// As [`dot`], for a caller that is not such a function itself.
    pub(crate) fn dot_row(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

vectorized! {
    pub(crate) fn add(sum: &mut [f32], x: &[f32]) {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
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

/// `dst = dst * keep + scale * a · b`, a product over `k`; `dst` gives the other two sizes.
pub(super) fn matmul(
    dst: &mut [f32],
    dst_row: usize,
    size: (usize, usize, usize),
    keep: bool,
    a: Mat,
    b: Mat,
    how: How,
) {
    let (m, n, k) = size;
    if m > 0 && n > 0 {
        // SAFETY: `dst` is borrowed exclusively.
        unsafe { matmul_rows(Rows::new(dst, dst_row, (m, n)), k, keep, a, b, how) }
    }
}

/// Factor and threads of a product.
#[derive(Clone, Copy)]
pub(super) struct How {
    pub(super) scale: f32,
    pub(super) threads: usize,
}

/// As [`matmul`], into rows that this task owns.
///
/// # Safety
/// The slice behind `dst` must be alive, and no other task may touch its elements meanwhile.
pub(super) unsafe fn matmul_rows(dst: Rows, k: usize, keep: bool, a: Mat, b: Mat, how: How) {
    let (m, n) = (dst.rows, dst.width);
    let last = |rows: usize, cols: usize, row: usize, col: usize| (rows - 1) * row + (cols - 1) * col;
    assert!(k == 0 || last(m, k, a.row, a.col) < a.data.len(), "matmul: left factor too short");
    assert!(k == 0 || last(k, n, b.row, b.col) < b.data.len(), "matmul: right factor too short");
    let parallelism = if how.threads > 1 { gemm::Parallelism::Rayon(how.threads) } else { gemm::Parallelism::None };
    // SAFETY: the assertions above and `Rows` bound every element that the strides reach; the rows are the caller's.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data,
            1,
            dst.stride as isize,
            keep,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0f32,
            how.scale,
            false,
            false,
            false,
            parallelism,
        )
    }
}

/// A slice that several threads write, each to elements of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    data: *mut f32,
    len: usize,
}

// SAFETY: the pointer is only written through by tasks that own the elements (see `rows`).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(data: &mut [f32]) -> Shared {
        Shared { data: data.as_mut_ptr(), len: data.len() }
    }

    /// A strided matrix of `rows` rows of `width` elements, the first at `start`.
    pub(super) fn rows(&self, start: usize, stride: usize, (rows, width): (usize, usize)) -> Rows {
        assert!(rows > 0 && width <= stride && start + (rows - 1) * stride + width <= self.len, "rows out of bounds");
        // SAFETY: the first element is in bounds by the assertion.
        Rows { data: unsafe { self.data.add(start) }, stride, rows, width }
    }
}

/// Rows of a [`Shared`] slice that one task owns: `width` elements each, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    data: *mut f32,
    stride: usize,
    rows: usize,
    width: usize,
}

impl Rows {
    /// Of an exclusive slice.
    pub(super) fn new(data: &mut [f32], stride: usize, size: (usize, usize)) -> Rows {
        Shared::new(data).rows(0, stride, size)
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn n_rows(&self) -> usize {
        self.rows
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Some columns of the same rows.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn columns(&self, first: usize, width: usize) -> Rows {
        assert!(first + width <= self.width, "columns out of bounds");
        // SAFETY: in bounds by the assertion.
        Rows { data: unsafe { self.data.add(first) }, width, ..*self }
    }

    /// The elements of one row.
    ///
    /// # Safety
    /// The slice behind it must be alive, and no other task may touch this row's elements meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: in bounds by the assertions here and in `Shared::rows`; exclusiveness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride), self.width) }
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
    fn softcap_is_a_scaled_tanh_and_its_slope() {
        let plain: Vec<f32> = (-40..=40).map(|n| n as f32 * 2.5).collect();
        let (mut row, mut slopes) = (plain.clone(), vec![0.0; plain.len()]);
        softcap_row(&mut row, &mut slopes, 15.0);
        for ((z, capped), slope) in plain.iter().zip(row).zip(slopes) {
            let tanh = (f64::from(*z) / 15.0).tanh();
            assert!((f64::from(capped) - 15.0 * tanh).abs() < 1e-5, "{z}: {capped}");
            assert!((f64::from(slope) - (1.0 - tanh * tanh)).abs() < 1e-6, "{z}: {slope}");
        }
    }

    #[test]
    fn softmax_row_sums_to_one() {
        let mut row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let direct = row.iter().map(|x| (*x as f64).exp()).sum::<f64>().ln();
        let log_sum = softmax_row(&mut row);
        assert!((log_sum as f64 - direct).abs() < 1e-5);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn matmul_reads_strides() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut dst = [10.0; 4];
        // a (2x3) times its transpose.
        matmul(&mut dst, 2, (2, 2, 3), true, Mat::rows(&a, 3), Mat::rows(&a, 3).t(), How { scale: 2.0, threads: 1 });
        assert_eq!(dst, [38.0, 74.0, 74.0, 164.0]);
    }
}
