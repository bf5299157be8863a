//! Matrix products by whatever kernel the processor and the run want: tiles with AVX-512, in float32 or in factors rounded to bfloat16
//! with float32 sums, else the library's.
//!
//! bfloat16 is training in mixed precision, as GPUs do it (Micikevicius et al. 2018, arXiv 1710.03740; it needs no loss scaling: Kalamkar
//! et al. 2019, arXiv 1905.12322). One instruction multiplies two pairs in each of 16 lanes, twice the rate of float32. Off unless asked
//! for, and on other processors.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::simd::{self, How, Mat, Rows, Shared};

#[cfg(target_arch = "x86_64")]
use avx512::Number;

#[cfg(target_arch = "x86_64")]
mod avx512;

/// Rows of one task of [`Right::multiply`] are multiples of this.
const TASK_ROWS: usize = 48;
/// Rows of the left factor below which packing costs more than it gains.
#[cfg(target_arch = "x86_64")]
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
    avx512::Bf16::is_supported()
}

#[cfg(not(target_arch = "x86_64"))]
fn is_supported() -> bool {
    false
}

/// The numbers that our own kernels multiply.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq)]
enum Numbers {
    Float32,
    Bf16,
}

/// Those of our own kernel for a left factor of `m` rows, where it gains.
#[cfg(target_arch = "x86_64")]
fn numbers(m: usize) -> Option<Numbers> {
    match m >= MIN_ROWS {
        // The switch is only set where the processor has the instructions.
        true if BF16.load(Ordering::Relaxed) => Some(Numbers::Bf16),
        true if avx512::Float32::is_supported() => Some(Numbers::Float32),
        _ => None,
    }
}

/// As [`simd::matmul`] on all threads, in bfloat16 if [`set_bf16_products`] said so.
pub(super) fn matmul(dst: &mut [f32], dst_row: usize, size: (usize, usize, usize), keep: bool, a: Mat, b: Mat) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor was asked.
    match numbers(size.0) {
        Some(Numbers::Float32) => return unsafe { avx512::matmul::<avx512::Float32>(dst, dst_row, size, keep, a, b) },
        Some(Numbers::Bf16) => return unsafe { avx512::matmul::<avx512::Bf16>(dst, dst_row, size, keep, a, b) },
        None => {}
    }
    simd::matmul(dst, dst_row, size, keep, a, b, How { scale: 1.0, threads: rayon::current_num_threads() });
}

/// The right factor of several products, `k` x `n`; in bfloat16 if [`set_bf16_products`] said so when it was made.
pub(super) struct Right<'a> {
    mat: Mat<'a>,
    #[cfg(target_arch = "x86_64")]
    packed: Option<Packed>,
}

/// What our own kernel reads of a right factor.
#[cfg(target_arch = "x86_64")]
struct Packed {
    numbers: Numbers,
    k: usize,
    words: avx512::Words,
}

#[cfg(target_arch = "x86_64")]
impl Packed {
    /// # Safety
    /// The processor has the instructions for the numbers.
    unsafe fn new(numbers: Numbers, mat: Mat, (n, k): (usize, usize)) -> Packed {
        // SAFETY: the caller's promise.
        let words = match numbers {
            Numbers::Float32 => unsafe { avx512::packed::<avx512::Float32>(mat, (n, k)) },
            Numbers::Bf16 => unsafe { avx512::packed::<avx512::Bf16>(mat, (n, k)) },
        };
        Packed { numbers, k, words }
    }
}

/// The part of a right factor that a product reads: some of its rows, and its columns from one on; both begin at multiples of 64.
pub(super) struct Part {
    pub(super) inner: Range<usize>,
    pub(super) first_col: usize,
}

impl<'a> Right<'a> {
    /// For left factors of `m` rows.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub(super) fn new(mat: Mat<'a>, (m, n, k): (usize, usize, usize)) -> Right<'a> {
        debug_assert!((k - 1) * mat.row + (n - 1) * mat.col < mat.data.len());
        Right {
            mat,
            // SAFETY: the processor was asked.
            #[cfg(target_arch = "x86_64")]
            packed: numbers(m).map(|numbers| unsafe { Packed::new(numbers, mat, (n, k)) }),
        }
    }

    /// `dst = a · b` of `m` rows of `n` columns, all of this factor, on all threads.
    pub(super) fn multiply(&self, dst: &mut [f32], (m, n, k): (usize, usize, usize), a: Mat) {
        let dst = Shared::new(dst);
        let task_rows = m.div_ceil(rayon::current_num_threads()).next_multiple_of(TASK_ROWS);
        (0..m.div_ceil(task_rows)).into_par_iter().for_each(|task| {
            let first = task * task_rows;
            let rows = dst.rows(first * n, n, (task_rows.min(m - first), n));
            let a = Mat { data: &a.data[first * a.row..], ..a };
            // SAFETY: tasks write rows of their own, and `dst` is borrowed exclusively.
            unsafe { self.product(rows, a, Part { inner: 0..k, first_col: 0 }, false) };
        });
    }

    /// `dst = dst * keep + a · part`, on this thread.
    ///
    /// # Safety
    /// The slice behind `dst` must be alive, and no other task may touch its elements meanwhile.
    pub(super) unsafe fn product(&self, dst: Rows, a: Mat, part: Part, keep: bool) {
        let Part { inner, first_col } = part;
        #[cfg(target_arch = "x86_64")]
        if let Some(Packed { numbers, k, words }) = &self.packed {
            let (b, part) = ((words, *k), (inner, first_col));
            // SAFETY: words are only packed where the processor has the instructions; the rows are the caller's.
            return match numbers {
                Numbers::Float32 => unsafe { avx512::product::<avx512::Float32>(dst, a, b, part, keep) },
                Numbers::Bf16 => unsafe { avx512::product::<avx512::Bf16>(dst, a, b, part, keep) },
            };
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

    /// The numbers that this processor has, and the error of a product of two factors below 1.
    fn supported(test: &str) -> Vec<(Numbers, f32)> {
        let float32 = (Numbers::Float32, 2e-5, avx512::Float32::is_supported());
        let bf16 = (Numbers::Bf16, 0.006, avx512::Bf16::is_supported());
        let (have, lack): (Vec<_>, Vec<_>) = [float32, bf16].into_iter().partition(|(_, _, has)| *has);
        lack.iter()
            .for_each(|(numbers, ..)| eprintln!("SKIPPED {test}: this processor has no AVX-512 for {numbers:?}"));
        have.into_iter().map(|(numbers, error, _)| (numbers, error)).collect()
    }

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed) % 997) as f32 / 498.0 - 1.0).collect()
    }

    #[test]
    fn tiles_are_close_to_the_library_for_every_layout_and_edge() {
        let sizes = [
            (6, 64, 2),
            (1, 1, 1),
            (7, 65, 3),
            (40, 130, 513),
            (13, 17, 256),
            (64, 100, 300),
            (97, 33, 48),
            (1000, 70, 31),
        ];
        for (numbers, error) in supported("tiles_are_close_to_the_library_for_every_layout_and_edge") {
            for (m, n, k) in sizes {
                let (a, b) = (values(m * k, 1), values(k * n, 2));
                // Each factor stored by rows or by columns.
                let lefts = [Mat::rows(&a, k), Mat { data: &a, row: 1, col: m }];
                let rights = [Mat::rows(&b, n), Mat { data: &b, row: 1, col: k }];
                for (a, b) in lefts.into_iter().flat_map(|a| rights.map(|b| (a, b))) {
                    for keep in [false, true] {
                        let mut exact = values(m * n, 3);
                        let mut tiled = exact.clone();
                        simd::matmul(&mut exact, n, (m, n, k), keep, a, b, How { scale: 1.0, threads: 1 });
                        // SAFETY: supported.
                        unsafe {
                            match numbers {
                                Numbers::Float32 => {
                                    avx512::matmul::<avx512::Float32>(&mut tiled, n, (m, n, k), keep, a, b)
                                }
                                Numbers::Bf16 => avx512::matmul::<avx512::Bf16>(&mut tiled, n, (m, n, k), keep, a, b),
                            }
                        }
                        let worst = exact.iter().zip(&tiled).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
                        assert!(worst < error * (k as f32).sqrt() + 1e-6, "{m}x{n}x{k} keep {keep}: {worst}");
                    }
                }
            }
        }
    }

    #[test]
    fn parts_of_a_packed_factor_multiply_as_the_matrix_does() {
        let (k, n, m) = (200, 150, 50);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let product = |right: &Right, a: Mat, part: Part, width: usize| {
            let mut dst = vec![0.5; m * n];
            // SAFETY: `dst` is borrowed exclusively.
            unsafe { right.product(Rows::new(&mut dst, n, (m, width)), a, part, true) };
            dst
        };
        for (numbers, error) in supported("parts_of_a_packed_factor_multiply_as_the_matrix_does") {
            for mat in [Mat::rows(&b, n), Mat { data: &b, row: 1, col: k }] {
                // SAFETY: supported.
                let packed = unsafe { Packed::new(numbers, mat, (n, k)) };
                let rights = [Right { mat, packed: None }, Right { mat, packed: Some(packed) }];
                for (inner, first_col, width) in [(0..k, 0, n), (64..199, 64, 86), (128..131, 0, 7)] {
                    for a in [Mat::rows(&a, k), Mat { data: &a, row: 1, col: m }] {
                        let part = || Part { inner: inner.clone(), first_col };
                        let [exact, tiled] = [0, 1].map(|i| product(&rights[i], a, part(), width));
                        let worst = exact.iter().zip(&tiled).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
                        assert!(worst < error * (inner.len() as f32).sqrt(), "{inner:?}, {first_col}: {worst}");
                        assert!(exact[width - 1] != 0.5 && (width == n || exact[width] == 0.5), "stays in its columns");
                    }
                }
            }
        }
    }
}
