//! The decoder that serves: the model of [`crate::CodeLm`] on packed weights, with kernels of its own.
//!
//! Numbers of a token do not depend on how many tokens are computed with it: products of eight-bit integers are exact, and sums of floats
//! have an order that the matrix alone fixes. So a cache that is kept, a prompt that is cut elsewhere and tokens that are guessed and
//! verified together change no bit of an answer. Every instruction set gives the same bits, too.

mod attention;
mod cache;
mod crew;
mod gguf;
mod head;
mod kernel;
mod layer;
mod model;
mod network;
mod packed;
mod quantized;
mod shelf;
mod states;
#[cfg(test)]
mod tests;
mod weights;
mod worker;

pub use cache::DecoderCache;
pub use crew::Crew;
pub use gguf::{FileBytes, GgufWeights};
pub use kernel::{Simd, multiply};
pub use model::Decoder;
pub use packed::{COLS, Format, Packed, ROWS};
pub use quantized::Quantized;
pub use states::DecoderStates;
pub use weights::{Floats, WeightSource};
pub use worker::Worker;
