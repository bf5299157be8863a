//! The baseline that a trained model has to beat: interpolated modified Kneser-Ney n-grams and an in-file cache.
//!
//! Over the same tokens and the same training split as the model. One model per language and one over all languages are
//! mixed, then the cache of the file so far is mixed in; the weights are fitted by expectation maximisation on the valid
//! split, per bucket of matched context lengths. No counts are cut off. Chen and Goodman 1999, *An empirical study of
//! smoothing techniques for language modeling*; Hellendoorn and Devanbu 2017 for caches on source text.

pub mod cache;
pub mod kneser_ney;
pub mod line;
pub mod mixture;
pub mod trie;

pub use cache::FileCache;
pub use kneser_ney::{KneserNey, State};
pub use line::{complete_line, vocabulary_by_bytes};
pub use mixture::{Mixture, Predictor, Weights};
pub use trie::{Documents, Trie};
