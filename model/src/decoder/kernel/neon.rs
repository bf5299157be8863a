//! NEON: the 16 rows of a tile are the lanes of four registers.

use std::arch::aarch64::*;

use half::f16;

use super::super::packed::{COLS, Format, ROWS};
use super::{Rows, Tiles};

/// Lanes of a register.
const LANES: usize = 4;

/// One tile and one row of activations; always 1.
///
/// # Safety
/// `rows` and `y` hold a row.
pub(super) unsafe fn multiply(tiles: Tiles, rows: Rows, y: &mut [f32]) -> usize {
    debug_assert!(rows.q.len() >= tiles.n_blocks * COLS && y.len() >= ROWS);
    // SAFETY: the caller's promise; every processor of this architecture has NEON.
    let sums = unsafe {
        match tiles.format {
            Format::Q8 | Format::Q4 | Format::Q4Least => integers(tiles, rows),
            Format::F16 | Format::F32 => floats(tiles, rows),
        }
    };
    for (sum, y) in sums.into_iter().zip(y.chunks_exact_mut(LANES)) {
        // SAFETY: a quarter of a row of outputs has as many numbers as a register.
        unsafe { vst1q_f32(y.as_mut_ptr(), sum) };
    }
    1
}

unsafe fn integers(tiles: Tiles, rows: Rows) -> [float32x4_t; 4] {
    let (size, n_scales) = (tiles.format.block_bytes(), tiles.format.scales());
    let offset = if tiles.format == Format::Q4 { -8 } else { 0 };
    // SAFETY: a block has `size` bytes, a row 32 integers there.
    unsafe {
        let mut out = [vdupq_n_f32(0.0); 4];
        for block in 0..tiles.n_blocks {
            let w = tiles.blocks(0).as_ptr().add(block * size);
            let (x_scale, sum) = (rows.scales[block], rows.sums[block]);
            let mut products = [vdupq_n_s32(offset * sum); 4];
            for k in 0..8 {
                let q = rows.q.as_ptr().add(block * COLS + 4 * k).cast::<i32>().read_unaligned();
                let q = vreinterpretq_s8_s32(vdupq_n_s32(q));
                for (quarter, product) in products.iter_mut().enumerate() {
                    *product = vaddq_s32(*product, dot(weights(tiles.format, w, k, quarter), q));
                }
            }
            for (quarter, (out, product)) in out.iter_mut().zip(products).enumerate() {
                let scale = halves(tiles.scales(0), n_scales * block, quarter);
                *out = vfmaq_f32(*out, vcvtq_f32_s32(product), vmulq_n_f32(scale, x_scale));
                if tiles.format == Format::Q4Least {
                    let least = vmulq_n_f32(halves(tiles.scales(0), n_scales * block + 1, quarter), x_scale);
                    *out = vfmsq_f32(*out, least, vdupq_n_f32(sum as f32));
                }
            }
        }
        out
    }
}

/// Four columns from the `4 · k`-th on of four rows.
unsafe fn weights(format: Format, w: *const u8, k: usize, quarter: usize) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        if format == Format::Q8 {
            return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w.add(64 * k + 16 * quarter)), vdupq_n_u8(128)));
        }
        let both = vld1q_u8(w.add(64 * (k / 2) + 16 * quarter));
        let nibbles = if k.is_multiple_of(2) { vandq_u8(both, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(both) };
        vreinterpretq_s8_u8(nibbles)
    }
}

/// The sum of four products in each lane.
unsafe fn dot(w: int8x16_t, q: int8x16_t) -> int32x4_t {
    // SAFETY: arithmetic alone.
    unsafe {
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(q)));
        let high = vpaddlq_s16(vmull_high_s8(w, q));
        vpaddq_s32(low, high)
    }
}

unsafe fn floats(tiles: Tiles, rows: Rows) -> [float32x4_t; 4] {
    // SAFETY: a column of a tile is 16 numbers; a row has one for each column.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 4]; 4];
        for (k, x) in rows.x[..tiles.n_blocks * COLS].iter().enumerate() {
            for (quarter, sums) in sums.iter_mut().enumerate() {
                let w = match tiles.format {
                    Format::F16 => halves(tiles.blocks(0), k, quarter),
                    _ => vld1q_f32(tiles.blocks(0).as_ptr().cast::<f32>().add(k * ROWS + LANES * quarter)),
                };
                sums[k % 4] = vfmaq_n_f32(sums[k % 4], w, *x);
            }
        }
        sums.map(|[a, b, c, d]| vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)))
    }
}

/// A quarter of the `i`-th sixteen numbers of 16 bits.
unsafe fn halves(bytes: &[u8], i: usize, quarter: usize) -> float32x4_t {
    let at = 2 * (ROWS * i + LANES * quarter);
    let number = |lane: usize| f16::from_bits(u16::from_le_bytes([bytes[at + 2 * lane], bytes[at + 2 * lane + 1]]));
    let numbers: [f32; LANES] = std::array::from_fn(|lane| number(lane).to_f32());
    // SAFETY: four numbers are there.
    unsafe { vld1q_f32(numbers.as_ptr()) }
}
