//! Matrix products for processors with AVX-512: both factors packed once, then tiles of 6 x 64 in parallel.
//!
//! One body for both kinds of number (see [``]); the shells at the end compile it for the instructions of each.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, __mmask16, _mm512_add_ps, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::cell::Cell;

use rayon::prelude::*;

use super::super::simd::{Mat, Rows, Shared};

/// Columns of a tile: four registers of 16.
const COLS: usize = 64;
/// Rows of a tile: 6 x 4 accumulators, 4 factors and one broadcast fill the 32 registers.
const ROWS: usize = 6;
/// Words along the inner dimension that a tile takes at once: a panel of the right factor then fills the first-level cache.
const DEPTH: usize = 128;
/// Rows of the left factor that lie together where its memory runs along columns: a multiple of `ROWS` and of 16.
const GROUP: usize = 48;
/// Rows of one task: with the panels of the right factor that it meets, they stay in the second-level cache.
const TASK_ROWS: usize = 4 * GROUP;

thread_local! {
    /// Memory for packed factors, kept from product to product.
    static PACKED: Cell<[Vec<u32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// Packed factors of a product.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    /// `[row][word]`, or `[row / GROUP][word][row % GROUP]` where its memory runs along columns.
    left: &'a [u32],
    /// `[panel][word][COLS]`.
    right: &'a [u32],
    by_columns: bool,
    /// Words of a row of the left factor.
    depth: usize,
    /// Words of a column of the right one, and the first that meets the left one.
    right_depth: usize,
    right_start: usize,
}

/// `dst = dst * keep + a · b` with sums in float32, on all threads.
///
/// # Safety
/// The processor has AVX-512 F and BF16.
pub(super) unsafe fn matmul(
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
    let depth = k.div_ceil(2);
    let (panels, by_columns) = (n.div_ceil(COLS), a.row == 1 && a.col != 1);
    let [mut left, mut right] = PACKED.take();
    left.resize(left.len().max(m.next_multiple_of(GROUP) * depth), 0);
    right.resize(right.len().max(panels * COLS * depth), 0);
    let groups = left.par_chunks_mut(GROUP * depth).take(m.div_ceil(GROUP)).enumerate();
    let columns = right.par_chunks_mut(COLS * depth).take(panels).enumerate();
    // SAFETY: the caller's promise.
    rayon::join(
        || groups.for_each(|(i, words)| unsafe { pack_left(words, a, part(i, GROUP, m), k, by_columns) }),
        || columns.for_each(|(i, words)| unsafe { pack_right(words, b, part(i, COLS, n), k) }),
    );
    let factors = Factors { left: &left, right: &right, by_columns, depth, right_depth: depth, right_start: 0 };
    let dst = Shared::new(dst);
    (0..m.div_ceil(TASK_ROWS) * panels).into_par_iter().for_each(|task| {
        let ((row, rows), (col, cols)) = (part(task / panels, TASK_ROWS, m), part(task % panels, COLS, n));
        let dst = dst.rows(row * dst_row + col, dst_row, (rows, cols));
        // SAFETY: tasks write tiles of their own; the processor is as the caller says.
        unsafe { block(&factors, dst, (row, task % panels), keep) };
    });
    PACKED.set([left, right]);
}

/// A right factor, `k` x `n`, packed on this thread for several products.
///
/// # Safety
/// As for [`matmul`].
pub(super) unsafe fn packed(mat: Mat, (n, k): (usize, usize)) -> Vec<u32> {
    let depth = k.div_ceil(2);
    let mut words = vec![0; n.div_ceil(COLS) * COLS * depth];
    for (i, words) in words.chunks_exact_mut(COLS * depth).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { pack_right(words, mat, part(i, COLS, n), k) };
    }
    words
}

/// `dst = dst * keep + a · b` on this thread, where `b` is a part of a packed right factor of `right_k` rows: the rows `inner`, and
/// the columns from `first_col` on. Both begin at multiples of `COLS`.
///
/// # Safety
/// As for [`matmul`]; the rows of `dst` are this task's.
pub(super) unsafe fn product(
    dst: Rows,
    a: Mat,
    (right, right_k): (&[u32], usize),
    inner: std::ops::Range<usize>,
    first_col: usize,
    keep: bool,
) {
    let (m, n, k) = (dst.n_rows(), dst.width(), inner.len());
    debug_assert!(inner.start.is_multiple_of(COLS) && first_col.is_multiple_of(COLS));
    assert!((m - 1) * a.row + (k - 1) * a.col < a.data.len(), "matmul: left factor too short");
    let (depth, by_columns) = (k.div_ceil(2), a.row == 1 && a.col != 1);
    let [mut left, other] = PACKED.take();
    left.resize(left.len().max(m.next_multiple_of(GROUP) * depth), 0);
    for (i, words) in left.chunks_mut(GROUP * depth).take(m.div_ceil(GROUP)).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { pack_left(words, a, part(i, GROUP, m), k, by_columns) };
    }
    let (right_depth, right_start) = (right_k.div_ceil(2), inner.start / 2);
    let factors = Factors { left: &left, right, by_columns, depth, right_depth, right_start };
    for panel in 0..n.div_ceil(COLS) {
        let (col, cols) = part(panel, COLS, n);
        // SAFETY: the caller's promise.
        unsafe { block(&factors, dst.columns(col, cols), (0, first_col / COLS + panel), keep) };
    }
    PACKED.set([left, other]);
}

/// First element and size of part `i` of `n` elements.
fn part(i: usize, size: usize, n: usize) -> (usize, usize) {
    (i * size, size.min(n - i * size))
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn block(factors: &Factors, dst: Rows, (first, panel): (usize, usize), keep: bool) {
    let Factors { left, right, by_columns, depth, right_depth, right_start } = *factors;
    let panel = &right[(panel * right_depth + right_start) * COLS..][..depth * COLS];
    let word = |row: usize, word: usize| match by_columns {
        true => (row / GROUP * depth + word) * GROUP + row % GROUP,
        false => row * depth + word,
    };
    let step = if by_columns { GROUP } else { 1 };
    let rows = dst.n_rows();
    for start in (0..depth).step_by(DEPTH) {
        let panel = &panel[start * COLS..depth.min(start + DEPTH) * COLS];
        for row in (0..rows).step_by(ROWS) {
            // The last rows repeat the last of all; what they give is not stored.
            let starts = std::array::from_fn(|i| word(first + (row + i).min(rows - 1), start));
            // SAFETY: the caller's promise.
            let sums = unsafe { tile(left, starts, step, panel) };
            for (i, sums) in sums.iter().enumerate().take(rows - row) {
                // SAFETY: these rows are this task's, as the caller says.
                unsafe { store(dst.row(row + i), sums, keep || start > 0) };
            }
        }
    }
}

/// The products of six rows, whose words begin at `starts`, and 64 columns.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile(left: &[u32], starts: [usize; ROWS], step: usize, right: &[u32]) -> [[__m512; 4]; ROWS] {
    let (right, _) = right.as_chunks::<COLS>();
    let furthest = starts.iter().max().map_or(0, |start| start + right.len().saturating_sub(1) * step);
    assert!(furthest < left.len(), "tile out of bounds");
    // SAFETY: the processor is as the caller says; the assertion bounds every index into `left`.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 4]; ROWS];
        for (word, b) in right.iter().enumerate() {
            let b: [__m512bh; 4] =
                std::array::from_fn(|i| bf16(_mm512_loadu_si512(b[16 * i..16 * (i + 1)].as_ptr().cast())));
            for row in 0..ROWS {
                let a = bf16(_mm512_set1_epi32(*left.get_unchecked(starts[row] + word * step) as i32));
                for i in 0..4 {
                    sums[row][i] = _mm512_dpbf16_ps(sums[row][i], a, b[i]);
                }
            }
        }
        sums
    }
}

/// Packs rows (`first`, how many) of the left factor.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_left(words: &mut [u32], mat: Mat, (first, rows): (usize, usize), k: usize, by_columns: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if by_columns {
            return across(words, GROUP, mat.t(), (first, rows), k);
        }
        for (row, words) in words.chunks_exact_mut(k.div_ceil(2)).take(rows).enumerate() {
            along(words, mat, first + row, k);
        }
    }
}

/// Packs a panel of columns (`first`, how many) of the right factor.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_right(words: &mut [u32], mat: Mat, cols: (usize, usize), k: usize) {
    // SAFETY: the caller's promise.
    match mat.col {
        1 => unsafe { across(words, COLS, mat, cols, k) },
        _ => unsafe { turned(words, mat.t(), cols, k) },
    }
}

/// Words of neighbouring columns of `mat`, whose inner dimension goes down its rows: `[word][step]`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn across(words: &mut [u32], step: usize, mat: Mat, (first, width): (usize, usize), k: usize) {
    for (word, words) in words.chunks_exact_mut(step).enumerate() {
        let row = |i: usize| if i < k { &mat.data[i * mat.row + first..][..width] } else { &[] };
        let (top, below) = (row(2 * word), row(2 * word + 1));
        for at in (0..width).step_by(16) {
            // SAFETY: the caller's promise.
            unsafe { store_words(&mut words[at..width], stacked(&top[at..], below.get(at..).unwrap_or(&[]))) };
        }
    }
}

/// Words of a row of `mat`, along it.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn along(words: &mut [u32], mat: Mat, row: usize, k: usize) {
    let mut gathered = [0f32; 32];
    for (i, words) in words.chunks_mut(16).enumerate() {
        let (start, end) = (32 * i, k.min(32 * (i + 1)));
        // SAFETY: the caller's promise.
        unsafe { store_words(words, neighbours(stretch(mat, row, start..end, &mut gathered))) };
    }
}

/// Words of rows of `mat` (`first`, how many), turned: `[word][COLS]`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn turned(words: &mut [u32], mat: Mat, (first, width): (usize, usize), k: usize) {
    let mut gathered = [0f32; 32];
    for (square, words) in words.chunks_mut(16 * COLS).enumerate() {
        let (start, end) = (32 * square, k.min(32 * (square + 1)));
        for from in (0..width).step_by(16) {
            // SAFETY: the caller's promise.
            unsafe {
                let lines: [__m512i; 16] = std::array::from_fn(|j| match from + j < width {
                    true => neighbours(stretch(mat, first + from + j, start..end, &mut gathered)),
                    false => _mm512_setzero_si512(),
                });
                for (line, words) in transpose(lines).into_iter().zip(words.chunks_exact_mut(COLS)) {
                    store_words(&mut words[from..from + 16], line);
                }
            }
        }
    }
}

/// A stretch of a row, gathered where its elements are not neighbours in memory.
#[inline(always)]
fn stretch<'a>(mat: Mat<'a>, row: usize, at: std::ops::Range<usize>, gathered: &'a mut [f32; 32]) -> &'a [f32] {
    if mat.col == 1 {
        return &mat.data[row * mat.row..][at];
    }
    let len = at.len();
    at.zip(gathered.iter_mut()).for_each(|(i, value)| *value = mat.data[row * mat.row + i * mat.col]);
    &gathered[..len]
}

/// Rows and columns of 16 x 16 words exchanged: first within lanes of 4, then the lanes themselves.
#[target_feature(enable = "avx512f,avx512bf16")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let words: [__m512i; 16] = std::array::from_fn(|i| match i % 2 {
        0 => _mm512_unpacklo_epi32(rows[i], rows[i + 1]),
        _ => _mm512_unpackhi_epi32(rows[i - 1], rows[i]),
    });
    // Lane L of `columns[4g + c]` has column 4L + c of the rows 4g to 4g + 3.
    let columns: [__m512i; 16] = std::array::from_fn(|i| {
        let (x, y) = (words[i / 4 * 4 + i % 4 / 2], words[i / 4 * 4 + i % 4 / 2 + 2]);
        if i % 2 == 0 { _mm512_unpacklo_epi64(x, y) } else { _mm512_unpackhi_epi64(x, y) }
    });
    let lanes: [__m512i; 16] = std::array::from_fn(|i| {
        let (x, y) = (columns[i / 8 * 8 + i % 4], columns[i / 8 * 8 + i % 4 + 4]);
        if i % 8 < 4 { _mm512_shuffle_i32x4::<0x88>(x, y) } else { _mm512_shuffle_i32x4::<0xDD>(x, y) }
    });
    std::array::from_fn(|i| {
        let (x, y) = (lanes[i % 8], lanes[i % 8 + 8]);
        if i < 8 { _mm512_shuffle_i32x4::<0x88>(x, y) } else { _mm512_shuffle_i32x4::<0xDD>(x, y) }
    })
}

/// The first values, at most 16; zeros after them.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load(values: &[f32]) -> __m512 {
    // SAFETY: the mask has one bit for each value that is read.
    unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
}

/// Stores as many words as there is room for.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn store_words(words: &mut [u32], values: __m512i) {
    // SAFETY: the mask has one bit for each word that is written.
    unsafe { _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), mask(words.len()), values) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn store(out: &mut [f32], sums: &[__m512; 4], keep: bool) {
    for (out, &sum) in out.chunks_mut(16).zip(sums) {
        // SAFETY: the mask has one bit for each element of `out`.
        unsafe {
            let sum = if keep { _mm512_add_ps(sum, load(out)) } else { sum };
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask(out.len()), sum);
        }
    }
}

#[inline(always)]
fn mask(len: usize) -> __mmask16 {
    ((1u32 << len.min(16)) - 1) as __mmask16
}

/// Up to 32 neighbours along the inner dimension as words of two; zeros after them.
#[target_feature(enable = "avx512f,avx512bf16")]
fn neighbours(values: &[f32]) -> __m512i {
    let (low, high) = values.split_at(values.len().min(16));
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(load(high), load(low))) }
}

/// Words from neighbours that lie one below the other in two rows; at most 16, zeros after them and for an empty row.
#[target_feature(enable = "avx512f,avx512bf16")]
fn stacked(low: &[f32], high: &[f32]) -> __m512i {
    _mm512_or_si512(low_halves(low), _mm512_slli_epi32::<16>(low_halves(high)))
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn low_halves(values: &[f32]) -> __m512i {
    // SAFETY: both are 256 bits without invalid values.
    _mm512_cvtepu16_epi32(unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(load(values))) })
}

#[target_feature(enable = "avx512f")]
fn bf16(words: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(words) }
}
