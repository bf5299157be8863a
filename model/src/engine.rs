//! What continues texts for a model of tensors: the server's decoder where the model is on a CPU, else the tensors themselves.

use std::sync::Arc;

use crate::batching::Client;
use crate::cache::KvCache;
use crate::decoder::{Decoder, Floats, Format, Simd};
use crate::error::Result;
use crate::generate::{Sequence, TensorSequence};
use crate::lm::CodeLm;
use crate::served::{Computed, n_threads};

/// A model and what it has computed so far.
pub enum Engine<'a> {
    /// Weights and activations are rounded to eight bits, as in an editor.
    Packed(Box<(Decoder, Computed)>),
    /// On a GPU, by the tensor library.
    Tensors(&'a CodeLm, KvCache),
    /// On a GPU, by kernels of our own, together with others.
    Batched(Client),
}

impl<'a> Engine<'a> {
    /// # Errors
    /// No memory; a device that fails.
    pub fn of(lm: &'a CodeLm) -> Result<Engine<'a>> {
        if !lm.device().is_cpu() {
            return Ok(Engine::Tensors(lm, KvCache::new(lm.config(), lm.device())?));
        }
        let computed = Computed::new(lm.config(), n_threads());
        Ok(Engine::Packed(Box::new((rounded(lm)?, computed))))
    }

    /// What is to be continued.
    pub fn sequence(&mut self) -> Box<dyn Sequence + '_> {
        match self {
            Engine::Packed(own) => {
                let (decoder, computed) = &mut **own;
                Box::new(computed.of(decoder))
            }
            Engine::Tensors(lm, cache) => Box::new(TensorSequence { lm, cache }),
            Engine::Batched(client) => Box::new(client.sequence()),
        }
    }
}

/// A decoder of the weights of `lm`, rounded to eight bits.
///
/// # Errors
/// A device that fails.
pub fn rounded(lm: &CodeLm) -> Result<Decoder> {
    if !lm.config().is_plain() {
        return rounded(&lm.materialized()?);
    }
    Decoder::new(lm.config(), Arc::new(Floats::of(lm, Format::Q8)?), Simd::best())
}
