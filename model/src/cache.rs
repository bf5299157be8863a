//! Keys and values of the positions already seen, with truncation to a common prefix.

use candle_core::{DType, Device, Tensor};

use crate::config::ModelConfig;
use crate::error::Result;
use crate::speculate::Pace;

/// The cache of one layer: preallocated, one sequence.
pub(crate) struct LayerCache {
    k_1MGK: Tensor,
    v_1MGK: Tensor,
    n_tokens: usize,
}

impl LayerCache {
    /// Positions held.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Writes the new positions behind those held and returns all of them.
    pub(crate) fn append(&mut self, k_1LGK: &Tensor, v_1LGK: &Tensor) -> Result<(Tensor, Tensor)> {
        let l = k_1LGK.dim(1)?;
        self.k_1MGK.slice_set(&k_1LGK.contiguous()?, 1, self.n_tokens)?;
        self.v_1MGK.slice_set(&v_1LGK.contiguous()?, 1, self.n_tokens)?;
        self.n_tokens += l;
        Ok((self.k_1MGK.narrow(1, 0, self.n_tokens)?, self.v_1MGK.narrow(1, 0, self.n_tokens)?))
    }
}

/// The cache of a model: one [`LayerCache`] each layer, and the ids that it holds.
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    held: Held,
    capacity: usize,
    pub(crate) pace: Pace,
}

/// The ids whose keys and values a cache holds, and the language that they were computed under.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    ids: Vec<u32>,
    language: u32,
}

impl Default for Held {
    fn default() -> Self {
        Held { ids: Vec::new(), language: crate::UNKNOWN_LANGUAGE }
    }
}

impl Held {
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How many tokens of what `ids` begins with are held under the same language.
    pub(crate) fn common_prefix(&self, ids: &[u32], language: u32) -> usize {
        let common = self.ids.iter().zip(ids).take_while(|(held, id)| held == id).count();
        if language == self.language { common } else { 0 }
    }

    /// Keeps what `ids` begins with, under the same language, and returns how many tokens that is.
    pub(crate) fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize {
        let keep = self.common_prefix(ids, language);
        self.language = language;
        self.truncate(keep);
        keep
    }

    /// Whether tokens of `language` may follow: nothing is held, or others of it.
    pub(crate) fn follow(&mut self, language: u32) -> bool {
        if self.ids.is_empty() {
            self.language = language;
        }
        self.language == language
    }

    pub(crate) fn truncate(&mut self, n_tokens: usize) {
        self.ids.truncate(n_tokens);
    }

    pub(crate) fn extend(&mut self, ids: &[u32]) {
        self.ids.extend(ids);
    }
}

impl KvCache {
    /// An empty cache for `context_tokens` positions of the model.
    pub fn new(config: &ModelConfig, device: &Device) -> Result<KvCache> {
        let shape = (1, config.context_tokens, config.n_kv_heads, config.d_head);
        let layer = |_| -> Result<LayerCache> {
            let zeros = || Tensor::zeros(shape, DType::F32, device);
            Ok(LayerCache { k_1MGK: zeros()?, v_1MGK: zeros()?, n_tokens: 0 })
        };
        let layers = (0..config.n_layers).map(layer).collect::<Result<Vec<_>>>()?;
        let (held, pace) = (Held::default(), Pace::default());
        Ok(KvCache { layers, held, capacity: config.context_tokens, pace })
    }

    /// The ids whose keys and values are held by every layer.
    pub fn ids(&self) -> &[u32] {
        self.held.ids()
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keeps what `ids` begins with, under the same language, and returns how many tokens that is.
    pub fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize {
        let keep = self.held.keep_common_prefix(ids, language);
        self.truncate(keep);
        keep
    }

    /// Forgets all positions from `n_tokens` on.
    pub fn truncate(&mut self, n_tokens: usize) {
        self.held.truncate(n_tokens);
        for layer in &mut self.layers {
            layer.n_tokens = layer.n_tokens.min(self.held.ids().len());
        }
    }

    /// Says that every layer now holds `ids` too.
    pub(crate) fn commit(&mut self, ids: &[u32]) {
        self.held.extend(ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    #[test]
    fn keeps_the_common_prefix_of_one_language() {
        let mut cache = KvCache::new(&tiny(None), &Device::Cpu).unwrap();
        cache.keep_common_prefix(&[1, 2, 3], 0);
        cache.commit(&[1, 2, 3]);
        assert_eq!(cache.keep_common_prefix(&[1, 2, 4, 5], 0), 2);
        assert_eq!(cache.ids(), [1, 2]);
        assert_eq!(cache.keep_common_prefix(&[1, 2], 1), 0, "another expert, other keys");
    }
}
