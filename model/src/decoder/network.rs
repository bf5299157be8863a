//! Products of a stage, divided among threads, and the feed-forward network made of them.

use std::ops::Range;

use super::crew::{Crew, Pieces};
use super::kernel::{Simd, multiply};
use super::packed::{COLS, Packed, ROWS};
use super::quantized::{Quantized, Writer};
use super::weights::WeightSource;
use crate::config::{Activation, check};
use crate::error::Result;
use crate::ops::simd::{exp, vectorized};

/// Parts of a stage for each thread: more let a free core take more of them, fewer cost less to hand out.
const PARTS_PER_THREAD: usize = 16;

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

/// Tiles of several matrices divided among the parts of one stage.
struct Parts<const N: usize> {
    n_tiles: [usize; N],
    per_part: usize,
}

impl<const N: usize> Parts<N> {
    fn new(n_tiles: [usize; N], crew: &Crew) -> Parts<N> {
        Parts { n_tiles, per_part: tiles_of_part(n_tiles.iter().sum(), crew) }
    }

    fn len(&self) -> usize {
        self.n_tiles.iter().map(|n| n.div_ceil(self.per_part)).sum()
    }

    /// The matrix of a part, and its tiles.
    fn of(&self, mut part: usize) -> (usize, Range<usize>) {
        let mut matrix = 0;
        while part >= self.n_tiles[matrix].div_ceil(self.per_part) {
            (part, matrix) = (part - self.n_tiles[matrix].div_ceil(self.per_part), matrix + 1);
        }
        (matrix, part * self.per_part..((part + 1) * self.per_part).min(self.n_tiles[matrix]))
    }
}

/// The products of as many rows with a matrix each, one stage.
pub(super) fn products<const N: usize>(
    crew: &mut Crew,
    pairs: [(&Quantized, &Packed); N],
    out: [&mut ByTile; N],
    simd: Simd,
) {
    let n = pairs.first().map_or(0, |(x, _)| x.n_rows());
    let parts = Parts::new(pairs.map(|(_, w)| w.n_tiles()), crew);
    let mut n_tiles = parts.n_tiles.iter();
    let pieces = out.map(|out| {
        out.resize(n_tiles.next().map_or(0, |n_tiles| n_tiles * n * ROWS), 0.0);
        Pieces::new(out)
    });
    crew.run(parts.len(), &|part| {
        let (matrix, tiles) = parts.of(part);
        let (x, w) = pairs[matrix];
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

    /// Its hidden values of a part's tiles, for all rows of `x`, as integers into `quantized`.
    fn hidden_of(
        &self,
        x: &Quantized,
        tiles: Range<usize>,
        (gate, up): (&mut [f32], &mut [f32]),
        quantized: &Writer<'_>,
        simd: Simd,
    ) {
        let n = x.n_rows();
        multiply(&self.up, x, tiles.clone(), up, simd);
        match &self.gate {
            Some(w) => {
                multiply(w, x, tiles.clone(), gate, simd);
                swiglu(gate, up);
            }
            None => relu2(up),
        }
        // A part has whole blocks: what it computed becomes integers while it is near.
        let first = tiles.start * ROWS / COLS;
        for (block, up) in up.chunks(COLS / ROWS * n * ROWS).enumerate() {
            let width = (self.f - (first + block) * COLS).min(COLS);
            for row in 0..n {
                let mut x = [0f32; COLS];
                copy_row(up, (row, n), &mut x[..width]);
                // SAFETY: each part has blocks of its own.
                unsafe { quantized.set_blocks(row, first + block, &x[..width]) };
            }
        }
    }
}

/// What each network says of each row of `x`, in two stages for all of them.
pub(super) fn run_networks<const N: usize>(
    networks: [&Network; N],
    crew: &mut Crew,
    x: &Quantized,
    hidden: [&mut Hidden; N],
    y: [&mut ByTile; N],
    simd: Simd,
) {
    let n = x.n_rows();
    let parts = Parts::new(networks.map(|network| network.up.n_tiles()), crew);
    let mut all = networks.iter();
    let mut hidden = hidden.map(|hidden| {
        if let Some(network) = all.next() {
            let len = network.up.n_tiles() * n * ROWS;
            hidden.up.resize(len, 0.0);
            hidden.gate.resize(if network.gate.is_some() { len } else { 0 }, 0.0);
            hidden.quantized.resize_for(n, &network.down);
        }
        hidden
    });
    let pieces = hidden
        .each_mut()
        .map(|hidden| (Pieces::new(&mut hidden.gate), Pieces::new(&mut hidden.up), hidden.quantized.writer()));
    crew.run(parts.len(), &|part| {
        let (which, tiles) = parts.of(part);
        let (network, (gates, ups, quantized)) = (networks[which], &pieces[which]);
        let own = tiles.start * n * ROWS..tiles.end * n * ROWS;
        let of_gate = if network.gate.is_some() { own.clone() } else { 0..0 };
        // SAFETY: each part has tiles of its own.
        let (gate, up) = unsafe { (gates.take(of_gate), ups.take(own)) };
        network.hidden_of(x, tiles, (gate, up), quantized, simd);
    });
    let mut downs = networks.iter().map(|network| &network.down);
    let pairs = hidden.each_ref().map(|hidden| &hidden.quantized);
    let pairs: [(&Quantized, &Packed); N] = pairs.map(|x| (x, downs.next().unwrap_or(&networks[0].down)));
    products(crew, pairs, y, simd);
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
