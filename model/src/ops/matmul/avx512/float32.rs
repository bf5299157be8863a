//! Float32 words: the left factor is read where it lies, as each of its elements is broadcast from memory in any case.

use std::arch::x86_64::{__m512, __m512i, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_fmadd_ps, _mm512_set1_ps};

use super::super::super::simd::{Mat, Rows};
use super::{COLS, Left, Number, Right, Words, block_body, load, store_words, stretch, turned};

pub(in super::super) struct Float32;

impl Number for Float32 {
    const PER_WORD: usize = 1;
    // With the rows of the left factor, a panel of 64 KiB leaves most of the second-level cache to others.
    const DEPTH: usize = 256;

    fn is_supported() -> bool {
        std::is_x86_feature_detected!("avx512f")
    }

    unsafe fn left<'a>(_: &'a mut Option<Words>, mat: Mat<'a>, _: (usize, usize)) -> Left<'a> {
        // SAFETY: a float32 is as large and as aligned as a word, and every float32 is a word.
        let words = unsafe { std::slice::from_raw_parts(mat.data.as_ptr().cast(), mat.data.len()) };
        Left { words, group: usize::MAX, group_step: 0, row_step: mat.row, word_step: mat.col }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn pack_right(words: &mut [u32], mat: Mat, (first, width): (usize, usize), k: usize) {
        if mat.col != 1 {
            let turn = mat.t();
            return turned(words, width, |col, square| {
                let mut gathered = [0f32; 32];
                let at = 16 * square..k.min(16 * (square + 1));
                _mm512_castps_si512(load(stretch(turn, first + col, at, &mut gathered)))
            });
        }
        for (row, words) in words.chunks_exact_mut(COLS).enumerate() {
            let values = &mat.data[row * mat.row + first..][..width];
            for (values, words) in values.chunks(16).zip(words.chunks_exact_mut(16)) {
                store_words(words, _mm512_castps_si512(load(values)));
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: __m512, a: u32, b: __m512i) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(f32::from_bits(a)), _mm512_castsi512_ps(b), sum) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn block(factors: (Left, Right), dst: Rows, at: (usize, usize), keep: bool) {
        // SAFETY: the caller's promise.
        unsafe { block_body::<Float32>(factors, dst, at, keep) }
    }
}
