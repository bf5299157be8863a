//! AVX-512 with VNNI: the 16 rows of a tile are the lanes of one register.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::super::packed::{COLS, Format, ROWS};
use super::attention::attention;
use super::{Rows, Tiles, prefetch_block, prefetch_kept};

/// Sums of `M` tiles for `T` rows of activations.
type Sums<const T: usize, const M: usize> = [[__m512; T]; M];

/// `M` tiles and `T` rows of activations; returns `T`. The outputs of a tile begin `stride` after those of the one before.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI; `tiles` has `M`, `rows` has `T`, and `y` has room for `T` rows in each stride.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn multiply<const T: usize, const M: usize>(
    tiles: Tiles,
    rows: Rows,
    y: &mut [f32],
    stride: usize,
) -> usize {
    debug_assert!(rows.q.len() >= T * tiles.n_blocks * COLS && y.len() >= (M - 1) * stride + T * ROWS);
    // SAFETY: the caller's promise.
    let sums = unsafe {
        match tiles.format {
            Format::Q8 => q8::<T, M>(tiles, rows),
            Format::Q4 => q4::<T, M, false>(tiles, rows),
            Format::Q4Least => q4::<T, M, true>(tiles, rows),
            // These are taken one at a time.
            Format::F16 => [floats::<T, true>(tiles, rows); M],
            Format::F32 => [floats::<T, false>(tiles, rows); M],
        }
    };
    for (m, sums) in sums.into_iter().enumerate() {
        for (sum, y) in sums.into_iter().zip(y[m * stride..].chunks_exact_mut(ROWS)) {
            // SAFETY: a row of outputs has as many numbers as a register.
            unsafe { _mm512_storeu_ps(y.as_mut_ptr(), sum) };
        }
    }
    T
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn q8<const T: usize, const M: usize>(tiles: Tiles, rows: Rows) -> Sums<T, M> {
    let (blocks, scales): ([&[u8]; M], [&[u8]; M]) = (from_fn(|m| tiles.blocks(m)), from_fn(|m| tiles.scales(m)));
    let mut out = [[_mm512_setzero_ps(); T]; M];
    for block in 0..tiles.n_blocks {
        // SAFETY: a block of a tile has 512 bytes, each of `T` rows 32 integers there.
        unsafe {
            let w: [*const u8; M] = from_fn(|m| blocks[m].as_ptr().add(block * ROWS * COLS));
            for (w, scales) in w.into_iter().zip(scales) {
                prefetch_block::<{ ROWS * COLS }>(w, scales.as_ptr().wrapping_add(2 * ROWS * block), tiles.ahead);
            }
            let mut even = [[_mm512_setzero_si512(); T]; M];
            let mut odd = [[_mm512_setzero_si512(); T]; M];
            for even in &mut even {
                for (t, even) in even.iter_mut().enumerate() {
                    *even = _mm512_set1_epi32(-128 * *rows.sums.get_unchecked(t * tiles.n_blocks + block));
                }
            }
            for k in 0..4 {
                for m in 0..M {
                    let (first, second) = (load(w[m].add(128 * k)), load(w[m].add(128 * k + 64)));
                    for t in 0..T {
                        let q = rows.q.as_ptr().add((t * tiles.n_blocks + block) * COLS + 8 * k);
                        even[m][t] = _mm512_dpbusd_epi32(even[m][t], first, four(q));
                        odd[m][t] = _mm512_dpbusd_epi32(odd[m][t], second, four(q.add(4)));
                    }
                }
            }
            for m in 0..M {
                let scale = halves(scales[m], block);
                for t in 0..T {
                    let x_scale = _mm512_set1_ps(*rows.scales.get_unchecked(t * tiles.n_blocks + block));
                    let product = _mm512_cvtepi32_ps(_mm512_add_epi32(even[m][t], odd[m][t]));
                    out[m][t] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, x_scale), out[m][t]);
                }
            }
        }
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn q4<const T: usize, const M: usize, const LEAST: bool>(tiles: Tiles, rows: Rows) -> Sums<T, M> {
    let low = _mm512_set1_epi8(15);
    let (offset, n_scales) = if LEAST { (0, 2) } else { (-8, 1) };
    let (blocks, scales): ([&[u8]; M], [&[u8]; M]) = (from_fn(|m| tiles.blocks(m)), from_fn(|m| tiles.scales(m)));
    let mut out = [[_mm512_setzero_ps(); T]; M];
    for block in 0..tiles.n_blocks {
        // SAFETY: a block of a tile has 256 bytes, each of `T` rows 32 integers there.
        unsafe {
            let w: [*const u8; M] = from_fn(|m| blocks[m].as_ptr().add(block * ROWS * COLS / 2));
            for (w, scales) in w.into_iter().zip(scales) {
                prefetch_block::<{ ROWS * COLS / 2 }>(
                    w,
                    scales.as_ptr().wrapping_add(2 * ROWS * n_scales * block),
                    tiles.ahead,
                );
            }
            let mut even = [[_mm512_setzero_si512(); T]; M];
            let mut odd = [[_mm512_setzero_si512(); T]; M];
            for even in &mut even {
                for (t, even) in even.iter_mut().enumerate() {
                    *even = _mm512_set1_epi32(offset * *rows.sums.get_unchecked(t * tiles.n_blocks + block));
                }
            }
            for k in 0..4 {
                for m in 0..M {
                    let both = load(w[m].add(64 * k));
                    let first = _mm512_and_si512(both, low);
                    let second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                    for t in 0..T {
                        let q = rows.q.as_ptr().add((t * tiles.n_blocks + block) * COLS + 8 * k);
                        even[m][t] = _mm512_dpbusd_epi32(even[m][t], first, four(q));
                        odd[m][t] = _mm512_dpbusd_epi32(odd[m][t], second, four(q.add(4)));
                    }
                }
            }
            for m in 0..M {
                let scale = halves(scales[m], n_scales * block);
                for t in 0..T {
                    let at = t * tiles.n_blocks + block;
                    let x_scale = _mm512_set1_ps(*rows.scales.get_unchecked(at));
                    let product = _mm512_cvtepi32_ps(_mm512_add_epi32(even[m][t], odd[m][t]));
                    out[m][t] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, x_scale), out[m][t]);
                    if LEAST {
                        let least = _mm512_mul_ps(halves(scales[m], n_scales * block + 1), x_scale);
                        let sum = _mm512_set1_ps(*rows.sums.get_unchecked(at) as f32);
                        out[m][t] = _mm512_fnmadd_ps(least, sum, out[m][t]);
                    }
                }
            }
        }
    }
    out
}

/// Of the first tile alone.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn floats<const T: usize, const HALF: bool>(tiles: Tiles, rows: Rows) -> [__m512; T] {
    let (n, blocks) = (tiles.n_blocks * COLS, tiles.blocks(0));
    let mut sums = [[_mm512_setzero_ps(); 4]; T];
    for k in (0..n).step_by(4) {
        for i in 0..4 {
            // SAFETY: a column of a tile is 16 numbers; each of `T` rows has `n`.
            unsafe {
                let w = match HALF {
                    true => halves(blocks, k + i),
                    false => _mm512_loadu_ps(blocks.as_ptr().cast::<f32>().add((k + i) * ROWS)),
                };
                for (t, sums) in sums.iter_mut().enumerate() {
                    sums[i] = _mm512_fmadd_ps(w, _mm512_set1_ps(*rows.x.get_unchecked(t * n + k + i)), sums[i]);
                }
            }
        }
    }
    sums.map(|[a, b, c, d]| _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(at.cast()) }
}

/// Four integers of a row, in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four(q: *const i8) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_set1_epi32(unsafe { q.cast::<i32>().read_unaligned() })
}

/// The `i`-th sixteen numbers of 16 bits.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(bytes: &[u8], i: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { widen(bytes.as_ptr().add(2 * ROWS * i).cast()) }
}

/// Sixteen numbers of 16 bits as sixteen of 32.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn widen(at: *const u16) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

attention!("avx512f", ROWS, _mm512_setzero_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_storeu_ps, widen);
