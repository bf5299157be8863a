//! Matrix products whose factors are rounded to bfloat16 and whose sums are float32, for processors with AVX-512 BF16.
//!
//! Training in mixed precision, as GPUs do it (Micikevicius et al. 2018, arXiv 1710.03740; bfloat16 needs no loss scaling: Kalamkar et al.
//! 2019, arXiv 1905.12322). One instruction multiplies two pairs in each of 16 lanes, twice the rate of float32. Off unless asked for;
//! on other processors, and for products too small to gain, the float32 product runs.

use std::sync::atomic::{AtomicBool, Ordering};

use super::simd::{self, How, Mat};

/// Columns of a tile: four registers of 16.
const COLS: usize = 64;
/// Rows of a tile: 6 x 4 accumulators, 4 factors and one broadcast fill the 32 registers.
const ROWS: usize = 6;
/// Pairs along the inner dimension that are packed together: a panel of the right factor then fills the first-level cache.
const PAIRS: usize = 128;
/// Rows of the left factor below which packing costs more than it gains.
const MIN_ROWS: usize = 32;

static BF16: AtomicBool = AtomicBool::new(false);

/// Lets the matrix products of the layers (not attention's, not norms) round their factors to bfloat16, where the processor gains by it.
/// For the whole process: a training run decides once. Returns whether this processor can.
pub fn set_bf16_products(on: bool) -> bool {
    let can = is_supported();
    BF16.store(on && can, Ordering::Relaxed);
    can
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
        return x86::matmul(dst, dst_row, size, keep, a, b);
    }
    simd::matmul(dst, dst_row, size, keep, a, b, How { scale: 1.0, threads });
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, __mmask16, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_si512,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps,
    };
    use std::ops::Range;

    use rayon::prelude::*;

    use super::super::simd::{self, Mat, Rows, Shared};
    use super::{COLS, MIN_ROWS, PAIRS, ROWS};

    pub(super) fn matmul(
        dst: &mut [f32],
        dst_row: usize,
        (m, n, k): (usize, usize, usize),
        keep: bool,
        a: Mat,
        b: Mat,
    ) {
        assert!(m > 0 && n > 0 && k > 0, "matmul: an empty factor");
        assert!((m - 1) * a.row + (k - 1) * a.col < a.data.len(), "matmul: left factor too short");
        assert!((k - 1) * b.row + (n - 1) * b.col < b.data.len(), "matmul: right factor too short");
        let dst = Shared::new(dst);
        let mut left = vec![0u32; m * PAIRS];
        for first in (0..k).step_by(2 * PAIRS) {
            let inner = (2 * PAIRS).min(k - first);
            let pairs = inner.div_ceil(2);
            let stretch = first..first + inner;
            let left = Left::pack(&mut left[..m * pairs], a, m, stretch.clone());
            (0..n.div_ceil(COLS)).into_par_iter().for_each(|panel| {
                let first_col = panel * COLS;
                let cols = COLS.min(n - first_col);
                let mut right = vec![0u32; COLS * pairs];
                pack_right(&mut right, b, first_col, cols, stretch.clone());
                let dst = dst.rows(first_col, dst_row, (m, cols));
                // SAFETY: panels write columns of their own; the caller saw AVX-512 BF16.
                unsafe { panel_product(left, &right, pairs, m, dst, keep || first > 0) };
            });
        }
    }

    /// The left factor in words of two bfloat16, in the order of its own memory, so that packing reads and writes in line: the word of
    /// `(row, pair)` is `words[row * row_step + pair * pair_step]`.
    #[derive(Clone, Copy)]
    struct Left<'a> {
        words: &'a [u32],
        row_step: usize,
        pair_step: usize,
    }

    impl<'a> Left<'a> {
        /// Packs the columns `stretch` of the `m` rows of `mat`.
        fn pack(words: &'a mut [u32], mat: Mat, m: usize, stretch: Range<usize>) -> Left<'a> {
            let pairs = stretch.len().div_ceil(2);
            if mat.row == 1 {
                words.par_chunks_exact_mut(m).enumerate().for_each(|(pair, words)| {
                    pack_pair(words, mat.t(), 0, stretch.start + 2 * pair, stretch.end);
                });
                return Left { words, row_step: 1, pair_step: m };
            }
            words.par_chunks_exact_mut(pairs).with_min_len(MIN_ROWS).enumerate().for_each(|(row, words)| {
                pack_along(words, mat, row, stretch.clone());
            });
            Left { words, row_step: pairs, pair_step: 1 }
        }
    }

    /// Packs `width` columns of `mat` (inner dimension along its rows) from `first` on as `[pair][COLS]`.
    fn pack_right(packed: &mut [u32], mat: Mat, first: usize, width: usize, stretch: Range<usize>) {
        if mat.col == 1 {
            let lines = packed.chunks_exact_mut(COLS).enumerate();
            return lines.for_each(|(pair, words)| {
                pack_pair(&mut words[..width], mat, first, stretch.start + 2 * pair, stretch.end);
            });
        }
        let mut line = [0u32; PAIRS];
        for j in 0..width {
            let line = &mut line[..packed.len() / COLS];
            pack_along(line, mat.t(), first + j, stretch.clone());
            packed.iter_mut().skip(j).step_by(COLS).zip(line).for_each(|(word, &mut value)| *word = value);
        }
    }

    /// Words of the rows `k` and `k + 1` (zero from `end` on) of `mat`, whose columns lie side by side.
    fn pack_pair(words: &mut [u32], mat: Mat, first: usize, k: usize, end: usize) {
        let even = &mat.data[k * mat.row + first..][..words.len()];
        let odd = if k + 1 < end { &mat.data[(k + 1) * mat.row + first..][..words.len()] } else { even };
        let high = if k + 1 < end { 0xFFFF_0000 } else { 0 };
        simd::vectorized(|| {
            for ((packed, &low), &odd) in words.iter_mut().zip(even).zip(odd) {
                *packed = word(low, odd) & (high | 0xFFFF);
            }
        });
    }

    /// Words of the elements `stretch` of a row of `mat`.
    fn pack_along(words: &mut [u32], mat: Mat, row: usize, stretch: Range<usize>) {
        if mat.col != 1 {
            let at = |k: usize| mat.data[row * mat.row + k * mat.col];
            let other = |k: usize| if k < stretch.end { at(k) } else { 0.0 };
            let starts = stretch.clone().step_by(2);
            return words.iter_mut().zip(starts).for_each(|(packed, k)| *packed = word(at(k), other(k + 1)));
        }
        let values = &mat.data[row * mat.row..][stretch];
        let (whole, rest) = values.as_chunks::<2>();
        simd::vectorized(|| {
            words.iter_mut().zip(whole).for_each(|(packed, &[low, high])| *packed = word(low, high));
        });
        if let (Some(last), &[low]) = (words.last_mut(), rest) {
            *last = word(low, 0.0);
        }
    }

    /// Two values as bfloat16, rounded to nearest even, the first in the low half.
    #[inline(always)]
    fn word(low: f32, high: f32) -> u32 {
        let rounded = |x: f32| {
            let bits = x.to_bits();
            bits.wrapping_add(0x7FFF + ((bits >> 16) & 1))
        };
        (rounded(low) >> 16) | (rounded(high) & 0xFFFF_0000)
    }

    /// All rows of the left factor times one panel of the right.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn panel_product(left: Left, right: &[u32], pairs: usize, m: usize, dst: Rows, keep: bool) {
        for first in (0..m).step_by(ROWS) {
            // The last rows repeat the last of all; what they give is not stored.
            let starts = std::array::from_fn(|i| (first + i).min(m - 1) * left.row_step);
            let acc = tile(left, starts, right, pairs);
            for (i, acc) in acc.iter().enumerate().take(m - first) {
                // SAFETY: these rows are this task's, as the caller says.
                store(unsafe { dst.row(first + i) }, acc, keep);
            }
        }
    }

    /// The products of six rows, whose words begin at `starts`, and 64 columns.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn tile(left: Left, starts: [usize; ROWS], right: &[u32], pairs: usize) -> [[__m512; 4]; ROWS] {
        let mut acc = [[_mm512_setzero_ps(); 4]; ROWS];
        let (right, _) = right.as_chunks::<COLS>();
        let furthest = starts.iter().max().map_or(0, |start| start + (pairs - 1) * left.pair_step);
        assert!(pairs > 0 && right.len() >= pairs && furthest < left.words.len(), "tile out of bounds");
        for (pair, b) in right.iter().enumerate().take(pairs) {
            let b: [__m512bh; 4] = std::array::from_fn(|i| bf16(load(&b[16 * i..16 * (i + 1)])));
            for row in 0..ROWS {
                // SAFETY: at most the index that the assertion bounds.
                let word = unsafe { *left.words.get_unchecked(starts[row] + pair * left.pair_step) };
                let a = bf16(_mm512_set1_epi32(word as i32));
                for i in 0..4 {
                    acc[row][i] = _mm512_dpbf16_ps(acc[row][i], a, b[i]);
                }
            }
        }
        acc
    }

    #[target_feature(enable = "avx512f")]
    fn load(words: &[u32]) -> __m512i {
        assert!(words.len() == 16);
        // SAFETY: 16 words of 32 bits were just counted.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn bf16(words: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits without invalid values.
        unsafe { std::mem::transmute(words) }
    }

    #[target_feature(enable = "avx512f")]
    fn store(out: &mut [f32], acc: &[__m512; 4], keep: bool) {
        for (out, &acc) in out.chunks_mut(16).zip(acc) {
            let mask = (u32::MAX >> (32 - out.len())) as __mmask16;
            // SAFETY: the mask has one bit for each element of `out`.
            unsafe {
                let sum = if keep { _mm512_add_ps(acc, _mm512_maskz_loadu_ps(mask, out.as_ptr())) } else { acc };
                _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, sum);
            }
        }
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
        for (m, n, k) in [(6, 64, 2), (1, 1, 1), (7, 65, 3), (40, 130, 513), (13, 17, 256), (64, 100, 300)] {
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
                    x86::matmul(&mut mixed, n, (m, n, k), keep, a, b);
                    let worst = exact.iter().zip(&mixed).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
                    assert!(worst < 0.006 * (k as f32).sqrt() + 1e-6, "{m}x{n}x{k} keep {keep}: {worst}");
                }
            }
        }
    }
}
