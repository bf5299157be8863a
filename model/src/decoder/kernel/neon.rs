//! NEON: the 16 rows of a tile are the lanes of four registers. Two instructions are written out, whose functions the standard library does
//! not have for every compiler that this builds with.

use std::arch::{aarch64::*, asm};

use super::super::packed::{COLS, Format, ROWS};
use super::{Rows, Tiles};

/// Lanes of a register.
const LANES: usize = 4;

/// One tile and `T` rows of activations; returns `T`. `DOT` takes the instruction for four products at once.
///
/// # Safety
/// `rows` and `y` hold `T` rows; the processor has FEAT_DotProd if `DOT`.
pub(super) unsafe fn multiply<const T: usize, const DOT: bool>(tiles: Tiles, rows: Rows, y: &mut [f32]) -> usize {
    debug_assert!(rows.q.len() >= T * tiles.n_blocks * COLS && y.len() >= T * ROWS);
    // SAFETY: the caller's promise; every processor of this architecture has NEON.
    let sums = unsafe {
        match tiles.format {
            Format::Q8 => integers::<T, 8, false, DOT>(tiles, rows),
            Format::Q4 => integers::<T, 4, false, DOT>(tiles, rows),
            Format::Q4Least => integers::<T, 4, true, DOT>(tiles, rows),
            Format::F16 => floats::<T, true>(tiles, rows),
            Format::F32 => floats::<T, false>(tiles, rows),
        }
    };
    for (sums, y) in sums.into_iter().zip(y.chunks_exact_mut(ROWS)) {
        for (sum, y) in sums.into_iter().zip(y.chunks_exact_mut(LANES)) {
            // SAFETY: a quarter of a row of outputs has as many numbers as a register.
            unsafe { vst1q_f32(y.as_mut_ptr(), sum) };
        }
    }
    T
}

/// # Safety
/// As [`multiply`].
#[inline]
unsafe fn integers<const T: usize, const BITS: usize, const LEAST: bool, const DOT: bool>(
    tiles: Tiles,
    rows: Rows,
) -> [[float32x4_t; 4]; T] {
    let n_scales = if LEAST { 2 } else { 1 };
    let offset = if BITS == 4 && !LEAST { -8 } else { 0 };
    let (blocks, scales) = (tiles.blocks(0), tiles.scales(0));
    // SAFETY: a block has `64 · BITS` bytes, each of `T` rows 32 integers there.
    unsafe {
        let mut out = [[vdupq_n_f32(0.0); 4]; T];
        for block in 0..tiles.n_blocks {
            let w = blocks.as_ptr().add(block * ROWS * COLS * BITS / 8);
            let mut products = [[vdupq_n_s32(0); 4]; T];
            for (t, products) in products.iter_mut().enumerate() {
                *products = [vdupq_n_s32(offset * *rows.sums.get_unchecked(t * tiles.n_blocks + block)); 4];
            }
            for k in 0..8 {
                for quarter in 0..4 {
                    let w = weights::<BITS>(w, k, quarter);
                    for (t, products) in products.iter_mut().enumerate() {
                        let q = rows.q.as_ptr().add((t * tiles.n_blocks + block) * COLS + 4 * k);
                        let q = vreinterpretq_s8_s32(vdupq_n_s32(q.cast::<i32>().read_unaligned()));
                        products[quarter] = dot::<DOT>(products[quarter], w, q);
                    }
                }
            }
            for (t, (out, products)) in out.iter_mut().zip(products).enumerate() {
                let at = t * tiles.n_blocks + block;
                let (x_scale, sum) = (*rows.scales.get_unchecked(at), *rows.sums.get_unchecked(at));
                for quarter in 0..4 {
                    let scale = vmulq_n_f32(halves(scales, 4 * n_scales * block + quarter), x_scale);
                    out[quarter] = vfmaq_f32(out[quarter], vcvtq_f32_s32(products[quarter]), scale);
                    if LEAST {
                        let least = vmulq_n_f32(halves(scales, 4 * (n_scales * block + 1) + quarter), x_scale);
                        out[quarter] = vfmsq_f32(out[quarter], least, vdupq_n_f32(sum as f32));
                    }
                }
            }
        }
        out
    }
}

/// Four columns from the `4 · k`-th on of four rows.
///
/// # Safety
/// `w` is a block of a tile of `BITS`.
#[inline]
unsafe fn weights<const BITS: usize>(w: *const u8, k: usize, quarter: usize) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        if BITS == 8 {
            return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w.add(64 * k + 16 * quarter)), vdupq_n_u8(128)));
        }
        let both = vld1q_u8(w.add(64 * (k / 2) + 16 * quarter));
        let nibbles = if k.is_multiple_of(2) { vandq_u8(both, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(both) };
        vreinterpretq_s8_u8(nibbles)
    }
}

/// `sum` and, in each lane, four products more.
///
/// # Safety
/// The processor has FEAT_DotProd if `DOT`.
#[inline]
unsafe fn dot<const DOT: bool>(mut sum: int32x4_t, w: int8x16_t, q: int8x16_t) -> int32x4_t {
    // SAFETY: arithmetic alone; the caller promises that the instruction is there.
    unsafe {
        if DOT {
            asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {w:v}.16b, {q:v}.16b",
                sum = inout(vreg) sum, w = in(vreg) w, q = in(vreg) q,
                options(pure, nomem, nostack, preserves_flags),
            );
            return sum;
        }
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(q)));
        let high = vpaddlq_s16(vmull_high_s8(w, q));
        vaddq_s32(sum, vpaddq_s32(low, high))
    }
}

/// One row of activations after the other: the sums of one are sixteen registers.
///
/// # Safety
/// `rows` has `T` rows.
#[inline]
unsafe fn floats<const T: usize, const HALF: bool>(tiles: Tiles, rows: Rows) -> [[float32x4_t; 4]; T] {
    let (n, blocks) = (tiles.n_blocks * COLS, tiles.blocks(0));
    // SAFETY: a column of a tile is 16 numbers; each of `T` rows has `n`.
    unsafe {
        let mut out = [[vdupq_n_f32(0.0); 4]; T];
        for (t, out) in out.iter_mut().enumerate() {
            let mut sums = [[vdupq_n_f32(0.0); 4]; 4];
            for k in (0..n).step_by(4) {
                for i in 0..4 {
                    let x = *rows.x.get_unchecked(t * n + k + i);
                    for (quarter, sums) in sums.iter_mut().enumerate() {
                        let w = match HALF {
                            true => halves(blocks, 4 * (k + i) + quarter),
                            false => vld1q_f32(blocks.as_ptr().cast::<f32>().add((k + i) * ROWS + LANES * quarter)),
                        };
                        sums[i] = vfmaq_n_f32(sums[i], w, x);
                    }
                }
            }
            *out = sums.map(|[a, b, c, d]| vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)));
        }
        out
    }
}

/// The `i`-th four numbers of 16 bits.
///
/// # Safety
/// They are there.
#[inline]
unsafe fn halves(bytes: &[u8], i: usize) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { widen(bytes.as_ptr().add(2 * LANES * i).cast()) }
}

/// Four numbers of 16 bits as four of 32.
///
/// # Safety
/// They are there.
#[inline]
unsafe fn widen(at: *const u16) -> float32x4_t {
    // SAFETY: the caller's promise, and arithmetic.
    unsafe {
        let (halves, out): (uint16x4_t, float32x4_t);
        halves = vld1_u16(at);
        asm!(
            "fcvtl {out:v}.4s, {halves:v}.4h",
            out = lateout(vreg) out, halves = in(vreg) halves,
            options(pure, nomem, nostack),
        );
        out
    }
}

/// See [`super::scores`].
///
/// # Safety
/// All queries are equally long, and `y` has `stride` numbers for each of them, one for each lane of the tiles of `k` and perhaps more.
pub(super) unsafe fn scores<const M: usize>(q: &[&[f32]; M], k: &[u16], y: &mut [f32], stride: usize) {
    let d = q[0].len();
    for (tile, k) in k.chunks_exact(d * ROWS).enumerate() {
        for half in [0, 2 * LANES] {
            // SAFETY: a tile has 16 numbers for each of a query, which has `d`.
            unsafe {
                let mut sums = [[[vdupq_n_f32(0.0); 4]; 2]; M];
                for i in (0..d).step_by(4) {
                    for j in 0..4.min(d - i) {
                        let at = k.as_ptr().add((i + j) * ROWS + half);
                        let keys = [widen(at), widen(at.add(LANES))];
                        for (q, sums) in q.iter().zip(&mut sums) {
                            let q = *q.as_ptr().add(i + j);
                            for (sums, keys) in sums.iter_mut().zip(keys) {
                                sums[j] = vfmaq_n_f32(sums[j], keys, q);
                            }
                        }
                    }
                }
                for (m, sums) in sums.into_iter().enumerate() {
                    let y = &mut y[m * stride + tile * ROWS + half..][..2 * LANES];
                    for (y, [a, b, c, d]) in y.chunks_exact_mut(LANES).zip(sums) {
                        vst1q_f32(y.as_mut_ptr(), vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)));
                    }
                }
            }
        }
    }
}

/// See [`super::weighted`].
///
/// # Safety
/// A row of `v` has `stride` numbers, a multiple of 16, as has `y` for each row of `p`; `v` has as many rows as the longest of these.
pub(super) unsafe fn weighted<const M: usize>(p: &[&[f32]; M], v: &[u16], y: &mut [f32], stride: usize) {
    let in_common = p.iter().map(|p| p.len()).min().unwrap_or(0) / 2 * 2;
    for column in (0..stride).step_by(ROWS) {
        // SAFETY: the caller's promise: rows of `v` have sixteen numbers from `column` on, and each of `p` has `in_common`.
        unsafe {
            // Of even and of odd positions.
            let mut sums = [[[vdupq_n_f32(0.0); 4]; 2]; M];
            let row = |n: usize, quarter: usize| widen(v.as_ptr().add(n * stride + column + LANES * quarter));
            for n in (0..in_common).step_by(2) {
                for j in 0..2 {
                    for quarter in 0..4 {
                        let v = row(n + j, quarter);
                        for (p, sums) in p.iter().zip(&mut sums) {
                            sums[j][quarter] = vfmaq_n_f32(sums[j][quarter], v, *p.as_ptr().add(n + j));
                        }
                    }
                }
            }
            for (m, (p, mut sums)) in p.iter().zip(sums).enumerate() {
                for (n, p) in p.iter().enumerate().skip(in_common) {
                    for (quarter, sum) in sums[n % 2].iter_mut().enumerate() {
                        *sum = vfmaq_n_f32(*sum, row(n, quarter), *p);
                    }
                }
                let [even, odd] = sums;
                let y = &mut y[m * stride + column..][..ROWS];
                for (y, (even, odd)) in y.chunks_exact_mut(LANES).zip(even.into_iter().zip(odd)) {
                    vst1q_f32(y.as_mut_ptr(), vaddq_f32(even, odd));
                }
            }
        }
    }
}
