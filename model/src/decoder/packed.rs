//! Weights in the order in which kernels read them: tiles of 16 rows, in each of which four columns of all rows lie side by side, so that
//! one load serves 16 outputs and no sum runs across a register.

use half::f16;

use crate::config::check;
use crate::error::{Error, Result};

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Columns of a block, which have one scale.
pub const COLS: usize = 32;

/// How a weight is stored. Formats by blocks are llama.cpp's, whose files need no second rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `scale · q`, -127 to 127.
    Q8,
    /// `scale · (q - 8)`, 0 to 15.
    Q4,
    /// `scale · q - least`, 0 to 15: blocks of Q4_K, whose products of two scales become one of 16 bits.
    Q4Least,
    F16,
    F32,
}

impl Format {
    /// Bytes of the weights of a block of a tile.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Format::Q8 => ROWS * COLS,
            Format::Q4 | Format::Q4Least => ROWS * COLS / 2,
            Format::F16 => 2 * ROWS * COLS,
            Format::F32 => 4 * ROWS * COLS,
        }
    }

    /// Bytes that a row has side by side before those of the next row.
    fn unit_bytes(self) -> usize {
        match self {
            Format::Q8 | Format::Q4 | Format::Q4Least | Format::F32 => 4,
            Format::F16 => 2,
        }
    }

    /// Numbers of 16 bits that each row of a block has besides.
    pub(super) fn scales(self) -> usize {
        match self {
            Format::Q8 | Format::Q4 => 1,
            Format::Q4Least => 2,
            Format::F16 | Format::F32 => 0,
        }
    }
}

/// A line of the cache: tiles begin at one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A matrix of one row an output, packed.
pub struct Packed {
    pub(super) format: Format,
    pub(super) n_rows: usize,
    pub(super) n_blocks: usize,
    /// Per tile: the blocks, then the scales of each.
    lines: Vec<Line>,
    tile_lines: usize,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Packed({:?}, {} x {} blocks)", self.format, self.n_rows, self.n_blocks)
    }
}

/// The values of one block of a row, in the numbers of its format.
pub(super) struct Block {
    /// Of Q8 offset by 128.
    pub(super) q: [u8; COLS],
    pub(super) scales: [f16; 2],
}

impl Packed {
    fn new(format: Format, n_rows: usize, n_cols: usize) -> Packed {
        let n_blocks = n_cols.div_ceil(COLS);
        let tile_bytes = n_blocks * (format.block_bytes() + 2 * ROWS * format.scales());
        let tile_lines = tile_bytes.div_ceil(size_of::<Line>());
        let lines = vec![Line([0; 64]); n_rows.div_ceil(ROWS) * tile_lines];
        Packed { format, n_rows, n_blocks, lines, tile_lines }
    }

    /// Packs rows of `n_cols` floats; of `Q8` and `Q4` each block is rounded to its largest value.
    ///
    /// # Errors
    /// Another number of values; a format that floats are not rounded to.
    pub fn from_floats(format: Format, w: &[f32], n_cols: usize) -> Result<Packed> {
        check(n_cols > 0 && w.len().is_multiple_of(n_cols), "weight", w.len(), &format!("rows of {n_cols}"))?;
        let mut packed = Packed::new(format, w.len() / n_cols, n_cols);
        for (row, w) in w.chunks_exact(n_cols).enumerate() {
            for (block, w) in w.chunks(COLS).enumerate() {
                let mut x = [0f32; COLS];
                x[..w.len()].copy_from_slice(w);
                match format {
                    Format::Q8 => packed.put(row, block, &round_q8(&x)),
                    Format::Q4 => packed.put(row, block, &round_q4(&x)),
                    Format::F16 => packed.put_floats(row, block, x.map(|x| f16::from_f32(x).to_bits().to_le_bytes())),
                    Format::F32 => packed.put_floats(row, block, x.map(f32::to_le_bytes)),
                    Format::Q4Least => return Err(Error::Input("floats: expected a format other than Q4_K".into())),
                }
            }
        }
        packed.fill_up();
        Ok(packed)
    }

    /// Packs rows of blocks as they stand in a GGUF file: `Q8`, `Q4` and, of rows of whole superblocks, `Q4Least`.
    ///
    /// # Errors
    /// Another number of bytes; a format without blocks; columns that are no whole blocks.
    pub fn from_blocks(format: Format, bytes: &[u8], (n_rows, n_cols): (usize, usize)) -> Result<Packed> {
        let (cols, size) = match format {
            Format::Q8 => (COLS, 34),
            Format::Q4 => (COLS, 18),
            Format::Q4Least => (256, 144),
            Format::F16 | Format::F32 => return Err(Error::Input("blocks: expected Q8_0, Q4_0 or Q4_K".into())),
        };
        check(n_cols.is_multiple_of(cols) && n_cols > 0, "columns", n_cols, &format!("a multiple of {cols}"))?;
        let row_bytes = n_cols / cols * size;
        check(bytes.len() == n_rows * row_bytes, "bytes of blocks", bytes.len(), &format!("{}", n_rows * row_bytes))?;
        let mut packed = Packed::new(format, n_rows, n_cols);
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            for (i, block) in bytes.chunks_exact(size).enumerate() {
                match format {
                    Format::Q8 => packed.put(row, i, &read_q8(block)),
                    Format::Q4 => packed.put(row, i, &read_q4(block)),
                    _ => (0..8).for_each(|j| packed.put(row, 8 * i + j, &read_q4_k(block, j))),
                }
            }
        }
        packed.fill_up();
        Ok(packed)
    }

    /// The rows `rows`, in that order, as they are.
    pub(super) fn pick(&self, rows: &[u32]) -> Packed {
        let mut picked = Packed::new(self.format, rows.len(), self.n_blocks * COLS);
        let (n_weights, unit) = (self.n_blocks * self.format.block_bytes(), self.format.unit_bytes());
        let n_scales = 2 * ROWS * self.format.scales() * self.n_blocks;
        for (to, &from) in rows.iter().enumerate() {
            let ((weights, scales), from) = (self.tile(from as usize / ROWS), from as usize % ROWS);
            let (own, rest) = picked.tile_mut(to / ROWS).split_at_mut(n_weights);
            copy_lane(weights, own, unit, (from, to % ROWS));
            copy_lane(&scales[..n_scales], &mut rest[..n_scales], size_of::<f16>(), (from, to % ROWS));
        }
        picked.fill_up();
        picked
    }

    /// Whether products with both take the same form of activations.
    pub(super) fn is_like(&self, other: &Packed) -> bool {
        (self.format.scales() == 0) == (other.format.scales() == 0)
    }

    pub fn n_tiles(&self) -> usize {
        self.n_rows.div_ceil(ROWS)
    }

    /// Bytes that a product reads.
    pub fn n_bytes(&self) -> usize {
        size_of::<Line>() * self.lines.len()
    }

    /// Tiles as they lie: of each the blocks, then their scales.
    pub(super) fn tiles(&self, tiles: std::ops::Range<usize>) -> &[u8] {
        let lines = &self.lines[tiles.start * self.tile_lines..tiles.end * self.tile_lines];
        // SAFETY: a line is 64 bytes and nothing else.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast::<u8>(), size_of_val(lines)) }
    }

    /// The blocks of a tile, and their scales.
    fn tile(&self, tile: usize) -> (&[u8], &[u8]) {
        self.tiles(tile..tile + 1).split_at(self.n_blocks * self.format.block_bytes())
    }

    fn tile_mut(&mut self, tile: usize) -> &mut [u8] {
        let lines = &mut self.lines[tile * self.tile_lines..(tile + 1) * self.tile_lines];
        // SAFETY: a line is 64 bytes and nothing else, all of which may be any number.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), size_of_val(lines)) }
    }

    fn put(&mut self, row: usize, block: usize, values: &Block) {
        let (format, n_blocks, r) = (self.format, self.n_blocks, row % ROWS);
        let bytes = self.tile_mut(row / ROWS);
        let own = &mut bytes[block * format.block_bytes()..];
        match format {
            Format::Q8 => {
                for (k, q) in values.q.iter().enumerate() {
                    own[k / 4 * 4 * ROWS + 4 * r + k % 4] = *q;
                }
            }
            _ => {
                for (k, q) in values.q.iter().enumerate() {
                    // Four columns are low halves, the next four the high ones of the same bytes.
                    own[k / 8 * 4 * ROWS + 4 * r + k % 4] |= if k % 8 < 4 { *q } else { q << 4 };
                }
            }
        }
        for (i, scale) in values.scales.iter().take(format.scales()).enumerate() {
            let at = n_blocks * format.block_bytes() + 2 * ((format.scales() * block + i) * ROWS + r);
            bytes[at..at + 2].copy_from_slice(&scale.to_bits().to_le_bytes());
        }
    }

    fn put_floats<const N: usize>(&mut self, row: usize, block: usize, values: [[u8; N]; COLS]) {
        let (size, r) = (self.format.block_bytes(), row % ROWS);
        let own = &mut self.tile_mut(row / ROWS)[block * size..];
        for (k, value) in values.iter().enumerate() {
            own[(k * ROWS + r) * N..][..N].copy_from_slice(value);
        }
    }

    /// Rows that the last tile has beyond the matrix: zeros times zero.
    fn fill_up(&mut self) {
        let zero = Block { q: [if self.format == Format::Q8 { 128 } else { 0 }; COLS], scales: [f16::ZERO; 2] };
        if self.format.scales() > 0 {
            for row in self.n_rows..self.n_tiles() * ROWS {
                (0..self.n_blocks).for_each(|block| self.put(row, block, &zero));
            }
        }
    }
}

/// Copies what row `from` has of a tile to row `to` of another, `unit` bytes at a time.
fn copy_lane(tile: &[u8], out: &mut [u8], unit: usize, (from, to): (usize, usize)) {
    for (tile, out) in tile.chunks_exact(unit * ROWS).zip(out.chunks_exact_mut(unit * ROWS)) {
        out[unit * to..][..unit].copy_from_slice(&tile[unit * from..][..unit]);
    }
}

/// As llama.cpp rounds: the value of largest magnitude becomes 127 times the scale.
fn round_q8(x: &[f32; COLS]) -> Block {
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let q = x.map(|x| ((x * inverse).round() as i8 as u8) ^ 0x80);
    Block { q, scales: [f16::from_f32(largest / 127.0), f16::ZERO] }
}

/// As llama.cpp rounds: the value of largest magnitude becomes -8 times the scale.
fn round_q4(x: &[f32; COLS]) -> Block {
    let largest = x.iter().fold(0f32, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
    let scale = largest / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    Block { q: x.map(|x| (x * inverse + 8.5).clamp(0.0, 15.0) as u8), scales: [f16::from_f32(scale), f16::ZERO] }
}

fn half(bytes: &[u8]) -> f16 {
    f16::from_bits(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn read_q8(block: &[u8]) -> Block {
    Block { q: std::array::from_fn(|k| block[2 + k] ^ 0x80), scales: [half(block), f16::ZERO] }
}

fn read_q4(block: &[u8]) -> Block {
    let q = std::array::from_fn(|k| if k < 16 { block[2 + k] & 15 } else { block[2 + k - 16] >> 4 });
    Block { q, scales: [half(block), f16::ZERO] }
}

/// Block `j` of a superblock: six bits each of its scale and of its least value.
pub(super) fn read_q4_k(block: &[u8], j: usize) -> Block {
    let bits = &block[4..16];
    let (scale, least) = match j {
        0..4 => (bits[j] & 63, bits[j + 4] & 63),
        _ => (bits[j + 4] & 15 | bits[j - 4] >> 6 << 4, bits[j + 4] >> 4 | bits[j] >> 6 << 4),
    };
    let q = std::array::from_fn(|k| block[16 + j / 2 * 32 + k] >> (4 * (j % 2)) & 15);
    let times = |of: f16, n: u8| f16::from_f32(of.to_f32() * f32::from(n));
    Block { q, scales: [times(half(block), scale), times(half(&block[2..]), least)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bytes_and_columns_are_named() {
        let error = |result: crate::Result<Packed>| result.unwrap_err().to_string();
        let short = error(Packed::from_blocks(Format::Q8, &[0; 33], (1, 32)));
        assert!(short.contains("bytes of blocks = 33: expected 34"), "{short}");
        let odd = error(Packed::from_blocks(Format::Q4Least, &[], (1, 100)));
        assert!(odd.contains("columns = 100: expected a multiple of 256"), "{odd}");
        assert!(error(Packed::from_floats(Format::Q8, &[0.0; 5], 2)).contains("weight = 5: expected rows of 2"));
        let blocks = error(Packed::from_blocks(Format::F32, &[], (1, 32)));
        assert!(blocks.contains("expected Q8_0, Q4_0 or Q4_K"), "{blocks}");
    }
}
