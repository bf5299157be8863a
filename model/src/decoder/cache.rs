//! Keys and values of the positions already computed, as numbers of 16 bits.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::packed::ROWS;
use crate::cache::Held;
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Room for keys and values, at most: the server's prompts are far from it, and a damaged file asks for anything.
const MAX_BYTES: usize = 1 << 30;

/// Positions that a cache of a model may have: its context, or what 1 GiB holds.
pub(super) fn max_positions(config: &ModelConfig) -> usize {
    let stride = config.d_head.next_multiple_of(ROWS);
    let bytes = config.n_layers * config.n_kv_heads * size_of::<u16>() * (config.d_head + stride);
    // Whole tiles of positions.
    let most = MAX_BYTES / bytes / ROWS * ROWS;
    config.context_tokens.min(most.max(ROWS))
}

/// Keys and values of one layer: keys in tiles of 16 positions, so that one load serves 16 scores; values a row a position.
pub(super) struct LayerCache {
    /// `[head][tile of positions][number of the head][position of the tile]`.
    k: Vec<u16>,
    /// `[head][position][number of the head]`.
    v: Vec<u16>,
    d: usize,
    stride: usize,
    capacity: usize,
    /// Positions that were ever written.
    n_touched: usize,
}

/// The keys and values of a sequence, and its ids.
pub struct DecoderCache {
    pub(super) layers: Vec<LayerCache>,
    held: Held,
    capacity: usize,
}

impl DecoderCache {
    /// An empty one with room for `capacity` positions of a model. Memory that no position has reached is not touched.
    pub fn new(config: &ModelConfig, capacity: usize) -> DecoderCache {
        let (heads, d, stride) = (config.n_kv_heads, config.d_head, config.d_head.next_multiple_of(ROWS));
        let capacity = capacity.min(max_positions(config));
        let padded = capacity.next_multiple_of(ROWS);
        let layer = |_| LayerCache {
            k: vec![0; heads * padded * d],
            v: vec![0; heads * padded * stride],
            d,
            stride,
            capacity: padded,
            n_touched: 0,
        };
        let layers = (0..config.n_layers).map(layer).collect();
        DecoderCache { layers, held: Held::default(), capacity }
    }

    /// The ids that every layer holds.
    pub fn ids(&self) -> &[u32] {
        self.held.ids()
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keeps what `ids` begins with, under the same language, and returns how many tokens that is.
    pub fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize {
        self.held.keep_common_prefix(ids, language)
    }

    /// How many tokens of what `ids` begins with are held, under the same language.
    pub fn common_prefix(&self, ids: &[u32], language: u32) -> usize {
        self.held.common_prefix(ids, language)
    }

    /// What it takes in memory: that of the positions that were ever written.
    pub fn n_bytes(&self) -> usize {
        let touched = self.layers.iter().map(|layer| layer.n_touched).max().unwrap_or(0);
        self.n_bytes_of(touched)
    }

    /// What `n_tokens` take in memory.
    pub fn n_bytes_of(&self, n_tokens: usize) -> usize {
        let per_token = |layer: &LayerCache| 2 * (layer.k.len() + layer.v.len()) / layer.capacity.max(1);
        n_tokens * self.layers.iter().map(per_token).sum::<usize>()
    }

    /// Holds the first `n_tokens` of another cache of the same shape, and nothing else.
    pub(super) fn copy_from(&mut self, other: &DecoderCache, n_tokens: usize) {
        for (layer, other) in self.layers.iter_mut().zip(&other.layers) {
            layer.copy_from(other, n_tokens);
        }
        self.held = other.held.clone();
        self.held.truncate(n_tokens);
    }

    /// Forgets all positions from `n_tokens` on.
    pub fn truncate(&mut self, n_tokens: usize) {
        self.held.truncate(n_tokens);
    }

    /// Whether tokens of `language` may follow what is held.
    ///
    /// # Errors
    /// Those of another language are there: keys and values of other experts.
    pub(super) fn follow(&mut self, language: u32) -> Result<()> {
        if self.held.follow(language) {
            return Ok(());
        }
        Err(Error::Input(format!("tokens of language {language} after some of another: expected an empty cache")))
    }

    /// Says that every layer now holds `ids` too.
    pub(super) fn commit(&mut self, ids: &[u32]) {
        self.held.extend(ids);
    }
}

impl LayerCache {
    /// Writes keys and values of all heads at a position.
    pub(super) fn put(&mut self, position: usize, k: &[f32], v: &[f32]) {
        let (tile, lane, d) = (position / ROWS, position % ROWS, self.d);
        self.n_touched = self.n_touched.max(position + 1);
        let mut halves = [f16::ZERO; ROWS];
        for (head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let at = (head * self.capacity / ROWS + tile) * d * ROWS + lane;
            for (i, k) in k.chunks(ROWS).enumerate() {
                halves[..k.len()].convert_from_f32_slice(k);
                for (j, half) in halves[..k.len()].iter().enumerate() {
                    self.k[at + (i * ROWS + j) * ROWS] = half.to_bits();
                }
            }
            let at = (head * self.capacity + position) * self.stride;
            self.v[at..at + d].reinterpret_cast_mut::<f16>().convert_from_f32_slice(v);
        }
    }

    fn copy_from(&mut self, other: &LayerCache, n: usize) {
        let heads = self.v.len() / (self.capacity * self.stride);
        self.n_touched = self.n_touched.max(n);
        for head in 0..heads {
            let (keys, values) = (other.keys(head, n), other.values(head, n));
            let (k, v) = (head * self.capacity * self.d, head * self.capacity * self.stride);
            self.k[k..k + keys.len()].copy_from_slice(keys);
            self.v[v..v + values.len()].copy_from_slice(values);
        }
    }

    /// The tiles that hold the first `n` positions of a head.
    pub(super) fn keys(&self, head: usize, n: usize) -> &[u16] {
        let from = head * self.capacity * self.d;
        &self.k[from..from + n.next_multiple_of(ROWS) * self.d]
    }

    /// The first `n` positions of a head, each filled up to a multiple of 16 numbers.
    pub(super) fn values(&self, head: usize, n: usize) -> &[u16] {
        let from = head * self.capacity * self.stride;
        &self.v[from..from + n * self.stride]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    /// A file of 200 kB asked for 128 GiB.
    #[test]
    fn room_is_for_no_more_than_may_be_asked_for() {
        let mut config = tiny(None);
        (config.context_tokens, config.d_model, config.d_head) = (1 << 20, 1, 2);
        (config.n_heads, config.n_kv_heads) = (4096, 4096);
        config.validate().unwrap();
        let cache = DecoderCache::new(&config, config.context_tokens);
        assert!(cache.n_bytes_of(cache.capacity()) <= MAX_BYTES && cache.capacity() > 1000, "{}", cache.capacity());
        assert_eq!(max_positions(&tiny(None)), tiny(None).context_tokens);
    }

    #[test]
    fn keys_lie_in_tiles_and_values_in_rows() {
        let mut cache = DecoderCache::new(&tiny(None), 40);
        let layer = &mut cache.layers[0];
        // Two heads of eight: the first one's are zeros.
        let numbers =
            |from: f32| -> Vec<f32> { (0..16).map(|i| if i < 8 { 0.0 } else { from + i as f32 - 8.0 }).collect() };
        layer.put(17, &numbers(1.0), &numbers(50.0));
        let f = |bits: u16| f16::from_bits(bits).to_f32();
        let keys = layer.keys(1, 18);
        assert_eq!(keys.len(), 2 * ROWS * 8);
        assert_eq!((f(keys[8 * ROWS + 1]), f(keys[8 * ROWS + 3 * ROWS + 1])), (1.0, 4.0));
        let values = layer.values(1, 18);
        assert_eq!(
            (values.len(), f(values[17 * 16]), f(values[17 * 16 + 7]), f(values[17 * 16 + 8])),
            (18 * 16, 50.0, 57.0, 0.0)
        );
        assert!(layer.keys(0, 18).iter().all(|k| *k == 0));
    }
}
