//! AVX2: the 16 rows of a tile are the lanes of two registers.

use std::arch::x86_64::*;

use super::super::packed::{COLS, Format, ROWS};
use super::attention::attention;
use super::{Rows, Tiles, prefetch_block, prefetch_kept};

/// Lanes of a register.
const LANES: usize = 8;

/// One tile and `T` rows of activations; returns `T`.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; `rows` and `y` hold `T` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<const T: usize>(tiles: Tiles, rows: Rows, y: &mut [f32]) -> usize {
    debug_assert!(rows.q.len() >= T * tiles.n_blocks * COLS && y.len() >= T * ROWS);
    // SAFETY: the caller's promise.
    let sums = unsafe {
        match tiles.format {
            Format::Q8 => integers::<T, 8, false>(tiles, rows),
            Format::Q4 => integers::<T, 4, false>(tiles, rows),
            Format::Q4Least => integers::<T, 4, true>(tiles, rows),
            Format::F16 => floats::<T, true>(tiles, rows),
            Format::F32 => floats::<T, false>(tiles, rows),
        }
    };
    for (sums, y) in sums.into_iter().zip(y.chunks_exact_mut(ROWS)) {
        for (sum, y) in sums.into_iter().zip(y.chunks_exact_mut(LANES)) {
            // SAFETY: half a row of outputs has as many numbers as a register.
            unsafe { _mm256_storeu_ps(y.as_mut_ptr(), sum) };
        }
    }
    T
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn integers<const T: usize, const BITS: usize, const LEAST: bool>(tiles: Tiles, rows: Rows) -> [[__m256; 2]; T] {
    let n_scales = if LEAST { 2 } else { 1 };
    let offset = if BITS == 4 && !LEAST { -8 } else { 0 };
    let (blocks, scales) = (tiles.blocks(0), tiles.scales(0));
    let mut out = [[_mm256_setzero_ps(); 2]; T];
    for block in 0..tiles.n_blocks {
        // SAFETY: a block has `64 · BITS` bytes, each of `T` rows 32 integers there.
        unsafe {
            let w = blocks.as_ptr().add(block * ROWS * COLS * BITS / 8);
            let scales_at = scales.as_ptr().wrapping_add(2 * ROWS * n_scales * block);
            match BITS {
                8 => prefetch_block::<{ ROWS * COLS }>(w, scales_at, tiles.ahead),
                _ => prefetch_block::<{ ROWS * COLS / 2 }>(w, scales_at, tiles.ahead),
            }
            let mut products = [[_mm256_setzero_si256(); 2]; T];
            for (t, products) in products.iter_mut().enumerate() {
                *products = [_mm256_set1_epi32(offset * *rows.sums.get_unchecked(t * tiles.n_blocks + block)); 2];
            }
            for k in 0..8 {
                for half in 0..2 {
                    let w = weights::<BITS>(w, k, half);
                    for (t, products) in products.iter_mut().enumerate() {
                        let q = rows.q.as_ptr().add((t * tiles.n_blocks + block) * COLS + 4 * k);
                        let q = _mm256_set1_epi32(q.cast::<i32>().read_unaligned());
                        products[half] = _mm256_add_epi32(products[half], dot::<BITS>(w, q));
                    }
                }
            }
            for (t, (out, products)) in out.iter_mut().zip(products).enumerate() {
                let at = t * tiles.n_blocks + block;
                let x_scale = _mm256_set1_ps(*rows.scales.get_unchecked(at));
                for half in 0..2 {
                    let scale = _mm256_mul_ps(halves(scales, 2 * n_scales * block + half), x_scale);
                    out[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[half]), scale, out[half]);
                    if LEAST {
                        let least = _mm256_mul_ps(halves(scales, 2 * (n_scales * block + 1) + half), x_scale);
                        let sum = _mm256_set1_ps(*rows.sums.get_unchecked(at) as f32);
                        out[half] = _mm256_fnmadd_ps(least, sum, out[half]);
                    }
                }
            }
        }
    }
    out
}

/// Four columns from the `4 · k`-th on of eight rows: with a sign of eight bits, without one of four.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn weights<const BITS: usize>(w: *const u8, k: usize, half: usize) -> __m256i {
    let load = |at: usize| -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(w.add(at).cast()) }
    };
    if BITS == 8 {
        return _mm256_xor_si256(load(64 * k + 32 * half), _mm256_set1_epi8(-128));
    }
    let both = load(64 * (k / 2) + 32 * half);
    let shifted = if k.is_multiple_of(2) { both } else { _mm256_srli_epi16(both, 4) };
    _mm256_and_si256(shifted, _mm256_set1_epi8(15))
}

/// The sum of four products in each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn dot<const BITS: usize>(w: __m256i, q: __m256i) -> __m256i {
    // One factor has to be without a sign. Two products of at most 128 · 127 do not saturate 16 bits.
    let pairs = match BITS {
        8 => _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w)),
        _ => _mm256_maddubs_epi16(w, q),
    };
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn floats<const T: usize, const HALF: bool>(tiles: Tiles, rows: Rows) -> [[__m256; 2]; T] {
    let (n, blocks) = (tiles.n_blocks * COLS, tiles.blocks(0));
    let mut out = [[_mm256_setzero_ps(); 2]; T];
    // One half of the rows after the other: their sums fill the registers.
    for half in 0..2 {
        let mut sums = [[_mm256_setzero_ps(); 4]; T];
        for k in (0..n).step_by(4) {
            for i in 0..4 {
                // SAFETY: a column of a tile is 16 numbers; each of `T` rows has `n`.
                unsafe {
                    let w = match HALF {
                        true => halves(blocks, 2 * (k + i) + half),
                        false => _mm256_loadu_ps(blocks.as_ptr().cast::<f32>().add((k + i) * ROWS + LANES * half)),
                    };
                    for (t, sums) in sums.iter_mut().enumerate() {
                        sums[i] = _mm256_fmadd_ps(w, _mm256_set1_ps(*rows.x.get_unchecked(t * n + k + i)), sums[i]);
                    }
                }
            }
        }
        for (out, [a, b, c, d]) in out.iter_mut().zip(sums) {
            out[half] = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
        }
    }
    out
}

/// The `i`-th eight numbers of 16 bits.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(bytes: &[u8], i: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { widen(bytes.as_ptr().add(2 * LANES * i).cast()) }
}

/// Eight numbers of 16 bits as eight of 32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn widen(at: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

attention!(
    "avx2,fma,f16c",
    LANES,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    _mm256_storeu_ps,
    widen
);
