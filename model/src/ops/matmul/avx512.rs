//! Matrix products for processors with AVX-512: the right factor packed once, then tiles of 6 x 64 in parallel.
//!
//! One body for both kinds of number: a word holds one float32 or two neighbouring bfloat16. What differs lies in [`float32`] and
//! [`bf16`]: how a word is made, where the left factor's words are, and the instruction that multiplies.

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi32,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_storeu_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::simd::{Mat, Rows, Shared};

mod bf16;
mod float32;

pub(super) use bf16::Bf16;
pub(super) use float32::Float32;

/// Columns of a tile: four registers of 16.
pub(super) const COLS: usize = 64;
/// Rows of a tile: 6 x 4 accumulators, 4 factors and one broadcast fill the 32 registers.
const ROWS: usize = 6;
/// Rows of one task: with the panels of the right factor that it meets, they stay in the second-level cache.
const TASK_ROWS: usize = 192;

/// What one kind of number does in its own way. All but `is_supported` need the processor that it asks for.
pub(super) trait Number {
    /// Neighbours along the inner dimension in a word.
    const PER_WORD: usize;
    /// Words along the inner dimension that a tile takes at once.
    const DEPTH: usize;

    fn is_supported() -> bool;

    /// The left factor of so many rows and inner elements; what must be packed becomes the memory.
    unsafe fn left<'a>(memory: &'a mut Option<Words>, mat: Mat<'a>, size: (usize, usize)) -> Left<'a>;

    /// Packs a panel of columns (first, how many) of the right factor: `[word][COLS]`.
    unsafe fn pack_right(words: &mut [u32], mat: Mat, cols: (usize, usize), k: usize);

    /// `sum + a · b` in each lane.
    unsafe fn multiply_add(sum: __m512, a: u32, b: __m512i) -> __m512;

    /// [`block_body`], compiled for the instructions that it needs.
    unsafe fn block(factors: (Left, Right), dst: Rows, at: (usize, usize), keep: bool);
}

/// The words of a left factor, where they lie: rows in groups (of whole tiles), words of a row a step apart.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    words: &'a [u32],
    group: usize,
    group_step: usize,
    row_step: usize,
    word_step: usize,
}

impl Left<'_> {
    fn at(&self, row: usize, word: usize) -> usize {
        row / self.group * self.group_step + row % self.group * self.row_step + word * self.word_step
    }

    /// Asks for 16 words of each row of a tile, from `at` on.
    #[inline(always)]
    fn prefetch(&self, at: usize) {
        let at = self.words.as_ptr().wrapping_add(at);
        match self.word_step {
            1 => (0..ROWS).for_each(|row| prefetch(at.wrapping_add(row * self.row_step))),
            step => (0..16).for_each(|word| prefetch(at.wrapping_add(word * step))),
        }
    }
}

/// A part of a packed right factor, `[panel][word][COLS]`.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    words: &'a [u32],
    /// Words of a column, those of them that meet the left factor, and the first of these.
    panel_depth: usize,
    depth: usize,
    start: usize,
}

/// Words in whole lines of the cache, as a load across two of them is slower. What they held before stays where nothing is written.
pub(super) struct Words {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u32; 16]);

thread_local! {
    /// Memory of words that are gone, the smallest first, for the next ones on this thread.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

impl Words {
    fn new(len: usize) -> Words {
        let n_lines = len.div_ceil(16);
        let mut lines = FREE.with_borrow_mut(|free| {
            // The smallest that is large enough, else the largest.
            let best = free.partition_point(|lines| lines.len() < n_lines);
            if free.is_empty() { Vec::new() } else { free.remove(best.min(free.len() - 1)) }
        });
        lines.resize(lines.len().max(n_lines), Line([0; 16]));
        Words { lines, len }
    }

    fn get(&self) -> &[u32] {
        // SAFETY: a line is 16 words without padding, and there are as many lines as hold `len`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    fn get_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // A thread that ends frees its memory itself.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            let at = free.partition_point(|other| other.len() < lines.len());
            free.insert(at, lines);
        });
    }
}

/// `dst = dst * keep + a · b` with sums in float32, on all threads.
///
/// # Safety
/// The processor supports the number.
pub(super) unsafe fn matmul<N: Number>(
    dst: &mut [f32],
    dst_row: usize,
    (m, n, k): (usize, usize, usize),
    keep: bool,
    a: Mat,
    b: Mat,
) {
    check_left(a, (m, k));
    assert!(n > 0 && (k - 1) * b.row + (n - 1) * b.col < b.data.len(), "matmul: right factor too short");
    let (depth, panels) = (k.div_ceil(N::PER_WORD), n.div_ceil(COLS));
    let (mut left, mut right) = (None, Words::new(panels * COLS * depth));
    // SAFETY: the caller's promise.
    let factor = unsafe { N::left(&mut left, a, (m, k)) };
    let columns = right.get_mut().par_chunks_exact_mut(COLS * depth).enumerate();
    // SAFETY: the caller's promise.
    columns.for_each(|(i, words)| unsafe { N::pack_right(words, b, part(i, COLS, n), k) });
    let packed = Right { words: right.get(), panel_depth: depth, depth, start: 0 };
    let dst = Shared::new(dst);
    (0..m.div_ceil(TASK_ROWS) * panels).into_par_iter().for_each(|task| {
        let ((row, rows), (col, cols)) = (part(task / panels, TASK_ROWS, m), part(task % panels, COLS, n));
        let dst = dst.rows(row * dst_row + col, dst_row, (rows, cols));
        // SAFETY: tasks write tiles of their own; the processor is as the caller says.
        unsafe { N::block((factor, packed), dst, (row, task % panels), keep) };
    });
}

/// A right factor, `k` x `n`, packed on this thread for several products.
///
/// # Safety
/// As for [`matmul`].
pub(super) unsafe fn packed<N: Number>(mat: Mat, (n, k): (usize, usize)) -> Words {
    let depth = k.div_ceil(N::PER_WORD);
    let mut words = Words::new(n.div_ceil(COLS) * COLS * depth);
    for (i, words) in words.get_mut().chunks_exact_mut(COLS * depth).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { N::pack_right(words, mat, part(i, COLS, n), k) };
    }
    words
}

/// `dst = dst * keep + a · b` on this thread, where `b` is a part of a packed right factor of `right_k` rows: the rows `inner`, and
/// the columns from `first_col` on. Both begin at multiples of `COLS`.
///
/// # Safety
/// As for [`matmul`]; the rows of `dst` are this task's.
pub(super) unsafe fn product<N: Number>(
    dst: Rows,
    a: Mat,
    (right, right_k): (&Words, usize),
    (inner, first_col): (Range<usize>, usize),
    keep: bool,
) {
    let (m, n, k) = (dst.n_rows(), dst.width(), inner.len());
    debug_assert!(inner.start.is_multiple_of(COLS) && first_col.is_multiple_of(COLS));
    check_left(a, (m, k));
    let mut left = None;
    // SAFETY: the caller's promise.
    let factor = unsafe { N::left(&mut left, a, (m, k)) };
    let words = |k: usize| k.div_ceil(N::PER_WORD);
    let (panel_depth, depth) = (words(right_k), words(k));
    let packed = Right { words: right.get(), panel_depth, depth, start: inner.start / N::PER_WORD };
    for panel in 0..n.div_ceil(COLS) {
        let (col, cols) = part(panel, COLS, n);
        // SAFETY: the caller's promise.
        unsafe { N::block((factor, packed), dst.columns(col, cols), (0, first_col / COLS + panel), keep) };
    }
}

fn check_left(a: Mat, (m, k): (usize, usize)) {
    assert!(m > 0 && k > 0, "matmul: an empty factor");
    assert!((m - 1) * a.row + (k - 1) * a.col < a.data.len(), "matmul: left factor too short");
}

/// First element and size of part `i` of `n` elements.
fn part(i: usize, size: usize, n: usize) -> (usize, usize) {
    (i * size, size.min(n - i * size))
}

/// Some rows of `dst` in one panel: a tile at a time, over all words.
///
/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn block_body<N: Number>((left, right): (Left, Right), dst: Rows, (first, panel): (usize, usize), keep: bool) {
    let Right { words, panel_depth, depth, start } = right;
    let panel = &words[(panel * panel_depth + start) * COLS..][..depth * COLS];
    let rows = dst.n_rows();
    for start in (0..depth).step_by(N::DEPTH) {
        let panel = &panel[start * COLS..depth.min(start + N::DEPTH) * COLS];
        for row in (0..rows).step_by(ROWS) {
            // The last rows repeat the last of all; what they give is not stored.
            let at = left.at(first + row, start);
            let starts = std::array::from_fn(|i| at + i.min(rows - 1 - row) * left.row_step);
            // SAFETY: the caller's promise; these rows are this task's.
            unsafe {
                (row..rows.min(row + ROWS)).for_each(|row| prefetch_row(dst.row(row)));
                let sums = tile::<N>(left, starts, panel);
                // Bounds that the compiler knows let the sums stay in their registers.
                #[allow(clippy::needless_range_loop)]
                for i in 0..ROWS {
                    if i < rows - row {
                        store(dst.row(row + i), &sums[i], keep || start > 0);
                    }
                }
            }
        }
    }
}

/// The products of six rows, whose words begin at `starts`, and the 64 columns of a panel.
#[inline(always)]
unsafe fn tile<N: Number>(left: Left, starts: [usize; ROWS], right: &[u32]) -> [[__m512; 4]; ROWS] {
    let (right, _) = right.as_chunks::<COLS>();
    let (words, step) = (left.words, left.word_step);
    let furthest = starts.iter().max().map_or(0, |start| start + right.len().saturating_sub(1) * step);
    assert!(furthest < words.len(), "tile out of bounds");
    // SAFETY: the processor is as the caller says; the assertion bounds every index into `words`.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 4]; ROWS];
        for (i, right) in right.chunks(16).enumerate() {
            left.prefetch(starts[0] + ROWS * left.row_step + 16 * i * step);
            for (word, b) in (16 * i..).zip(right) {
                let b: [__m512i; 4] =
                    std::array::from_fn(|i| _mm512_loadu_si512(b[16 * i..16 * (i + 1)].as_ptr().cast()));
                for row in 0..ROWS {
                    let a = *words.get_unchecked(starts[row] + word * step);
                    for i in 0..4 {
                        sums[row][i] = N::multiply_add(sums[row][i], a, b[i]);
                    }
                }
            }
        }
        sums
    }
}

/// Asks for the lines of a row of a tile.
#[inline(always)]
fn prefetch_row(row: &[f32]) {
    row.chunks(16).for_each(|line| prefetch(line.as_ptr().cast()));
}

/// Asks for a line of memory; an address that is not ours does nothing.
#[inline(always)]
fn prefetch(at: *const u32) {
    // SAFETY: a hint that never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}

/// Rows of words, of which the function gives 16 neighbours at a time, turned into a panel: `[word][COLS]`.
#[target_feature(enable = "avx512f")]
fn turned(words: &mut [u32], width: usize, line: impl Fn(usize, usize) -> __m512i) {
    for (square, words) in words.chunks_mut(16 * COLS).enumerate() {
        for from in (0..width).step_by(16) {
            let lines: [__m512i; 16] = std::array::from_fn(|j| match from + j < width {
                true => line(from + j, square),
                false => _mm512_setzero_si512(),
            });
            for (line, words) in transpose(lines).into_iter().zip(words.chunks_exact_mut(COLS)) {
                store_words(&mut words[from..from + 16], line);
            }
        }
    }
}

/// A stretch of a row, gathered where its elements are not neighbours in memory.
#[inline(always)]
fn stretch<'a>(mat: Mat<'a>, row: usize, at: Range<usize>, gathered: &'a mut [f32; 32]) -> &'a [f32] {
    if mat.col == 1 {
        return &mat.data[row * mat.row..][at];
    }
    let len = at.len();
    at.zip(gathered.iter_mut()).for_each(|(i, value)| *value = mat.data[row * mat.row + i * mat.col]);
    &gathered[..len]
}

/// Rows and columns of 16 x 16 words exchanged: first within lanes of 4, then the lanes themselves.
#[target_feature(enable = "avx512f")]
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
#[target_feature(enable = "avx512f")]
fn load(values: &[f32]) -> __m512 {
    // SAFETY: the mask has one bit for each value that is read.
    unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
}

/// Stores as many words as there is room for.
#[target_feature(enable = "avx512f")]
fn store_words(words: &mut [u32], values: __m512i) {
    // SAFETY: the mask has one bit for each word that is written.
    unsafe { _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), mask(words.len()), values) }
}

/// Stores as many sums as there is room for, or adds them to what is there.
#[inline(always)]
unsafe fn store(out: &mut [f32], sums: &[__m512; 4], keep: bool) {
    #[allow(clippy::needless_range_loop)]
    for i in 0..4 {
        let sum = sums[i];
        let (at, mask) = (out.as_mut_ptr().wrapping_add(16 * i), mask(out.len().saturating_sub(16 * i)));
        // SAFETY: the mask has one bit for each element of `out`; called where AVX-512 F is enabled.
        unsafe {
            let sum = if keep { _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, at)) } else { sum };
            match mask {
                __mmask16::MAX => _mm512_storeu_ps(at, sum),
                _ => _mm512_mask_storeu_ps(at, mask, sum),
            }
        }
    }
}

#[inline(always)]
fn mask(len: usize) -> __mmask16 {
    ((1u32 << len.min(16)) - 1) as __mmask16
}
