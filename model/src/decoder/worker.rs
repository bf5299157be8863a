//! What a pass computes with, besides the model.

use super::attention::AttentionMemory;
use super::crew::Crew;
use super::network::{ByTile, Hidden};
use super::quantized::Quantized;

/// Threads and memory of passes, kept from one to the next.
pub struct Worker {
    pub(super) crew: Crew,
    /// The language of each token of a pass.
    pub(super) language_N: Vec<u32>,
    /// The residual stream, row by row.
    pub(super) x: Vec<f32>,
    /// The same normalized, or keys and values.
    pub(super) rows: Vec<f32>,
    pub(super) quantized: Quantized,
    pub(super) qkv: [ByTile; 3],
    pub(super) q: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) attention: AttentionMemory,
    /// Of the shared network, or of the only one, and of the expert beside it.
    pub(super) hidden: [Hidden; 2],
    pub(super) y: ByTile,
    pub(super) y_own: ByTile,
    /// Of the head, for entries that the language does not use.
    pub(super) y_in_text: ByTile,
    /// Entries of the vocabulary that are computed besides those that the language uses and those that stand in the text.
    pub wanted: Vec<u32>,
    /// Of the last pass, a row for each of the last tokens that were asked for. Shape: `NV`.
    pub logits: Vec<f32>,
}

impl Worker {
    /// With `n_threads` threads, the caller's among them.
    pub fn new(n_threads: usize) -> Worker {
        Worker {
            crew: Crew::new(n_threads),
            language_N: Vec::new(),
            x: Vec::new(),
            rows: Vec::new(),
            quantized: Quantized::default(),
            qkv: Default::default(),
            q: Vec::new(),
            attended: Vec::new(),
            attention: AttentionMemory::default(),
            hidden: Default::default(),
            y: Vec::new(),
            y_own: Vec::new(),
            y_in_text: Vec::new(),
            wanted: Vec::new(),
            logits: Vec::new(),
        }
    }
}
