//! The head: logits of the whole vocabulary, or only of what a language uses and of what stands in the text. A row has the same bits in
//! both.

use std::sync::OnceLock;

use super::crew::Crew;
use super::kernel::Simd;
use super::network::{ByTile, copy_row, products};
use super::packed::{Packed, ROWS};
use super::quantized::Quantized;
use crate::config::ModelConfig;
use crate::vocabulary::VocabularyFilter;

/// The matrix that makes logits of the residual stream.
pub(super) struct Head {
    whole: Packed,
    /// By language of the model; none uses all.
    used: Vec<Option<Used>>,
}

/// What a language uses.
struct Used {
    ids: Vec<u32>,
    is_used: Vec<bool>,
    /// Picked when the language is first asked for.
    rows: OnceLock<Packed>,
}

impl Head {
    pub(super) fn new(whole: Packed) -> Head {
        Head { whole, used: Vec::new() }
    }

    /// Has the languages of `filter` use what it says alone.
    pub(super) fn set_filter(&mut self, config: &ModelConfig, filter: &VocabularyFilter) {
        self.used = Vec::new();
        self.used.resize_with(config.languages.len(), || None);
        for (language, ids) in filter.languages() {
            if let Some(slot) = self.used.get_mut(config.language_index(Some(language)) as usize) {
                let mut is_used = vec![false; config.vocab_size];
                ids.iter().for_each(|&id| is_used[id as usize] = true);
                *slot = Some(Used { ids: ids.to_vec(), is_used, rows: OnceLock::new() });
            }
        }
    }

    /// The matrix that its input is multiplied by.
    pub(super) fn first(&self) -> &Packed {
        &self.whole
    }

    /// Logits of each row of `x`, squeezed by `cap` if it is positive: minus infinity for entries that neither `language` uses nor one of
    /// `texts` has. Shape: `NV`.
    pub(super) fn run(
        &self,
        (crew, simd): (&mut Crew, Simd),
        x: &Quantized,
        (language, texts): (u32, [&[u32]; 2]),
        [y, y_in_text]: [&mut ByTile; 2],
        (cap, logits_NV): (f32, &mut [f32]),
    ) {
        let n = x.n_rows();
        let rows = logits_NV.chunks_exact_mut(logits_NV.len() / n).enumerate();
        let squeeze = |z: &mut f32| *z = cap * (*z / cap).tanh();
        let Some(used) = self.used.get(language as usize).and_then(Option::as_ref) else {
            products(crew, [(x, &self.whole)], [y], simd);
            for (row, logits_V) in rows {
                copy_row(y, (row, n), logits_V);
                if cap > 0.0 {
                    logits_V.iter_mut().for_each(squeeze);
                }
            }
            return;
        };
        let in_text = used.others(texts);
        let own = used.rows.get_or_init(|| self.whole.pick(&used.ids));
        products(crew, [(x, own), (x, &self.whole.pick(&in_text))], [y, y_in_text], simd);
        for (row, logits_V) in rows {
            logits_V.fill(f32::NEG_INFINITY);
            for (ids, by_tile) in [(&used.ids, &*y), (&in_text, &*y_in_text)] {
                for (ids, tile) in ids.chunks(ROWS).zip(by_tile.chunks_exact(n * ROWS)) {
                    for (&id, z) in ids.iter().zip(&tile[row * ROWS..]) {
                        logits_V[id as usize] = *z;
                        if cap > 0.0 {
                            squeeze(&mut logits_V[id as usize]);
                        }
                    }
                }
            }
        }
    }
}

impl Used {
    /// What stands in `texts` and is not used otherwise, ascending.
    fn others(&self, texts: [&[u32]; 2]) -> Vec<u32> {
        let mut ids: Vec<u32> = texts.into_iter().flatten().copied().filter(|&id| !self.is_used[id as usize]).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
