//! AVX-512 with VNNI: the 16 rows of a tile are the lanes of one register.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::super::packed::{COLS, Format, ROWS};
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
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().add(2 * ROWS * i).cast())) }
}

/// See [`super::scores`].
///
/// # Safety
/// The processor has AVX-512 F; all queries are equally long, and `y` has `stride` numbers for each of them, one for each lane of the tiles of
/// `k` and perhaps more.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn scores<const M: usize>(q: &[&[f32]; M], k: &[u16], y: &mut [f32], stride: usize) {
    let d = q[0].len();
    for (tile, k) in k.chunks_exact(d * ROWS).enumerate() {
        let mut sums = [[_mm512_setzero_ps(); 4]; M];
        for i in (0..d).step_by(4) {
            // Several queries share what they read, and take longer over it than memory does.
            if M == 1 {
                prefetch_kept::<{ 4 * 2 * ROWS }>(k.as_ptr().wrapping_add(i * ROWS));
            }
            for j in 0..4.min(d - i) {
                // SAFETY: a tile has 16 numbers for each of a query.
                let k = unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(k.as_ptr().add((i + j) * ROWS).cast())) };
                for (q, sums) in q.iter().zip(&mut sums) {
                    // SAFETY: a query has `d` numbers.
                    let q = _mm512_set1_ps(unsafe { *q.as_ptr().add(i + j) });
                    sums[j] = _mm512_fmadd_ps(k, q, sums[j]);
                }
            }
        }
        for (m, [a, b, c, d]) in sums.into_iter().enumerate() {
            let y = &mut y[m * stride + tile * ROWS..][..ROWS];
            // SAFETY: 16 numbers.
            unsafe { _mm512_storeu_ps(y.as_mut_ptr(), _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))) };
        }
    }
}

/// See [`super::weighted`].
///
/// # Safety
/// The processor has AVX-512 F; a row of `v` has `stride` numbers, a multiple of 16, as has `y` for each row of `p`; `v` has as many rows as
/// the longest of these.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn weighted<const M: usize>(p: &[&[f32]; M], v: &[u16], y: &mut [f32], stride: usize) {
    let (mut at, n) = (0, stride / ROWS);
    while at < n {
        // SAFETY: the caller's promise; so many columns are left.
        at += unsafe {
            match n - at {
                4.. if M == 1 => columns::<M, 4>(p, v, y, stride, at),
                _ => columns::<M, 1>(p, v, y, stride, at),
            }
        };
    }
}

/// The `N` times sixteen columns of [`weighted`] from the `at`-th sixteen on; returns `N`.
///
/// # Safety
/// As [`weighted`], and so many columns are there.
#[target_feature(enable = "avx512f")]
unsafe fn columns<const M: usize, const N: usize>(
    p: &[&[f32]; M],
    v: &[u16],
    y: &mut [f32],
    stride: usize,
    at: usize,
) -> usize {
    // SAFETY: the caller's promise.
    let row = |n: usize, i: usize| unsafe { _mm256_loadu_si256(v.as_ptr().add(n * stride + (at + i) * ROWS).cast()) };
    let in_common = p.iter().map(|p| p.len()).min().unwrap_or(0) / 2 * 2;
    // Of even and of odd positions.
    let mut sums = [[[_mm512_setzero_ps(); N]; 2]; M];
    for n in (0..in_common).step_by(2) {
        for j in 0..2 {
            if N == 4 {
                prefetch_kept::<{ 4 * 2 * ROWS }>(v.as_ptr().wrapping_add((n + j) * stride + at * ROWS));
            }
            for i in 0..N {
                let v = _mm512_cvtph_ps(row(n + j, i));
                for (p, sums) in p.iter().zip(&mut sums) {
                    // SAFETY: so many numbers they all have.
                    let p = _mm512_set1_ps(unsafe { *p.as_ptr().add(n + j) });
                    sums[j][i] = _mm512_fmadd_ps(v, p, sums[j][i]);
                }
            }
        }
    }
    for (m, (p, mut sums)) in p.iter().zip(sums).enumerate() {
        for (n, p) in p.iter().enumerate().skip(in_common) {
            for (i, sum) in sums[n % 2].iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(_mm512_cvtph_ps(row(n, i)), _mm512_set1_ps(*p), *sum);
            }
        }
        let [even, odd] = sums;
        for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            let y = &mut y[m * stride + (at + i) * ROWS..][..ROWS];
            // SAFETY: 16 numbers.
            unsafe { _mm512_storeu_ps(y.as_mut_ptr(), _mm512_add_ps(even, odd)) };
        }
    }
    N
}
