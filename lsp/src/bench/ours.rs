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
        answer(&mut self.computed.of(&self.decoder), self.language, (request.ids, request.n_new), &|| ())
    }
}

/// Continues the ids greedily by so many tokens, and says when they are read.
pub(super) fn answer(
    sequence: &mut dyn Sequence,
    language: u32,
    (ids, n_new): (&[u32], usize),
    is_read: &dyn Fn(),
) -> Result<Answer> {
    let start = Instant::now();
    let (kept, mut logits) = prefill(sequence, ids, language, &|| false)?;
    let prompt_tokens = ids.len() - kept;
    let mut ids = vec![likeliest(&logits)];
    let read = Instant::now();
    is_read();
    while ids.len() < n_new {
        logits = sequence.next(&ids[ids.len() - 1..], language, &|| false)?;
        ids.push(likeliest(&logits));
    }
    Ok(Answer {
        prompt_tokens,
        prompt_s: (read - start).as_secs_f64(),
        written_tokens: ids.len(),
        written_s: read.elapsed().as_secs_f64(),
        elapsed_s: start.elapsed().as_secs_f64(),
        ids,
    })
}

/// The id of the largest logit, the first of equal ones. Shape of the logits: `V`.
fn likeliest(logits: &[f32]) -> u32 {
    let larger = |a: (usize, f32), b: (usize, f32)| if b.1 > a.1 { b } else { a };
    logits.iter().copied().enumerate().reduce(larger).map_or(0, |(id, _)| id as u32)
}
