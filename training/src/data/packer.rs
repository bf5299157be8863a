//! Sequences out of windows: each of one language, filled with successive pieces, deterministic from a seed and a cursor.

#![allow(non_snake_case)]

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use multicoder_model::Tokenizer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::piece::{Ask, Maker, Piece};
use super::texts::{LanguageTexts, Texts};
use crate::config::{DataConfig, RunConfig};
use crate::parallel::Mode;
use crate::rng::Rng;

pub use super::piece::{NO_LANGUAGE, ROW_LANGUAGE};

/// Target that does not count in the loss.
pub const IGNORE_ID: u32 = u32::MAX;
/// A rest of a sequence that is shorter than this is padding: no piece worth learning from fits.
const MIN_PIECE_TOKENS: usize = 24;
/// The shortest fill-in-the-middle piece that is aimed at.
const SHORTEST_FIM_TOKENS: usize = 64;
/// Tokens that a plain piece needs besides its text: the language's, and the end of the text.
const FRAME_TOKENS: usize = 2;
/// The same of a fill-in-the-middle piece, with what its cut line may grow by when both halves are encoded each for itself.
const FIM_FRAME_TOKENS: usize = 16;

/// Where the stream of one language stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanguageCursor {
    /// Passes over the language's text that are complete.
    pub epoch: u64,
    /// Windows of this epoch's order that are used up.
    pub index: u64,
    /// Tokens of the next window that are used up.
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

    /// Passes over the text of each language so far: 1.37 is once, and 37 % of its windows a second time.
    pub fn epochs(&self, texts: &Texts) -> Vec<f64> {
        let epochs = |(cursor, texts): (&LanguageCursor, &LanguageTexts)| {
            cursor.epoch as f64 + cursor.index as f64 / texts.windows.len().max(1) as f64
        };
        self.languages.iter().zip(&texts.languages).map(epochs).collect()
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
    /// Index into [`Texts::languages`] of each input's language, [`ROW_LANGUAGE`] where it is that of the row, [`NO_LANGUAGE`] for none.
    pub language_L: Vec<u32>,
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
        let (x_L, y_L, start_L, language_L) = (vec![0; l], vec![IGNORE_ID; l], vec![0; l], vec![ROW_LANGUAGE; l]);
        Sequence { x_L, y_L, start_L, language_L, language_idx: self.language_idx }
    }
}

/// What decides the sequences besides the texts.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// How pieces are cut and packed.
    pub data: DataConfig,
    /// Of all random draws.
    pub seed: u64,
    /// Whether regions of another language inside a text are that language's.
    pub with_regions: bool,
    /// Sequences of a step.
    pub batch_sequences: usize,
}

impl PackOptions {
    /// Those of the training split of a run.
    pub fn of(config: &RunConfig) -> PackOptions {
        // A rank that owns languages has only their experts.
        let with_regions = config.parallel.mode != Mode::LanguageOwned;
        PackOptions {
            data: config.data.clone(),
            seed: config.seed,
            with_regions,
            batch_sequences: config.batch_sequences(),
        }
    }
}

/// Makes sequences from texts. Its [`Cursor`] is its only changing state; the orders are derived from it.
pub struct Packer {
    source: Source,
    probs: Vec<f64>,
    /// The first sequence that may be of each language.
    first_of_language: Vec<u64>,
    /// Sequences made so far.
    sequence: u64,
    streams: Vec<Stream>,
}

/// What sequences are made of.
struct Source {
    texts: Arc<Texts>,
    tokenizer: Arc<Tokenizer>,
    options: PackOptions,
}

/// The text of one language, piece after piece. What one stream gives does not depend on the others.
struct Stream {
    language_idx: usize,
    cursor: LanguageCursor,
    /// Order of the windows in an epoch, the current one.
    order: Option<(u64, Vec<u32>)>,
}

impl Packer {
    /// A packer that continues at `cursor`.
    ///
    /// # Errors
    /// A cursor that does not fit the texts.
    pub fn new(texts: Arc<Texts>, tokenizer: Arc<Tokenizer>, options: PackOptions, cursor: Cursor) -> Result<Packer> {
        ensure!(
            cursor.languages.len() == texts.languages.len(),
            "data cursor: it has {} languages, the shards have {}",
            cursor.languages.len(),
            texts.languages.len()
        );
        let probs = language_probs(&texts, options.data.language_temperature);
        let first_of_language = first_of_language(&texts, &options, &probs)?;
        let stream = |(language_idx, cursor)| Stream { language_idx, cursor, order: None };
        let streams = cursor.languages.into_iter().enumerate().map(stream).collect();
        let source = Source { texts, tokenizer, options };
        Ok(Packer { source, probs, first_of_language, sequence: cursor.sequence, streams })
    }

    /// Where the next sequence starts.
    pub fn cursor(&self) -> Cursor {
        let languages = self.streams.iter().map(|stream| stream.cursor.clone()).collect();
        Cursor { sequence: self.sequence, languages }
    }

    /// The next `n` sequences, their languages drawn by temperature sampling; those of one language are made one after the other, the
    /// languages at the same time.
    ///
    /// # Errors
    /// A text that cannot be encoded, or tokens that are damaged.
    pub fn next_sequences(&mut self, n: usize) -> Result<Vec<Sequence>> {
        let mut turns: Vec<Vec<u64>> = vec![Vec::new(); self.streams.len()];
        for number in self.sequence..self.sequence + n as u64 {
            turns[self.draw_language(number)].push(number);
        }
        self.sequence += n as u64;
        let source = &self.source;
        let make = |(stream, numbers): (&mut Stream, Vec<u64>)| {
            let sequence = |number: u64| Ok((number, stream.fill(source, number)?));
            numbers.into_iter().map(sequence).collect::<Result<Vec<_>>>()
        };
        let made: Vec<_> = self.streams.par_iter_mut().zip(turns).map(make).collect::<Result<_>>()?;
        let mut made: Vec<(u64, Sequence)> = made.into_iter().flatten().collect();
        made.sort_by_key(|(number, _)| *number);
        Ok(made.into_iter().map(|(_, sequence)| sequence).collect())
    }

    /// The language of a sequence. Multiples of the golden ratio instead of independent draws: the same shares, but a batch of
    /// a few sequences holds as many different languages as it can, and no language waits long for its turn.
    fn draw_language(&self, number: u64) -> usize {
        let offset = Rng::keyed(self.source.options.seed, "language", &[]).next_u64();
        let point = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(offset);
        let open = |idx: &usize| self.probs[*idx] > 0.0 && number >= self.first_of_language[*idx];
        let share: f64 = (0..self.probs.len()).filter(open).map(|idx| self.probs[idx]).sum();
        let mut left = (point >> 11) as f64 / (1u64 << 53) as f64 * share;
        let last = (0..self.probs.len()).rev().find(open).unwrap_or(0);
        for idx in (0..last).filter(open) {
            if left < self.probs[idx] {
                return idx;
            }
            left -= self.probs[idx];
        }
        last
    }

    /// The next sequence of the given language, which must have windows.
    ///
    /// # Errors
    /// As of [`Packer::next_sequences`].
    pub fn sequence_of(&mut self, language_idx: usize) -> Result<Sequence> {
        self.sequence += 1;
        self.streams[language_idx].fill(&self.source, self.sequence - 1)
    }
}

impl Stream {
    /// The sequence of the given number.
    fn fill(&mut self, source: &Source, number: u64) -> Result<Sequence> {
        let mut rng = Rng::keyed(source.options.seed, "sequence", &[number]);
        let n_tokens = source.options.data.sequence_tokens + 1;
        let mut all = Piece::default();
        let mut start_L = Vec::with_capacity(n_tokens);
        while all.ids.is_empty() || n_tokens - all.ids.len() >= MIN_PIECE_TOKENS {
            let room = n_tokens - all.ids.len();
            let mut piece = self.next_piece(source, room, &mut rng)?;
            piece.truncate(room);
            start_L.resize(all.ids.len() + piece.ids.len(), all.ids.len() as u32);
            all.append(piece);
        }
        start_L.resize(n_tokens, all.ids.len() as u32);
        all.pad(n_tokens, source.tokenizer.special().end_of_text);
        let target = |idx: usize| if all.is_counted[idx] { all.ids[idx] } else { IGNORE_ID };
        let y_L = (1..n_tokens).map(target).collect();
        start_L.pop();
        all.truncate(n_tokens - 1);
        Ok(Sequence { x_L: all.ids, y_L, start_L, language_L: all.language, language_idx: self.language_idx })
    }

    /// Takes text for at most `room` tokens off the stream and makes a piece of it.
    fn next_piece(&mut self, source: &Source, room: usize, rng: &mut Rng) -> Result<Piece> {
        let Source { texts, tokenizer, options: PackOptions { data, seed, with_regions, .. } } = source;
        let own = &texts.languages[self.language_idx];
        let window = own.windows[self.window_idx(own, *seed)];
        let rest = window.rest(self.cursor.offset);
        let with_tag = !rng.chance(data.tag_dropout_frac);
        let is_fim = rng.chance(data.fim_frac);
        // At most a quarter of the sequence; what is left of it goes to text by half at least.
        let snippet_tokens = if rng.chance(data.snippet_frac) { (data.sequence_tokens / 4).min(room / 2) } else { 0 };
        let wanted = if is_fim { fim_tokens(room, rng) } else { room };
        let frame_tokens = if is_fim { FIM_FRAME_TOKENS } else { FRAME_TOKENS };
        let max_tokens = wanted.min(room - snippet_tokens).saturating_sub(frame_tokens);
        let n_tokens = own.tokens.line_cut(&texts.vocabulary, rest.clone(), max_tokens);
        let is_whole = n_tokens == rest.len();
        let ask = Ask {
            document: window.document as usize,
            tokens: rest.start..rest.start + n_tokens,
            ends_document: is_whole && own.ends_document(window),
            with_tag,
            is_fim,
            snippet_tokens,
            room,
        };
        let (language_idx, config, with_regions) = (self.language_idx, data, *with_regions);
        let mut piece = Maker { texts, language_idx, tokenizer, config, with_regions }.piece(&ask, rng)?;
        if data.drops_experts_of(&own.name) && rng.chance(data.expert_dropout_frac) {
            piece.drop_language();
        }
        match is_whole {
            true => (self.cursor.index, self.cursor.offset) = (self.cursor.index + 1, 0),
            false => self.cursor.offset += n_tokens as u64,
        }
        Ok(piece)
    }

    /// The window at the cursor; starts the next epoch where one ends.
    fn window_idx(&mut self, own: &LanguageTexts, seed: u64) -> usize {
        let cursor = &mut self.cursor;
        if cursor.index as usize >= own.windows.len() {
            *cursor = LanguageCursor { epoch: cursor.epoch + 1, index: 0, offset: 0 };
        }
        if self.order.as_ref().is_none_or(|(epoch, _)| *epoch != cursor.epoch) {
            let key = [xxh3_64(own.name.as_bytes()), cursor.epoch];
            self.order = Some((cursor.epoch, Rng::keyed(seed, "epoch", &key).permutation(own.windows.len())));
        }
        self.order.as_ref().map_or(0, |(_, order)| order[cursor.index as usize] as usize)
    }
}

/// Length of a fill-in-the-middle piece, log-uniform up to `room`. The suffix helps most near the end of the middle: many short pieces
/// teach its use, while the long ones keep the prompt of a long file familiar.
fn fim_tokens(room: usize, rng: &mut Rng) -> usize {
    let shortest = SHORTEST_FIM_TOKENS.min(room) as f64;
    (shortest * (room as f64 / shortest).powf(rng.uniform())) as usize
}

/// Probability of each language: bytes^(1/T), normalised; 0 for a language without text.
pub fn language_probs(texts: &Texts, temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = texts.languages.iter().map(|texts| balanced_weight(texts.n_bytes(), temperature)).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total.max(f64::MIN_POSITIVE)).collect()
}

/// By language, the first sequence that may be of it.
fn first_of_language(texts: &Texts, options: &PackOptions, probs: &[f64]) -> Result<Vec<u64>> {
    let curriculum = &options.data.curriculum;
    let names = || texts.languages.iter().map(|texts| &texts.name);
    if let Some(unknown) = curriculum.keys().find(|name| !names().any(|known| known == *name)) {
        let known = names().cloned().collect::<Vec<_>>().join(", ");
        bail!("data.curriculum: {unknown}: expected languages of the run: {known}");
    }
    let step = |name| curriculum.get(name).copied().unwrap_or(0);
    let first: Vec<u64> = names().map(|name| step(name) * options.batch_sequences as u64).collect();
    let begins = first.iter().zip(probs).any(|(first, prob)| *first == 0 && *prob > 0.0);
    ensure!(begins, "data.curriculum: expected a language with text that is drawn from step 0 on");
    Ok(first)
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
