//! The model that is measured, in the formats of both programs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use multicoder_model::decoder::{Decoder, Simd};
use multicoder_model::llama::{self, LlamaFormat};
use multicoder_model::{CodeLm, ModelConfig, Tokenizer};
use serde::Serialize;

use crate::model_completer::load_bundle;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub enum Weights {
    #[serde(rename = "q8_0")]
    #[value(name = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_0")]
    #[value(name = "q4_0")]
    Q4_0,
    /// As q4_0, in superblocks where rows are a multiple of 256 long.
    #[serde(rename = "q4_k")]
    #[value(name = "q4_k")]
    Q4K,
    #[serde(rename = "f16")]
    F16,
}

impl Weights {
    pub fn name(self) -> &'static str {
        match self {
            Weights::Q8_0 => "q8_0",
            Weights::Q4_0 => "q4_0",
            Weights::Q4K => "q4_k",
            Weights::F16 => "f16",
        }
    }

    fn format(self) -> LlamaFormat {
        match self {
            Weights::Q8_0 => LlamaFormat::Q8_0,
            Weights::Q4_0 => LlamaFormat::Q4_0,
            Weights::Q4K => LlamaFormat::Q4K,
            Weights::F16 => LlamaFormat::F16,
        }
    }

    /// Bits of a weight in a file, with its share of its block's scale.
    fn bits(self) -> f64 {
        match self {
            Weights::Q8_0 => 8.5,
            Weights::Q4_0 | Weights::Q4K => 4.5,
            Weights::F16 => 16.0,
        }
    }
}

/// A model of random weights, for speed alone.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub about: &'static str,
    config: &'static str,
}

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "34m",
        about: "8 layers of 512, 16,384 entries",
        config: r#"{"vocab_size": 16384, "d_model": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "d_head": 64, "d_ff": 1408,
                    "context_tokens": 2560}"#,
    },
    Shape {
        name: "qwen2.5-coder-0.5b",
        about: "24 layers of 896, 151,936 entries",
        config: r#"{"vocab_size": 151936, "d_model": 896, "n_layers": 24, "n_heads": 14, "n_kv_heads": 2, "d_head": 64, "d_ff": 4864,
                    "qkv_bias": true, "rope_theta": 1000000.0, "context_tokens": 2560}"#,
    },
];

/// What is measured.
pub struct Subject {
    pub name: String,
    lm: CodeLm,
    tokenizer: Tokenizer,
    language: Option<String>,
}

/// A file for llama.cpp, removed when it is dropped.
pub(super) struct Exported {
    pub(super) path: PathBuf,
}

impl Subject {
    /// Random weights; the tokenizer is that of a model, or of the one in this program, whose entries are as good as any.
    ///
    /// # Errors
    /// No memory; a file that is no model; a program without one.
    pub fn random(shape: &Shape, model: Option<&Path>) -> Result<Subject> {
        let tokenizer = load_bundle(model).map_err(anyhow::Error::msg)?.tokenizer;
        let config: ModelConfig = serde_json::from_str(shape.config).context(shape.name)?;
        let lm = CodeLm::init(&config, 1, &Device::Cpu)?;
        let name = format!("random weights, {} ({})", shape.name, shape.about);
        Ok(Subject { name, lm, tokenizer, language: None })
    }

    /// A model of ours, or the one in this program, with the experts of a language.
    ///
    /// # Errors
    /// A file that is no model; a language that it does not have.
    pub fn load(path: Option<&Path>, language: Option<&str>) -> Result<Subject> {
        let bundle = load_bundle(path).map_err(anyhow::Error::msg)?;
        let known = bundle.lm.config().languages.join(", ");
        if let Some(language) = language {
            let is_known = bundle.lm.config().languages.iter().any(|name| name == language);
            ensure!(is_known, "--language {language}: expected one of {known}");
        }
        let lm = if bundle.lm.config().is_plain() { bundle.lm } else { bundle.lm.materialized()? };
        let language = language.map(str::to_owned);
        Ok(Subject { name: bundle.info.name, lm, tokenizer: bundle.tokenizer, language })
    }

    pub(super) fn lm(&self) -> &CodeLm {
        &self.lm
    }

    pub(super) fn context_tokens(&self) -> usize {
        self.lm.config().context_tokens
    }

    pub(super) fn language(&self) -> u32 {
        self.lm.config().language_index(self.language.as_deref())
    }

    /// Tokens without a meaning, of all the vocabulary.
    pub(super) fn ids(&self, n: usize) -> Vec<u32> {
        let n_ids = self.tokenizer.vocab_size().min(self.lm.config().vocab_size).max(1);
        (0..n).map(|i| (i * 7919 % n_ids) as u32).collect()
    }

    /// Of the very weights that [`Subject::export`] writes, tables of which a token reads a row included.
    pub(super) fn decoder(&self, weights: Weights) -> Result<Arc<Decoder>> {
        let source = llama::weights(&self.lm, weights.format())?;
        Ok(Arc::new(Decoder::new(self.lm.config(), Arc::new(source), Simd::best())?))
    }

    pub(super) fn export(&self, weights: Weights) -> Result<Exported> {
        let (language, format) = (self.language.as_deref(), weights.format());
        let bytes = llama::to_bytes(&self.lm, &self.tokenizer, "bench", language, format)
            .context("for llama.cpp (--shape has models that it can run)")?;
        let name = format!("multicoder-bench-{}-{}.gguf", std::process::id(), weights.name());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        Ok(Exported { path })
    }

    /// Weights that a token is multiplied by, and those of them that make its logits.
    pub(super) fn multiplied(&self) -> (f64, f64) {
        let config = self.lm.config();
        let head = config.vocab_size * config.d_model;
        let untied = if config.tie_embeddings { 0 } else { head };
        ((config.n_active_parameters() - untied) as f64, head as f64)
    }

    /// Gigabytes of weights that a token is multiplied by.
    pub(super) fn gb_per_token(&self, weights: Weights) -> f64 {
        self.multiplied().0 * weights.bits() / 8e9
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // Whoever cleans temporary files may have been faster.
        let _ = std::fs::remove_file(&self.path);
    }
}
