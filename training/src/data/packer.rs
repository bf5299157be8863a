//! Sequences out of windows: each of one language, filled with successive pieces, deterministic from a seed and a cursor.

#![allow(non_snake_case)]

use std::sync::Arc;

use anyhow::{Result, ensure};
use multicoder_model::{Tokenizer, fim};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::cut;
use super::texts::{LanguageTexts, Texts, line_cut};
use crate::config::DataConfig;
use crate::rng::Rng;

/// Target that does not count in the loss.
pub const IGNORE_ID: u32 = u32::MAX;
/// A rest of a sequence that is shorter than this is padding: no piece worth learning from fits.
const MIN_PIECE_TOKENS: usize = 24;
/// The shortest fill-in-the-middle piece that is aimed at.
const SHORTEST_FIM_TOKENS: usize = 64;
/// Tokens that a piece needs besides its text.
const FRAME_TOKENS: usize = 6;

/// Where the stream of one language stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanguageCursor {
    /// Passes over the language's text that are complete.
    pub epoch: u64,
    /// Windows of this epoch's order that are used up.
    pub index: u64,
    /// Bytes of the next window that are used up.
    pub offset: u64,
}

/// Where the data of a run stands: all that decides which sequences come next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Sequences made so far; keys the random draws of the next one.
    pub sequence: u64,
    /// One entry a language, in the order of [`Texts::languages`].
    pub languages: Vec<LanguageCursor>,
}

impl Cursor {
    /// The start of a run over `texts`.
    pub fn start(texts: &Texts) -> Cursor {
        Cursor { sequence: 0, languages: vec![LanguageCursor::default(); texts.languages.len()] }
    }
}

/// One row of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Input ids, L of them.
    pub x_L: Vec<u32>,
    /// The id after each input; [`IGNORE_ID`] where it does not count.
    pub y_L: Vec<u32>,
    /// Where the piece that each input belongs to begins: what attention may see with `data.document_mask`.
    pub start_L: Vec<u32>,
    /// Index into [`Texts::languages`].
    pub language_idx: usize,
}

impl Sequence {
    /// Targets that count.
    pub fn n_counted(&self) -> usize {
        self.y_L.iter().filter(|&&id| id != IGNORE_ID).count()
    }

    /// A sequence of the same length and language of which nothing counts.
    pub fn padding(&self) -> Sequence {
        let l = self.x_L.len();
        Sequence { x_L: vec![0; l], y_L: vec![IGNORE_ID; l], start_L: vec![0; l], language_idx: self.language_idx }
    }
}

/// Makes sequences from texts. Its [`Cursor`] is its only changing state; the orders are derived from it.
pub struct Packer {
    texts: Arc<Texts>,
    tokenizer: Arc<Tokenizer>,
    config: DataConfig,
    seed: u64,
    probs: Vec<f64>,
    cursor: Cursor,
    /// Order of the windows of each language in its current epoch.
    orders: Vec<Option<(u64, Vec<u32>)>>,
}

impl Packer {
    /// A packer that continues at `cursor`.
    ///
    /// # Errors
    /// A cursor that does not fit the texts.
    pub fn new(
        texts: Arc<Texts>,
        tokenizer: Arc<Tokenizer>,
        config: &DataConfig,
        seed: u64,
        cursor: Cursor,
    ) -> Result<Packer> {
        ensure!(
            cursor.languages.len() == texts.languages.len(),
            "data cursor: it has {} languages, the shards have {}",
            cursor.languages.len(),
            texts.languages.len()
        );
        let probs = language_probs(&texts, config.language_temperature);
        let orders = vec![None; texts.languages.len()];
        Ok(Packer { texts, tokenizer, config: config.clone(), seed, probs, cursor, orders })
    }

    /// Where the next sequence starts.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The next sequence of a language drawn by temperature sampling.
    pub fn next_sequence(&mut self) -> Result<Sequence> {
        let language_idx = self.draw_language();
        let mut rng = self.sequence_rng();
        self.fill(language_idx, &mut rng)
    }

    /// The language of the next sequence. Multiples of the golden ratio instead of independent draws: the same shares, but a batch of
    /// a few sequences holds as many different languages as it can, and no language waits long for its turn.
    fn draw_language(&self) -> usize {
        let offset = Rng::keyed(self.seed, "language", &[]).next_u64();
        let point = self.cursor.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(offset);
        let mut left = (point >> 11) as f64 / (1u64 << 53) as f64;
        let last = self.probs.iter().rposition(|prob| *prob > 0.0).unwrap_or(0);
        for (language_idx, prob) in self.probs[..last].iter().enumerate() {
            if left < *prob {
                return language_idx;
            }
            left -= prob;
        }
        last
    }

    /// The next sequence of the given language, which must have windows.
    pub fn sequence_of(&mut self, language_idx: usize) -> Result<Sequence> {
        let mut rng = self.sequence_rng();
        self.fill(language_idx, &mut rng)
    }

    fn sequence_rng(&mut self) -> Rng {
        let rng = Rng::keyed(self.seed, "sequence", &[self.cursor.sequence]);
        self.cursor.sequence += 1;
        rng
    }

    fn fill(&mut self, language_idx: usize, rng: &mut Rng) -> Result<Sequence> {
        let n_tokens = self.config.sequence_tokens + 1;
        let mut ids = Vec::with_capacity(n_tokens);
        let mut counted = Vec::with_capacity(n_tokens);
        let mut start_L = Vec::with_capacity(n_tokens);
        while ids.is_empty() || n_tokens - ids.len() >= MIN_PIECE_TOKENS {
            let mut piece = self.next_piece(language_idx, n_tokens - ids.len(), rng)?;
            piece.truncate(n_tokens - ids.len());
            counted.extend(self.counted(&piece));
            start_L.resize(ids.len() + piece.len(), ids.len() as u32);
            ids.extend(piece);
        }
        start_L.resize(n_tokens, ids.len() as u32);
        ids.resize(n_tokens, self.tokenizer.special().end_of_text);
        counted.resize(n_tokens, false);
        let target = |idx: usize| if counted[idx] { ids[idx] } else { IGNORE_ID };
        let y_L = (1..n_tokens).map(target).collect();
        ids.pop();
        start_L.pop();
        Ok(Sequence { x_L: ids, y_L, start_L, language_idx })
    }

    /// Takes text for at most `room` tokens off the language's stream and makes a piece of it.
    fn next_piece(&mut self, language_idx: usize, room: usize, rng: &mut Rng) -> Result<Vec<u32>> {
        let window_idx = self.window_idx(language_idx);
        let texts = &self.texts.languages[language_idx];
        let window = texts.windows[window_idx];
        let cursor = &mut self.cursor.languages[language_idx];
        let rest = texts.text(window, cursor.offset as usize);
        let with_tag = !rng.chance(self.config.tag_dropout_frac);
        let tag = with_tag.then_some(texts.name.as_str());
        let fim_piece = rng.chance(self.config.fim_frac);
        let wanted = if fim_piece { fim_tokens(room, rng) } else { room };
        let mut max_bytes = (wanted.saturating_sub(FRAME_TOKENS) as f64 * texts.bytes_per_token) as usize;
        for attempt in 0.. {
            let text = &rest[..line_cut(rest, max_bytes)];
            let whole = text.len() == rest.len();
            let cut = if fim_piece { fim_cut(text, texts, &self.config, rng) } else { None };
            let is_fim = cut.is_some();
            let mut ids = fim::sequence(&self.tokenizer, tag, &[], text, cut)?;
            let ends = is_fim || (whole && texts.ends_document(window));
            if !ends {
                // Text goes on after this piece: the end-of-text token would be a lie.
                ids.pop();
            }
            if ids.len() <= room || attempt == 3 {
                if whole {
                    *cursor = LanguageCursor { epoch: cursor.epoch, index: cursor.index + 1, offset: 0 };
                } else {
                    cursor.offset += text.len() as u64;
                }
                return Ok(ids);
            }
            max_bytes = text.len().min(max_bytes) * room * 9 / (ids.len() * 10);
        }
        unreachable!("the loop above returns at its fourth attempt")
    }

    /// The window at the cursor; starts the next epoch where one ends.
    fn window_idx(&mut self, language_idx: usize) -> usize {
        let texts = &self.texts.languages[language_idx];
        let cursor = &mut self.cursor.languages[language_idx];
        if cursor.index as usize >= texts.windows.len() {
            *cursor = LanguageCursor { epoch: cursor.epoch + 1, index: 0, offset: 0 };
        }
        let order = &mut self.orders[language_idx];
        if order.as_ref().is_none_or(|(epoch, _)| *epoch != cursor.epoch) {
            let key = [xxh3_64(texts.name.as_bytes()), cursor.epoch];
            *order = Some((cursor.epoch, Rng::keyed(self.seed, "epoch", &key).permutation(texts.windows.len())));
        }
        order.as_ref().map_or(0, |(_, order)| order[cursor.index as usize] as usize)
    }

    /// Which ids of a piece count as targets: text and the end of it, but no structure, whose place is not the model's to guess.
    fn counted(&self, piece: &[u32]) -> Vec<bool> {
        let special = self.tokenizer.special();
        let is_text = |id: u32| id == special.end_of_text || !self.tokenizer.bytes_of(id).is_empty();
        let middle = special.fim.and_then(|fim| piece.iter().position(|&id| id == fim.middle));
        let from = middle.filter(|_| !self.config.count_suffix).unwrap_or(0);
        piece.iter().enumerate().map(|(idx, &id)| idx >= from && is_text(id)).collect()
    }
}

/// Length of a fill-in-the-middle piece, log-uniform up to `room`. The suffix helps most near the end of the middle: many short pieces
/// teach its use, while the long ones keep the prompt of a long file familiar.
fn fim_tokens(room: usize, rng: &mut Rng) -> usize {
    let shortest = SHORTEST_FIM_TOKENS.min(room) as f64;
    (shortest * (room as f64 / shortest).powf(rng.uniform())) as usize
}

fn fim_cut(text: &str, texts: &LanguageTexts, config: &DataConfig, rng: &mut Rng) -> Option<std::ops::Range<usize>> {
    cut::suffix_start(text, texts.grammar, config.fim_suffix_max_frac, rng).map(|end| 0..end)
}

/// Probability of each language: bytes^(1/T), normalised; 0 for a language without text.
pub fn language_probs(texts: &Texts, temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = texts.languages.iter().map(|texts| balanced_weight(texts.n_bytes, temperature)).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total.max(f64::MIN_POSITIVE)).collect()
}

/// `n^(1/T)`, and 0 for 0: the unnormalised weight of temperature sampling (Devlin et al. 2019, multilingual BERT).
pub fn balanced_weight(n: usize, temperature: f64) -> f64 {
    if n == 0 { 0.0 } else { (n as f64).powf(1.0 / temperature) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fim_pieces_are_of_all_lengths_and_fit() {
        let mut rng = Rng::keyed(1, "lengths", &[]);
        let lengths: Vec<usize> = (0..1000).map(|_| fim_tokens(1024, &mut rng)).collect();
        assert!(lengths.iter().all(|length| (SHORTEST_FIM_TOKENS..=1024).contains(length)));
        let share = |from: usize, to: usize| lengths.iter().filter(|&&n| n >= from && n < to).count();
        // Each doubling holds a quarter of them.
        assert!([(64, 128), (128, 256), (256, 512), (512, 1025)].iter().all(|&(from, to)| share(from, to) > 200));
        assert_eq!(fim_tokens(24, &mut rng), 24);
    }
}
