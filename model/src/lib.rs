//! The model: tensors in, tensors out. No files but checkpoints, no clock, no network, no editor, no syntax trees.
//!
//! # The dimension key
//!
//! A tensor's name ends in `_` and the letters of its dimensions, in memory order (`x_BLD`, `probs_NE`). Checkpoint names do not.
//!
//! | letter | size | letter | size | letter | size |
//! |---|---|---|---|---|---|
//! | B | batch | L | positions | M | positions attended to |
//! | N | tokens, B·L | D | model width | H | query heads |
//! | G | key/value heads | K | head size | F | hidden width of a feed-forward network |
//! | E | experts | S | experts selected per token | A | assignments (token, expert) |
//! | V | vocabulary | C | capacity | J | experts on this rank |
//! | P | outputs of a projection, H·K or G·K | | | | |
#![allow(non_snake_case)]

pub mod config;
pub mod device;
pub mod gradients;
pub mod lm;

pub mod adapters;
mod attention;
mod block;
mod cache;
pub mod dispatch;
pub mod exchange;
pub mod experts;
mod moe;

pub mod draw;
mod methods;
pub mod modifier;
pub mod router;

pub mod ops;
mod params;
pub mod tape;

pub mod batching;
pub mod copy;
pub mod decoder;
pub mod engine;
pub mod fim;
pub mod generate;
pub mod tokenizer;

mod bundle;
pub mod checkpoint;
mod extract;
pub mod gguf;
pub mod llama;
mod materialize;
pub mod served;
pub mod speculate;
mod vocabulary;

mod error;

pub use batching::{Batching, Client};
pub use bundle::{Bundle, BundleInfo, Golden};
pub use cache::KvCache;
pub use config::{ModelConfig, MoeConfig, UNKNOWN_LANGUAGE};
pub use copy::CopyConfig;
pub use draw::{StepKey, mix};
pub use engine::Engine;
pub use error::{Error, Result};
pub use exchange::ExpertExchange;
pub use fim::{Prompt, PromptBudget, Snippet};
pub use generate::{Finish, GenerateOptions, Generated, Sequence, TensorSequence, generate, prefill};
pub use gradients::Gradients;
pub use lm::{Batch, CodeLm, IGNORE_ID};
pub use methods::document::table_markdown;
pub use modifier::ModifierConfig;
pub use params::Params;
pub use router::RouterConfig;
pub use served::{Computed, PackedSequence, Served};
pub use speculate::Elsewhere;
pub use tokenizer::Tokenizer;
pub use vocabulary::VocabularyFilter;
