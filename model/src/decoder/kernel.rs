//! Products of packed weights and activations, by the best instruction set that the machine has.

use std::ops::Range;

use super::packed::{COLS, Format, Packed, ROWS};
use super::quantized::Quantized;

#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

/// An instruction set. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// With the instruction for four products at once.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Simd {
    /// All that this machine has, the best one last.
    pub fn all() -> Vec<Simd> {
        #[allow(unused_mut)]
        let mut all = vec![Simd::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = std::is_x86_feature_detected!("avx2")
                && std::is_x86_feature_detected!("fma")
                && std::is_x86_feature_detected!("f16c");
            if has_avx2 {
                all.push(Simd::Avx2);
            }
            if has_avx2
                && std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512vnni")
            {
                all.push(Simd::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.push(Simd::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                all.push(Simd::NeonDot);
            }
        }
        all
    }

    /// Whether this machine has it.
    pub fn is_here(self) -> bool {
        static HERE: std::sync::OnceLock<Vec<Simd>> = std::sync::OnceLock::new();
        HERE.get_or_init(Simd::all).contains(&self)
    }

    /// The best one.
    pub fn best() -> Simd {
        static BEST: std::sync::OnceLock<Simd> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Simd::all().pop().unwrap_or(Simd::Scalar))
    }
}

/// Tiles of weights side by side.
#[derive(Clone, Copy)]
struct Tiles<'a> {
    format: Format,
    n_blocks: usize,
    /// A tile: `n_blocks · block_bytes`, then `n_blocks · scales · ROWS` numbers of 16 bits, filled up to a line of the cache.
    bytes: &'a [u8],
    /// Bytes of a tile.
    stride: usize,
    /// How far ahead weights are asked for, in bytes; zero for those that were here just now.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    ahead: usize,
}

impl<'a> Tiles<'a> {
    fn blocks(self, tile: usize) -> &'a [u8] {
        &self.bytes[tile * self.stride..][..self.n_blocks * self.format.block_bytes()]
    }

    fn scales(self, tile: usize) -> &'a [u8] {
        &self.bytes[tile * self.stride + self.n_blocks * self.format.block_bytes()..(tile + 1) * self.stride]
    }
}

/// Rows of activations from one on.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    q: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
}

/// How far ahead the second level of the cache asks for weights, keys and values at least, in bytes.
const AHEAD: usize = 32 << 10;
/// Bytes of tiles that are taken at a time at most.
#[cfg(target_arch = "x86_64")]
const MOST_AT_ONCE: usize = 384 << 10;
/// How far ahead the first level does.
#[cfg(target_arch = "x86_64")]
const NEAR: usize = 8 << 10;

/// Numbers of the levels as the function below has them: its hints T0 and T1.
#[cfg(target_arch = "x86_64")]
const FIRST_LEVEL: i32 = 3;
#[cfg(target_arch = "x86_64")]
const SECOND_LEVEL: i32 = 2;

/// Asks a level of the cache for the `N` bytes from `at` on.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch<const N: usize, const LEVEL: i32>(at: *const u8) {
    for line in (0..N).step_by(64) {
        // SAFETY: a hint, which never faults, whatever it points to.
        unsafe { std::arch::x86_64::_mm_prefetch::<LEVEL>(at.wrapping_add(line).cast()) };
    }
}

/// Asks for a block of `N` bytes, its scales and what is nearer, unless that was here just now.
///
/// The first level can await some two dozen lines, which is less than what keeps memory busy: so the second level is asked long before.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_block<const N: usize>(block: *const u8, scales: *const u8, ahead: usize) {
    if ahead > 0 {
        prefetch::<N, SECOND_LEVEL>(block.wrapping_add(ahead));
        prefetch::<64, SECOND_LEVEL>(scales.wrapping_add(ahead));
        prefetch::<N, FIRST_LEVEL>(block.wrapping_add(NEAR));
    }
}

/// Asks for `N` bytes of keys or values, and for what is nearer.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_kept<const N: usize>(at: *const u16) {
    prefetch::<N, SECOND_LEVEL>(at.cast::<u8>().wrapping_add(AHEAD));
    prefetch::<N, FIRST_LEVEL>(at.cast::<u8>().wrapping_add(NEAR));
}

/// Products of each row of `x` and the rows of `w` in `tiles`. Shape of `y`: `[tile][row of x][ROWS]`.
///
/// # Panics
/// For an instruction set that this machine does not have, and for sizes that do not fit.
pub fn multiply(w: &Packed, x: &Quantized, tiles: Range<usize>, y: &mut [f32], simd: Simd) {
    let n = x.n_rows();
    assert!(simd.is_here(), "{simd:?} on a machine without it");
    assert_eq!(x.n_blocks(), w.n_blocks, "columns of weights and of activations");
    let n_blocks = n * w.n_blocks;
    let is_whole = x.q.len() == n_blocks * COLS && x.scales.len() == n_blocks && x.sums.len() == n_blocks;
    assert!(is_whole, "rows of activations");
    assert_eq!(y.len(), tiles.len() * n * ROWS, "outputs of a product");
    assert!(
        w.format.scales() > 0 || x.x.len() == x.q.len(),
        "activations that are rounded, for weights that are floats"
    );
    let (mut tiles, mut y) = (tiles, y);
    while !tiles.is_empty() {
        let m = tiles_at_once(w, n, simd).min(1 << tiles.len().ilog2());
        let (now, later) = y.split_at_mut(m * n * ROWS);
        some_tiles(w, x, tiles.start..tiles.start + m, now, simd);
        (tiles, y) = (tiles.start + m..tiles.end, later);
    }
}

/// How many tiles a kernel takes at a time for `n` rows of activations: as many as have room for their sums, if the second level of the cache
/// has room for them and for as many that it awaits. They share what is loaded of the activations.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn tiles_at_once(w: &Packed, n: usize, simd: Simd) -> usize {
    match (simd, n) {
        #[cfg(target_arch = "x86_64")]
        (Simd::Avx512, ..8) if w.format.scales() > 0 => {
            let most = if n < 4 { 4 } else { 2 };
            if most * w.n_bytes() / w.n_tiles() <= MOST_AT_ONCE { most } else { 1 }
        }
        _ => 1,
    }
}

/// Multiplies tiles of which a kernel takes as many at a time.
fn some_tiles(w: &Packed, x: &Quantized, tiles: Range<usize>, y: &mut [f32], simd: Simd) {
    let (m, n) = (tiles.len(), x.n_rows());
    let bytes = w.tiles(tiles);
    let stride = bytes.len() / m;
    // The same place in a later step of as many tiles.
    let ahead = AHEAD.next_multiple_of(bytes.len());
    let mut tiles = Tiles { format: w.format, n_blocks: w.n_blocks, bytes, stride, ahead };
    let mut row = 0;
    while row < n {
        let from = row * w.n_blocks;
        let rows = Rows {
            x: x.x.get(from * COLS..).unwrap_or_default(),
            q: &x.q[from * COLS..],
            scales: &x.scales[from..],
            sums: &x.sums[from..],
        };
        row += some_rows(tiles, rows, (m, n - row), &mut y[row * ROWS..], n * ROWS, simd);
        tiles.ahead = 0;
    }
}

/// Multiplies `m` tiles by as many of the `n` first rows as one kernel takes, and returns how many that is. A tile's outputs begin `stride`
/// after those of the one before.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn some_rows(tiles: Tiles, rows: Rows, (m, n): (usize, usize), y: &mut [f32], stride: usize, simd: Simd) -> usize {
    // SAFETY: `simd` is an instruction set that the machine has; slices hold as many tiles and rows as the kernel is told.
    unsafe {
        match (simd, m, n) {
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, 4, 2..) => avx512::multiply::<2, 4>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, 4, _) => avx512::multiply::<1, 4>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, 2, 4..) => avx512::multiply::<4, 2>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, 2, 2..) => avx512::multiply::<2, 2>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, 2, _) => avx512::multiply::<1, 2>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, _, 8..) => avx512::multiply::<8, 1>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, _, 4..) => avx512::multiply::<4, 1>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, _, 2..) => avx512::multiply::<2, 1>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, ..) => avx512::multiply::<1, 1>(tiles, rows, y, stride),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx2, _, 2..) => avx2::multiply::<2>(tiles, rows, y),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx2, ..) => avx2::multiply::<1>(tiles, rows, y),
            #[cfg(target_arch = "aarch64")]
            (Simd::NeonDot, _, 4..) => neon::multiply::<4, true>(tiles, rows, y),
            #[cfg(target_arch = "aarch64")]
            (Simd::NeonDot, _, 2..) => neon::multiply::<2, true>(tiles, rows, y),
            #[cfg(target_arch = "aarch64")]
            (Simd::NeonDot, ..) => neon::multiply::<1, true>(tiles, rows, y),
            #[cfg(target_arch = "aarch64")]
            (Simd::Neon, _, 2..) => neon::multiply::<2, false>(tiles, rows, y),
            #[cfg(target_arch = "aarch64")]
            (Simd::Neon, ..) => neon::multiply::<1, false>(tiles, rows, y),
            (Simd::Scalar, ..) => scalar::multiply(tiles, rows, y),
        }
    }
}

/// Scores of some queries and the keys of all positions of `k`, tiles of 16 positions. Shapes: a query `K`, `k` `[tile][K][16]`, `y`
/// `[query][position]`, with room for more positions than `k` has.
pub(super) fn scores(q: &[&[f32]], k: &[u16], y: &mut [f32], simd: Simd) {
    let (d, stride) = (q.first().map_or(0, |q| q.len()), y.len() / q.len().max(1));
    assert!(d > 0 && q.iter().all(|q| q.len() == d) && k.len().is_multiple_of(d * ROWS), "queries and keys of a head");
    assert!(k.len() / d <= stride, "room for scores");
    let (mut q, mut y) = (q, y);
    while !q.is_empty() {
        let n = at_once(q.len(), simd, 2);
        // SAFETY: `simd` is an instruction set that the machine has; sizes are those that were just looked at.
        unsafe {
            match (simd, &q[..n]) {
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx512, &[a, b, c, d]) => avx512::scores(&[a, b, c, d], k, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx512, &[a, b]) => avx512::scores(&[a, b], k, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx512, &[a]) => avx512::scores(&[a], k, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx2, &[a, b]) => avx2::scores(&[a, b], k, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx2, &[a]) => avx2::scores(&[a], k, y, stride),
                #[cfg(target_arch = "aarch64")]
                (Simd::Neon | Simd::NeonDot, &[a, b]) => neon::scores(&[a, b], k, y, stride),
                #[cfg(target_arch = "aarch64")]
                (Simd::Neon | Simd::NeonDot, &[a]) => neon::scores(&[a], k, y, stride),
                _ => scalar::scores(q[0], k, y),
            }
        }
        (q, y) = (&q[n..], &mut y[n * stride..]);
    }
}

/// Sums of the rows of `v`, each times its number in one of `p`, which may be of several lengths. Shapes: `v` `[position][stride]`, `y`
/// `[p][stride]`, stride a multiple of 16.
pub(super) fn weighted(p: &[&[f32]], v: &[u16], y: &mut [f32], simd: Simd) {
    let stride = y.len() / p.len().max(1);
    assert!(stride.is_multiple_of(ROWS) && p.iter().all(|p| p.len() * stride <= v.len()), "values of a head");
    let (mut p, mut y) = (p, y);
    while !p.is_empty() {
        let n = at_once(p.len(), simd, 4);
        // SAFETY: as above.
        unsafe {
            match (simd, &p[..n]) {
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx512, &[a, b, c, d]) => avx512::weighted(&[a, b, c, d], v, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx512, &[a, b]) => avx512::weighted(&[a, b], v, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx512, &[a]) => avx512::weighted(&[a], v, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx2, &[a, b, c, d]) => avx2::weighted(&[a, b, c, d], v, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx2, &[a, b]) => avx2::weighted(&[a, b], v, y, stride),
                #[cfg(target_arch = "x86_64")]
                (Simd::Avx2, &[a]) => avx2::weighted(&[a], v, y, stride),
                #[cfg(target_arch = "aarch64")]
                (Simd::Neon | Simd::NeonDot, &[a, b]) => neon::weighted(&[a, b], v, y, stride),
                #[cfg(target_arch = "aarch64")]
                (Simd::Neon | Simd::NeonDot, &[a]) => neon::weighted(&[a], v, y, stride),
                _ => scalar::weighted(p[0], v, &mut y[..stride]),
            }
        }
        (p, y) = (&p[n..], &mut y[n * stride..]);
    }
}

/// How many of `n` rows a kernel of attention takes, where one of AVX2 takes `most_avx2`: the sums of as many fit into registers.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
fn at_once(n: usize, simd: Simd, most_avx2: usize) -> usize {
    let most = match simd {
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512 => 4,
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 => most_avx2,
        #[cfg(target_arch = "aarch64")]
        Simd::Neon | Simd::NeonDot => 2,
        Simd::Scalar => 1,
    };
    1 << n.min(most).ilog2()
}
