//! A model in an editor: packed weights, its tokenizer, what it is called, and the sequence that it has computed so far.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use crate::bundle::{self, BundleInfo};
use crate::checkpoint;
use crate::config::ModelConfig;
use crate::decoder::{Decoder, DecoderCache, FileBytes, Floats, Format, GgufWeights, Simd, Worker};
use crate::error::{Error, Result};
use crate::generate::Sequence;
use crate::gguf;
use crate::tokenizer::Tokenizer;

/// How far a largest logit may be from that of the tensors whose weights these are: activations are rounded to eight bits here.
const GOLDEN_TOLERANCE: f32 = 0.25;

/// A loaded model.
pub struct Served {
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    pub info: BundleInfo,
}

/// What a model has computed, and the threads and memory that it computes with.
pub struct Computed {
    cache: DecoderCache,
    worker: Worker,
}

impl Served {
    /// Reads a `.gguf` file of ours, which stays mapped, or a checkpoint folder, whose weights are rounded to eight bits. Whoever replaces
    /// the file while it is served must put the new one in its place by renaming it, as `multicoder pack` does: one that is written over
    /// where it stands takes the program down.
    ///
    /// # Errors
    /// Whatever is missing or damaged, named.
    pub fn load(path: &Path) -> Result<Served> {
        if path.is_dir() {
            return Served::of_folder(path);
        }
        let file = std::fs::File::open(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: the file is not changed where it stands: the caller's part, said above.
        let mapped = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::file(path, e))?;
        Served::from_gguf(Arc::new(mapped), &path.display().to_string())
    }

    /// A serving file that is in memory. `origin` names it in errors.
    ///
    /// # Errors
    /// Whatever is damaged, named.
    pub fn from_gguf(bytes: FileBytes, origin: &str) -> Result<Served> {
        let (config, tokenizer, info, content) = gguf::read_head((*bytes).as_ref(), origin)?;
        bundle::check_served(&config, &tokenizer, &info)?;
        let decoder = Decoder::new(&config, Arc::new(GgufWeights::of(bytes, content, origin)?), Simd::best())?;
        Ok(Served { decoder, tokenizer, info })
    }

    fn of_folder(path: &Path) -> Result<Served> {
        let lm = checkpoint::load_lm(path, true, &Device::Cpu)?;
        let lm = if lm.config().is_plain() { lm } else { lm.materialized()? };
        let tokenizer = Tokenizer::from_file(&path.join("tokenizer.json"))?;
        let info = BundleInfo::new(lm.config(), &path.display().to_string(), "q8_0");
        bundle::check_served(lm.config(), &tokenizer, &info)?;
        let decoder = Decoder::new(lm.config(), Arc::new(Floats::of(&lm, Format::Q8)?), Simd::best())?;
        Ok(Served { decoder, tokenizer, info })
    }

    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// The model with what it has computed so far.
    pub fn sequence<'a>(&'a self, computed: &'a mut Computed) -> PackedSequence<'a> {
        PackedSequence { decoder: &self.decoder, computed }
    }

    /// Whether the model answers its golden inputs as when it was packed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the first pair that differs by more than rounding.
    pub fn check_goldens(&self) -> Result<()> {
        let mut computed = Computed::new(self.config(), 1);
        bundle::check_goldens(&mut self.sequence(&mut computed), &self.info, GOLDEN_TOLERANCE)
    }
}

impl Computed {
    /// Nothing yet, and `n_threads` threads to compute with.
    pub fn new(config: &ModelConfig, n_threads: usize) -> Computed {
        Computed { cache: DecoderCache::new(config, config.context_tokens), worker: Worker::new(n_threads) }
    }

    /// Forgets all that was computed.
    pub fn clear(&mut self) {
        self.cache.truncate(0);
    }
}

/// A model of packed weights.
pub struct PackedSequence<'a> {
    decoder: &'a Decoder,
    computed: &'a mut Computed,
}

impl Sequence for PackedSequence<'_> {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn ids(&self) -> &[u32] {
        self.computed.cache.ids()
    }

    fn capacity(&self) -> usize {
        self.computed.cache.capacity()
    }

    fn keep_common_prefix(&mut self, ids: &[u32], language: u32) -> usize {
        self.computed.cache.keep_common_prefix(ids, language)
    }

    fn truncate(&mut self, n_tokens: usize) {
        self.computed.cache.truncate(n_tokens);
    }

    fn next(&mut self, ids: &[u32], language: u32, cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>> {
        let Computed { cache, worker } = &mut *self.computed;
        self.decoder.decode((ids, 1), language, cache, worker, cancelled)?;
        Ok(worker.logits.clone())
    }
}
