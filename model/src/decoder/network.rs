//! Products of a stage, divided among threads, and the feed-forward network made of them.

use super::crew::{Crew, Pieces};
use super::kernel::{Simd, multiply};
use super::packed::{COLS, Packed, ROWS};
use super::quantized::Quantized;
use super::weights::WeightSource;
use crate::config::{Activation, check};
use crate::error::Result;
use crate::ops::simd::{exp, vectorized};

/// Parts of a stage for each thread: more let a free core take more of them, fewer cost less to hand out.
const PARTS_PER_THREAD: usize = 4;

/// Where products of a matrix go: numbers `[tile][row of the activations][16]`.
pub(super) type ByTile = Vec<f32>;

/// Row `row` of `n`, of as many numbers as `out` has.
pub(super) fn copy_row(by_tile: &[f32], (row, n): (usize, usize), out: &mut [f32]) {
    for (tile, out) in out.chunks_mut(ROWS).enumerate() {
        let at = (tile * n + row) * ROWS;
        out.copy_from_slice(&by_tile[at..at + out.len()]);
    }
}

/// Splits `n` things into ranges for parts, some for each thread.
pub(super) fn ranges(n: usize, crew: &Crew) -> (usize, impl Fn(usize) -> std::ops::Range<usize> + Copy + use<>) {
    let per_part = n.div_ceil(crew.n_threads() * PARTS_PER_THREAD).max(1);
    (n.div_ceil(per_part), move |part| part * per_part..((part + 1) * per_part).min(n))
}

/// Adds row `row` of `n`, times `factor`, to `out`.
pub(super) fn add_row(by_tile: &[f32], (row, n): (usize, usize), factor: f32, out: &mut [f32]) {
    for (tile, out) in out.chunks_mut(ROWS).enumerate() {
        let at = (tile * n + row) * ROWS;
        out.iter_mut().zip(&by_tile[at..]).for_each(|(out, y)| *out += factor * y);
    }
}

/// Tiles of a part: whole blocks of the next matrix's columns.
fn tiles_of_part(n_tiles: usize, crew: &Crew) -> usize {
    n_tiles.div_ceil(crew.n_threads() * PARTS_PER_THREAD).next_multiple_of(COLS / ROWS).max(1)
}

/// The products of `x` with several matrices, one stage.
pub(super) fn products<const N: usize>(
    crew: &mut Crew,
    x: &Quantized,
    matrices: [&Packed; N],
    out: [&mut ByTile; N],
    simd: Simd,
) {
    let n = x.n_rows();
    let per_part = tiles_of_part(matrices.iter().map(|w| w.n_tiles()).sum(), crew);
    let n_parts = matrices.map(|w| w.n_tiles().div_ceil(per_part));
    let mut index = 0;
    let pieces = out.map(|out| {
        out.resize(matrices[index].n_tiles() * n * ROWS, 0.0);
        index += 1;
        Pieces::new(out)
    });
    crew.run(n_parts.iter().sum(), &|mut part| {
        let mut matrix = 0;
        while part >= n_parts[matrix] {
            (part, matrix) = (part - n_parts[matrix], matrix + 1);
        }
        let w = matrices[matrix];
        let tiles = part * per_part..((part + 1) * per_part).min(w.n_tiles());
        // SAFETY: each part has tiles of its own.
        let y = unsafe { pieces[matrix].take(tiles.start * n * ROWS..tiles.end * n * ROWS) };
        multiply(w, x, tiles, y, simd);
    });
}

/// `down(relu(up x)^2)` or `down(silu(gate x) * up x)`.
pub(super) struct Network {
    gate: Option<Packed>,
    up: Packed,
    down: Packed,
    f: usize,
}

/// Memory of a network's stages.
#[derive(Default)]
pub(super) struct Hidden {
    gate: ByTile,
    up: ByTile,
    quantized: Quantized,
}

impl Network {
    /// The network `name` of hidden width `f` for a model of width `d`.
    pub(super) fn load(
        source: &dyn WeightSource,
        name: &str,
        (d, f): (usize, usize),
        activation: Activation,
    ) -> Result<Network> {
        let matrix = |projection: &str, shape| source.matrix(&format!("{name}.{projection}.weight"), shape);
        let gate = match activation {
            Activation::Swiglu => Some(matrix("gate_proj", (f, d))?),
            Activation::Relu2 => None,
        };
        let up = matrix("up_proj", (f, d))?;
        check_alike(gate.iter().chain([&up]), name)?;
        Ok(Network { gate, up, down: matrix("down_proj", (d, f))?, f })
    }

    /// The matrix that its input is multiplied by.
    pub(super) fn first(&self) -> &Packed {
        &self.up
    }

    /// Bytes of its weights.
    pub(super) fn n_bytes(&self) -> usize {
        let gate = self.gate.as_ref().map_or(0, Packed::n_bytes);
        gate + self.up.n_bytes() + self.down.n_bytes()
    }

    /// What it says of each row of `x`, in two stages.
    pub(super) fn run(&self, crew: &mut Crew, x: &Quantized, hidden: &mut Hidden, y: &mut ByTile, simd: Simd) {
        let (n, n_tiles) = (x.n_rows(), self.up.n_tiles());
        hidden.up.resize(n_tiles * n * ROWS, 0.0);
        hidden.gate.resize(if self.gate.is_some() { n_tiles * n * ROWS } else { 0 }, 0.0);
        hidden.quantized.resize_for(n, &self.down);
        let per_part = tiles_of_part(n_tiles, crew);
        let (gates, ups) = (Pieces::new(&mut hidden.gate), Pieces::new(&mut hidden.up));
        let quantized = hidden.quantized.writer();
        crew.run(n_tiles.div_ceil(per_part), &|part| {
            let tiles = part * per_part..((part + 1) * per_part).min(n_tiles);
            let own = tiles.start * n * ROWS..tiles.end * n * ROWS;
            // SAFETY: each part has tiles of its own.
            let up = unsafe { ups.take(own.clone()) };
            multiply(&self.up, x, tiles.clone(), up, simd);
            match &self.gate {
                Some(w) => {
                    // SAFETY: as above.
                    let gate = unsafe { gates.take(own) };
                    multiply(w, x, tiles, gate, simd);
                    swiglu(gate, up);
                }
                None => relu2(up),
            }
            // A part has whole blocks: what it computed becomes integers while it is near.
            let first = part * per_part * ROWS / COLS;
            for (block, up) in up.chunks(COLS / ROWS * n * ROWS).enumerate() {
                let width = (self.f - (first + block) * COLS).min(COLS);
                for row in 0..n {
                    let mut x = [0f32; COLS];
                    copy_row(up, (row, n), &mut x[..width]);
                    // SAFETY: as above.
                    unsafe { quantized.set_blocks(row, first + block, &x[..width]) };
                }
            }
        });
        products(crew, &hidden.quantized, [&self.down], [y], simd);
    }
}

/// An error for matrices of one input that want it in different forms.
pub(super) fn check_alike<'a>(mut matrices: impl Iterator<Item = &'a Packed>, name: &str) -> Result<()> {
    let first = matrices.next();
    let is_alike = matrices.all(|other| first.is_none_or(|first| first.is_like(other)));
    let expected = "all floats, or all rounded: they have one input";
    check(is_alike, "formats of weights", format!("both kinds below {name}"), expected)
}

vectorized! {
    fn relu2(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = x.max(0.0) * x.max(0.0));
    }
}

vectorized! {
    /// `silu(gate) * up`, over `up`.
    fn swiglu(gate: &[f32], up: &mut [f32]) {
        gate.iter().zip(up).for_each(|(gate, up)| *up *= gate / (1.0 + exp(-gate)));
    }
}
