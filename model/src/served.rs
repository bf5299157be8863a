//! A model in an editor: packed weights, its tokenizer, what it is called, and the sequence that it has computed so far.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use crate::bundle::{self, BundleInfo, Golden};
use crate::checkpoint;
use crate::config::ModelConfig;
use crate::decoder::{Decoder, DecoderCache, FileBytes, Floats, Format, GgufWeights, Simd, Worker};
use crate::error::{Error, Result};
use crate::fim::Prompt;
use crate::generate::{GenerateOptions, Generated, Sequence, generate};
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
    /// Reads a `.gguf` file of ours, which stays mapped, or a checkpoint folder, whose weights are rounded to eight bits.
    ///
    /// # Errors
    /// Whatever is missing or damaged, named.
    pub fn load(path: &Path) -> Result<Served> {
        if path.is_dir() {
            return Served::of_folder(path);
        }
        let file = std::fs::File::open(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: serving files are written beside and renamed into place, never changed where they stand.
        let mapped = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::file(path, e))?;
        Served::from_gguf(Arc::new(mapped), &path.display().to_string())
    }

    /// A serving file that is in memory. `origin` names it in errors.
    ///
    /// # Errors
    /// Whatever is damaged, named.
    pub fn from_gguf(bytes: FileBytes, origin: &str) -> Result<Served> {
        let (config, tokenizer, info, _) = gguf::read_head((*bytes).as_ref(), origin)?;
        bundle::check_served(&config, &tokenizer, &info)?;
        let decoder = Decoder::new(&config, Arc::new(GgufWeights::open(bytes, origin)?), Simd::best())?;
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

    /// A sequence of nothing yet, and `n_threads` threads for it.
    pub fn sequence(&self, n_threads: usize) -> Computed {
        let config = self.config();
        Computed { cache: DecoderCache::new(config, config.context_tokens), worker: Worker::new(n_threads) }
    }

    /// As [`generate`].
    ///
    /// # Errors
    /// Those of [`generate`].
    #[allow(clippy::too_many_arguments)]
    pub fn generate(
        &self,
        computed: &mut Computed,
        prompt: &Prompt,
        language: Option<&str>,
        options: &GenerateOptions,
        stop: &mut dyn FnMut(&[u8]) -> bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Generated> {
        let mut sequence = PackedSequence { decoder: &self.decoder, computed };
        generate(&mut sequence, &self.tokenizer, prompt, language, options, stop, cancelled)
    }

    /// Whether the model answers its golden inputs as when it was packed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the first pair that differs by more than rounding.
    pub fn check_goldens(&self) -> Result<()> {
        bundle::check_goldens(&self.info, GOLDEN_TOLERANCE, |golden| self.golden(golden))
    }

    fn golden(&self, golden: &Golden) -> Result<Golden> {
        let mut computed = self.sequence(1);
        let mut sequence = PackedSequence { decoder: &self.decoder, computed: &mut computed };
        bundle::golden(&mut sequence, golden.language.as_deref(), &golden.ids, 1)
    }
}

impl Computed {
    /// Forgets all that was computed.
    pub fn clear(&mut self) {
        self.cache.truncate(0);
    }
}

struct PackedSequence<'a> {
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
