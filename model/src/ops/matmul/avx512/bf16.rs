//! Words of two bfloat16: both factors are packed, as two neighbours along the inner dimension become a word.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh,
    _mm512_dpbf16_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_slli_epi32,
};

use rayon::prelude::*;

use super::super::super::simd::{Mat, Rows};
use super::{COLS, Left, Number, Right, Words, block_body, load, part, store_words, stretch, turned};

/// Rows of the left factor that lie together where its memory runs along columns: a multiple of `ROWS` and of 16.
const GROUP: usize = 48;

pub(in super::super) struct Bf16;

impl Number for Bf16 {
    const PER_WORD: usize = 2;
    // A panel of the right factor then fills the first-level cache.
    const DEPTH: usize = 128;

    fn is_supported() -> bool {
        std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bf16")
    }

    /// `[row][word]`, or `[row / GROUP][word][row % GROUP]` where memory runs along columns.
    unsafe fn left<'a>(memory: &'a mut Option<Words>, mat: Mat<'a>, (m, k): (usize, usize)) -> Left<'a> {
        let (depth, by_columns) = (k.div_ceil(2), mat.row == 1 && mat.col != 1);
        let words = memory.insert(Words::new(m.next_multiple_of(GROUP) * depth)).get_mut();
        let groups = words.par_chunks_exact_mut(GROUP * depth).enumerate();
        // SAFETY: the processor is as the caller says.
        groups.for_each(|(i, words)| unsafe { pack_group(words, mat, part(i, GROUP, m), k, by_columns) });
        let (row_step, word_step) = if by_columns { (1, GROUP) } else { (depth, 1) };
        Left { words, group: GROUP, group_step: GROUP * depth, row_step, word_step }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn pack_right(words: &mut [u32], mat: Mat, (first, width): (usize, usize), k: usize) {
        if mat.col == 1 {
            return across(words, COLS, mat, (first, width), k);
        }
        let turn = mat.t();
        turned(words, width, |col, square| {
            let mut gathered = [0f32; 32];
            let at = 32 * square..k.min(32 * (square + 1));
            neighbours(stretch(turn, first + col, at, &mut gathered))
        });
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512, a: u32, b: __m512i) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_dpbf16_ps(sum, bf16(_mm512_set1_epi32(a as i32)), bf16(b)) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn block(factors: (Left, Right), dst: Rows, at: (usize, usize), keep: bool) {
        // SAFETY: the caller's promise.
        unsafe { block_body::<Bf16>(factors, dst, at, keep) }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_group(words: &mut [u32], mat: Mat, (first, rows): (usize, usize), k: usize, by_columns: bool) {
    if by_columns {
        return across(words, GROUP, mat.t(), (first, rows), k);
    }
    for (row, words) in words.chunks_exact_mut(k.div_ceil(2)).take(rows).enumerate() {
        along(words, mat, first + row, k);
    }
}

/// Words of neighbouring columns of `mat`, whose inner dimension goes down its rows: `[word][step]`.
#[target_feature(enable = "avx512f,avx512bf16")]
fn across(words: &mut [u32], step: usize, mat: Mat, (first, width): (usize, usize), k: usize) {
    for (word, words) in words.chunks_exact_mut(step).enumerate() {
        let row = |i: usize| if i < k { &mat.data[i * mat.row + first..][..width] } else { &[] };
        let (top, below) = (row(2 * word), row(2 * word + 1));
        for at in (0..width).step_by(16) {
            store_words(&mut words[at..width], stacked(&top[at..], below.get(at..).unwrap_or(&[])));
        }
    }
}

/// Words of a row of `mat`, along it.
#[target_feature(enable = "avx512f,avx512bf16")]
fn along(words: &mut [u32], mat: Mat, row: usize, k: usize) {
    let mut gathered = [0f32; 32];
    for (i, words) in words.chunks_mut(16).enumerate() {
        let (start, end) = (32 * i, k.min(32 * (i + 1)));
        store_words(words, neighbours(stretch(mat, row, start..end, &mut gathered)));
    }
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

#[inline(always)]
fn bf16(words: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(words) }
}
