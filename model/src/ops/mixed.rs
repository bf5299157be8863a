//! Matrix products whose factors are rounded to bfloat16 and whose sums are float32, for processors with AVX-512 BF16.
//!
//! Training in mixed precision, as GPUs do it (Micikevicius et al. 2018, arXiv 1710.03740; bfloat16 needs no loss scaling: Kalamkar et al.
//! 2019, arXiv 1905.12322). One instruction multiplies two pairs in each of 16 lanes, twice the rate of float32. Off unless asked for;
//! on other processors, and for products too small to gain, the float32 product runs.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::simd::{self, How, Mat, Rows};

#[cfg(target_arch = "x86_64")]
mod avx512;

/// Rows of the left factor below which packing costs more than it gains.
const MIN_ROWS: usize = 32;

static BF16: AtomicBool = AtomicBool::new(false);
/// The same for the composed forms on other devices, all of which can.
static BF16_OFF_CPU: AtomicBool = AtomicBool::new(false);

/// Lets the matrix products of the layers and of attention (not of norms) round their factors to bfloat16, where the processor gains by it.
/// For the whole process: a training run decides once. Returns whether this processor can; GPUs can in any case.
pub fn set_bf16_products(on: bool) -> bool {
    let can = is_supported();
    BF16.store(on && can, Ordering::Relaxed);
    BF16_OFF_CPU.store(on, Ordering::Relaxed);
    can
}

/// Whether products of the composed forms are in bfloat16.
pub(super) fn is_bf16_off_cpu() -> bool {
    BF16_OFF_CPU.load(Ordering::Relaxed)
}

#[cfg(target_arch = "x86_64")]
fn is_supported() -> bool {
    std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn is_supported() -> bool {
    false
}

/// As [`simd::matmul`] on all threads, in bfloat16 if [`set_bf16_products`] said so.
pub(super) fn matmul(dst: &mut [f32], dst_row: usize, size: (usize, usize, usize), keep: bool, a: Mat, b: Mat) {
    let threads = rayon::current_num_threads();
    #[cfg(target_arch = "x86_64")]
    if BF16.load(Ordering::Relaxed) && size.0 >= MIN_ROWS {
        // SAFETY: the switch is only set where the processor has the instructions.
        return unsafe { avx512::matmul(dst, dst_row, size, keep, a, b) };
    }
    simd::matmul(dst, dst_row, size, keep, a, b, How { scale: 1.0, threads });
}

/// The right factor of several products, `k` x `n`; in bfloat16 if [`set_bf16_products`] said so when it was made.
pub(super) struct Right<'a> {
    mat: Mat<'a>,
    k: usize,
    words: Option<Vec<u32>>,
}

/// The part of a right factor that a product reads: some of its rows, and its columns from one on; both begin at multiples of 64.
pub(super) struct Part {
    pub(super) inner: Range<usize>,
    pub(super) first_col: usize,
}

impl<'a> Right<'a> {
    pub(super) fn new(mat: Mat<'a>, (n, k): (usize, usize)) -> Right<'a> {
        #[cfg(target_arch = "x86_64")]
        if BF16.load(Ordering::Relaxed) {
            // SAFETY: the switch is only set where the processor has the instructions.
            return Right { mat, k, words: Some(unsafe { avx512::packed(mat, (n, k)) }) };
        }
        debug_assert!((k - 1) * mat.row + (n - 1) * mat.col < mat.data.len());
        Right { mat, k, words: None }
    }

    /// `dst = dst * keep + a · part`, on this thread.
    ///
    /// # Safety
    /// The slice behind `dst` must be alive, and no other task may touch its elements meanwhile.
    pub(super) unsafe fn product(&self, dst: Rows, a: Mat, part: Part, keep: bool) {
        let Part { inner, first_col } = part;
        #[cfg(target_arch = "x86_64")]
        if let Some(words) = &self.words {
            // SAFETY: words are only packed where the processor has the instructions; the rows are the caller's.
            return unsafe { avx512::product(dst, a, (words, self.k), inner, first_col, keep) };
        }
        let Mat { data, row, col } = self.mat;
        let b = Mat { data: &data[inner.start * row + first_col * col..], row, col };
        // SAFETY: the rows are the caller's.
        unsafe { simd::matmul_rows(dst, inner.len(), keep, a, b, How { scale: 1.0, threads: 1 }) };
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn bf16_products_are_close_for_every_layout_and_edge() {
        if !is_supported() {
            eprintln!("SKIPPED bf16_products_are_close_for_every_layout_and_edge: this processor has no AVX-512 BF16");
            return;
        }
        for (m, n, k) in [
            (6, 64, 2),
            (1, 1, 1),
            (7, 65, 3),
            (40, 130, 513),
            (13, 17, 256),
            (64, 100, 300),
            (97, 33, 48),
            (1000, 70, 31),
        ] {
            let values = |len: usize, seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * 7919 + seed) % 997) as f32 / 498.0 - 1.0).collect()
            };
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            // Each factor stored by rows or by columns.
            let lefts = [Mat::rows(&a, k), Mat { data: &a, row: 1, col: m }];
            let rights = [Mat::rows(&b, n), Mat { data: &b, row: 1, col: k }];
            for (a, b) in lefts.into_iter().flat_map(|a| rights.map(|b| (a, b))) {
                for keep in [false, true] {
                    let mut exact = values(m * n, 3);
                    let mut mixed = exact.clone();
                    simd::matmul(&mut exact, n, (m, n, k), keep, a, b, How { scale: 1.0, threads: 1 });
                    // SAFETY: supported, as was just seen.
                    unsafe { avx512::matmul(&mut mixed, n, (m, n, k), keep, a, b) };
                    let worst = exact.iter().zip(&mixed).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
                    assert!(worst < 0.006 * (k as f32).sqrt() + 1e-6, "{m}x{n}x{k} keep {keep}: {worst}");
                }
            }
        }
    }

    #[test]
    fn parts_of_a_packed_factor_multiply_as_the_matrix_does() {
        let (k, n, m) = (200, 150, 50);
        let values = |len: usize, seed: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 7919 + seed) % 997) as f32 / 498.0 - 1.0).collect()
        };
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        for mat in [Mat::rows(&b, n), Mat { data: &b, row: 1, col: k }] {
            let mut right = Right { mat, k, words: None };
            for (inner, first_col, width) in [(0..k, 0, n), (64..199, 64, 86), (128..131, 0, 7)] {
                for a in [Mat::rows(&a, k), Mat { data: &a, row: 1, col: m }] {
                    let product = |right: &Right| {
                        let mut dst = vec![0.5; m * n];
                        let part = Part { inner: inner.clone(), first_col };
                        // SAFETY: `dst` is borrowed exclusively.
                        unsafe { right.product(Rows::new(&mut dst, n, (m, width)), a, part, true) };
                        dst
                    };
                    let exact = product(&right);
                    if is_supported() {
                        // SAFETY: supported.
                        right.words = Some(unsafe { avx512::packed(mat, (n, k)) });
                    }
                    let mixed = product(&right);
                    right.words = None;
                    let worst = exact.iter().zip(&mixed).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
                    assert!(worst < 0.006 * (inner.len() as f32).sqrt(), "{inner:?}, {first_col}: {worst}");
                    assert!(exact[width - 1] != 0.5 && (width == n || exact[width] == 0.5), "stays in its columns");
                }
            }
        }
    }
}
