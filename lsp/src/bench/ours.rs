//! Our own decoder.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use multicoder_model::decoder::Decoder;
use multicoder_model::{Computed, Sequence, prefill};

use super::{Answer, Program, Request};

pub(super) struct Ours {
    decoder: Arc<Decoder>,
    computed: Computed,
    language: u32,
}

impl Ours {
    pub(super) fn new(decoder: Arc<Decoder>, threads: usize, language: u32) -> Ours {
        let computed = Computed::new(decoder.config(), threads);
        Ours { decoder, computed, language }
    }
}

impl Program for Ours {
    fn answer(&mut self, request: Request) -> Result<Answer> {
        if !request.is_cached {
            self.computed.clear();
        }
        let start = Instant::now();
        let mut sequence = self.computed.of(&self.decoder);
        let (kept, mut logits) = prefill(&mut sequence, request.ids, self.language, &|| false)?;
        let mut ids = vec![likeliest(&logits)];
        let read = Instant::now();
        while ids.len() < request.n_new {
            logits = sequence.next(&ids[ids.len() - 1..], self.language, &|| false)?;
            ids.push(likeliest(&logits));
        }
        Ok(Answer {
            prompt_tokens: request.ids.len() - kept,
            prompt_s: (read - start).as_secs_f64(),
            written_tokens: ids.len(),
            written_s: read.elapsed().as_secs_f64(),
            elapsed_s: start.elapsed().as_secs_f64(),
            ids,
        })
    }
}

/// The id of the largest logit, the first of equal ones. Shape of the logits: `V`.
fn likeliest(logits: &[f32]) -> u32 {
    let larger = |a: (usize, f32), b: (usize, f32)| if b.1 > a.1 { b } else { a };
    logits.iter().copied().enumerate().reduce(larger).map_or(0, |(id, _)| id as u32)
}
