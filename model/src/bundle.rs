//! A model ready to serve: the weights, its tokenizer, what it is called, and pairs that prove it works.

use std::path::Path;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::generate::{Sequence, TensorSequence};
use crate::lm::CodeLm;
use crate::tokenizer::Tokenizer;
use crate::{checkpoint, gguf};

/// A loaded model.
pub struct Bundle {
    pub lm: CodeLm,
    pub tokenizer: Tokenizer,
    pub info: BundleInfo,
}

/// What is known of a model besides its weights.
#[derive(Clone, Debug)]
pub struct BundleInfo {
    pub name: String,
    /// The file or folder that it was read from.
    pub origin: String,
    pub n_parameters: usize,
    pub n_active_parameters: usize,
    pub languages: Vec<String>,
    /// `f32` or `q8_0`.
    pub quantization: String,
    /// XXH3 of the serving file, hexadecimal; empty for a folder.
    pub checksum: String,
    pub goldens: Vec<Golden>,
}

/// An input and what the model answered when it was packed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    pub language: Option<String>,
    pub ids: Vec<u32>,
    /// The greedy continuation.
    pub next_ids: Vec<u32>,
    /// The largest logit after `ids`.
    pub max_logit: f32,
}

impl BundleInfo {
    pub(crate) fn new(config: &ModelConfig, origin: &str, quantization: &str) -> BundleInfo {
        // A dot in the name of a folder (`Qwen2.5`) begins no file's ending.
        let path = Path::new(origin);
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let name = name.map_or(String::new(), |name| name.to_string_lossy().into_owned());
        BundleInfo {
            name,
            origin: origin.to_string(),
            n_parameters: config.n_parameters(),
            n_active_parameters: config.n_active_parameters(),
            languages: config.languages.clone(),
            quantization: quantization.to_string(),
            checksum: String::new(),
            goldens: Vec::new(),
        }
    }
}

/// Whether a model and a tokenizer fit each other, and the model may be served.
pub(crate) fn check_served(config: &ModelConfig, tokenizer: &Tokenizer, info: &BundleInfo) -> Result<()> {
    if let Some(moe) = config.moe.as_ref().filter(|moe| !moe.is_causal()) {
        let reason = format!("router {} looks at later tokens and cannot be served", moe.router.name());
        return Err(Error::corrupt(&info.origin, reason));
    }
    check_fit(config, tokenizer, info)
}

fn check_fit(config: &ModelConfig, tokenizer: &Tokenizer, info: &BundleInfo) -> Result<()> {
    let (ids, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if ids > rows {
        let reason = format!("the tokenizer has {ids} ids: expected at most vocab_size = {rows}");
        return Err(Error::corrupt(&info.origin, reason));
    }
    Ok(())
}

impl Bundle {
    /// Puts the parts together if they fit each other and may be served.
    ///
    /// # Errors
    /// A tokenizer with more entries than the model, or a router that looks at later tokens.
    pub fn new(lm: CodeLm, tokenizer: Tokenizer, info: BundleInfo) -> Result<Bundle> {
        check_served(lm.config(), &tokenizer, &info)?;
        Ok(Bundle { lm, tokenizer, info })
    }

    /// Reads a `.gguf` file of ours, or a checkpoint folder (ours, or Qwen2-, Qwen3- or Llama-shaped).
    pub fn load(path: &Path, device: &Device) -> Result<Bundle> {
        if path.is_dir() {
            return checkpoint::load_folder(path, device);
        }
        let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
        Bundle::from_gguf_bytes(&bytes, &path.display().to_string(), device)
    }

    /// The same to compute probabilities alone: also of a model whose router looks at later tokens, which can write nothing.
    ///
    /// # Errors
    /// As of [`Bundle::load`].
    pub fn load_to_score(path: &Path, device: &Device) -> Result<Bundle> {
        if !path.is_dir() {
            return Bundle::load(path, device);
        }
        let (lm, tokenizer, info) = checkpoint::load_parts(path, device)?;
        check_fit(lm.config(), &tokenizer, &info)?;
        Ok(Bundle { lm, tokenizer, info })
    }

    /// Reads the content of a `.gguf` file of ours. `origin` names it in errors.
    pub fn from_gguf_bytes(bytes: &[u8], origin: &str, device: &Device) -> Result<Bundle> {
        gguf::read(bytes, origin, device)
    }

    /// What the model answers now to `ids`: the greedy continuation by `n` tokens and the largest first logit.
    pub fn golden(&self, language: Option<&str>, ids: &[u32], n: usize) -> Result<Golden> {
        let mut cache = KvCache::new(self.lm.config(), self.lm.device())?;
        golden(&mut TensorSequence { lm: &self.lm, cache: &mut cache }, language, ids, n)
    }

    /// Whether the model still answers its golden inputs as when it was packed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the first pair that differs by more than rounding.
    pub fn check_goldens(&self) -> Result<()> {
        let mut cache = KvCache::new(self.lm.config(), self.lm.device())?;
        check_goldens(&mut TensorSequence { lm: &self.lm, cache: &mut cache }, &self.info, 1e-2)
    }
}

/// Logits after `ids`, from nothing.
fn first_logits(sequence: &mut dyn Sequence, language: u32, ids: &[u32]) -> Result<Vec<f32>> {
    sequence.keep_common_prefix(&[], language);
    sequence.next(ids, language, &|| false)
}

fn largest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// What a model answers to `ids`, from nothing.
fn golden(sequence: &mut dyn Sequence, language: Option<&str>, ids: &[u32], n: usize) -> Result<Golden> {
    let idx = sequence.config().language_index(language);
    let mut logits = first_logits(sequence, idx, ids)?;
    let max_logit = largest(&logits);
    let mut next_ids = Vec::new();
    for _ in 0..n {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0) as u32;
        next_ids.push(best);
        logits = sequence.next(&[best], idx, &|| false)?;
    }
    Ok(Golden { language: language.map(str::to_string), ids: ids.to_vec(), next_ids, max_logit })
}

/// Compares what is answered now with what was when the model was packed: the largest logit, and whether the first token is still as
/// likely as any, within `tolerance`.
pub(crate) fn check_goldens(sequence: &mut dyn Sequence, info: &BundleInfo, tolerance: f32) -> Result<()> {
    for (i, golden) in info.goldens.iter().enumerate() {
        let language = sequence.config().language_index(golden.language.as_deref());
        let logits = first_logits(sequence, language, &golden.ids)?;
        let now = largest(&logits);
        let first = golden.next_ids.first().map(|id| logits.get(*id as usize).copied().unwrap_or(f32::NEG_INFINITY));
        let is_close =
            (now - golden.max_logit).abs() <= tolerance && first.is_none_or(|first| now - first <= tolerance);
        if !is_close {
            let reason = format!("golden pair {i}: largest logit {} then, {now} now", golden.max_logit);
            return Err(Error::corrupt(&info.origin, reason));
        }
    }
    Ok(())
}
