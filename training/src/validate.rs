//! Validation loss during a run: a fixed set of plain sequences a language, in nats a token and bits a byte.

use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::Device;
use multicoder_model::{CodeLm, Tokenizer};

use crate::config::{DataConfig, RunConfig};
use crate::data::packer::{Cursor, IGNORE_ID, PackOptions, Packer, Sequence};
use crate::data::texts::Texts;
use crate::parallel::Mesh;
use crate::step::to_batch;

/// The validation sequences of a run, made once.
pub struct ValidationSet {
    languages: Vec<LanguageSet>,
    micro_batch_sequences: usize,
    language_indices: Vec<u32>,
    document_mask: bool,
    device: Device,
}

struct LanguageSet {
    name: String,
    sequences: Vec<Sequence>,
    n_tokens: usize,
    n_bytes: usize,
}

impl ValidationSet {
    /// Packs the first sequences of `valid/`, without fill in the middle, snippets and dropout, and with language tokens. Independent of the run's seed,
    /// so that runs can be compared.
    ///
    /// # Errors
    /// Missing or broken shards.
    pub fn load(config: &RunConfig, tokenizer: &Arc<Tokenizer>, indices: &[u32], device: &Device) -> Result<Self> {
        let data = DataConfig {
            fim_frac: 0.0,
            snippet_frac: 0.0,
            tag_dropout_frac: 0.0,
            expert_dropout_frac: 0.0,
            ..config.data.clone()
        };
        let texts = Texts::open(&data, "valid", tokenizer);
        let texts = Arc::new(texts.context("validation (eval.every_steps = 0 turns it off)")?);
        let options = PackOptions { data, seed: 0, ..PackOptions::of(config) };
        let mut packer = Packer::new(texts.clone(), tokenizer.clone(), options, Cursor::start(&texts))?;
        let mut languages = Vec::new();
        for (idx, language) in texts.languages.iter().enumerate().filter(|(_, texts)| texts.n_bytes() > 0) {
            let mut set = LanguageSet { name: language.name.clone(), sequences: vec![], n_tokens: 0, n_bytes: 0 };
            while set.sequences.len() < config.eval.sequences_per_language {
                let sequence = packer.sequence_of(idx)?;
                if packer.cursor().languages[idx].epoch > 0 && !set.sequences.is_empty() {
                    break;
                }
                let counted = sequence.y_L.iter().filter(|&&id| id != IGNORE_ID);
                set.n_bytes += counted.map(|&id| tokenizer.bytes_of(id).len()).sum::<usize>();
                set.n_tokens += sequence.n_counted();
                set.sequences.push(sequence);
            }
            languages.push(set);
        }
        let micro_batch_sequences = config.micro_batch_sequences();
        let (language_indices, document_mask) = (indices.to_vec(), config.data.document_mask);
        Ok(Self { languages, micro_batch_sequences, language_indices, document_mask, device: device.clone() })
    }

    /// `loss` and `bits_per_byte`, macro averages over languages, then `loss/NAME` and `bits_per_byte/NAME`. The ranks take turns with
    /// the micro-batches; `lm` must be whole on each.
    pub fn measure(&self, lm: &CodeLm, mesh: &Mesh) -> Result<Vec<(String, f64)>> {
        let mut values = vec![("loss".to_owned(), 0.0), ("bits_per_byte".to_owned(), 0.0)];
        let mut turn = (0..mesh.world()).cycle();
        let mut nll_sums = vec![0.0; self.languages.len()];
        for (nll_sum, set) in nll_sums.iter_mut().zip(&self.languages) {
            for sequences in set.sequences.chunks(self.micro_batch_sequences) {
                if turn.next() == Some(mesh.rank()) {
                    let batch = to_batch(sequences, &self.language_indices, self.document_mask, &self.device)?;
                    *nll_sum += lm.scores(&batch)?.nll_N.iter().map(|&nll| f64::from(nll)).sum::<f64>();
                }
            }
        }
        for (set, nll_sum) in self.languages.iter().zip(mesh.sum(&nll_sums)?) {
            let loss = nll_sum / set.n_tokens.max(1) as f64;
            let bits_per_byte = nll_sum / std::f64::consts::LN_2 / set.n_bytes.max(1) as f64;
            let n_languages = self.languages.len() as f64;
            values[0].1 += loss / n_languages;
            values[1].1 += bits_per_byte / n_languages;
            values.push((format!("loss/{}", set.name), loss));
            values.push((format!("bits_per_byte/{}", set.name), bits_per_byte));
        }
        Ok(values)
    }
}
