//! Batches for the loop: a thread packs the next one while the current one is trained on; the cursor stays exact all the same.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use multicoder_model::Tokenizer;

use super::packer::{Cursor, Packer, Sequence, language_probs};
use super::texts::Texts;
use crate::config::RunConfig;

/// The sequences of one optimizer step.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Rows, to be split into micro-batches.
    pub sequences: Vec<Sequence>,
    /// Targets that count, in all rows.
    pub n_counted: usize,
    /// Where the data stands after this batch.
    cursor_after: Cursor,
}

/// Deals batches in an order that seed and cursor decide.
pub struct Loader {
    texts: Arc<Texts>,
    tokenizer: Arc<Tokenizer>,
    config: RunConfig,
    cursor: Cursor,
    ahead: Option<Ahead>,
}

/// The packing thread and its channel, which holds nothing: the thread has one batch ready and waits.
struct Ahead {
    batches: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Reads the training split into memory and stands at its start.
    ///
    /// # Errors
    /// Missing or broken shards, or no text in any of the languages.
    pub fn open(config: &RunConfig, tokenizer: &Arc<Tokenizer>) -> Result<Loader> {
        let data = &config.data;
        let texts = Texts::load(Path::new(&data.shards), "train", &data.languages, tokenizer, data.window_tokens)?;
        let cursor = Cursor::start(&texts);
        Ok(Loader { texts: Arc::new(texts), tokenizer: tokenizer.clone(), config: config.clone(), cursor, ahead: None })
    }

    /// The texts that batches are made of.
    pub fn texts(&self) -> &Texts {
        &self.texts
    }

    /// Probability of each language, in the order of the texts.
    pub fn language_probs(&self) -> Vec<f64> {
        language_probs(&self.texts, self.config.data.language_temperature)
    }

    /// Where the next batch starts: the batches already handed out are behind it, the one prepared ahead is not.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Continues at `cursor`, which was taken over texts of the given fingerprint.
    ///
    /// # Errors
    /// The texts are not those that the cursor was taken over.
    pub fn seek(&mut self, cursor: Cursor, fingerprint: u64) -> Result<()> {
        ensure!(
            fingerprint == self.texts.fingerprint && cursor.languages.len() == self.texts.languages.len(),
            "{}: the training text is not that of the checkpoint (fingerprint {:016x}, expected {fingerprint:016x}); \
             resume with the same shards, tokenizer and data settings",
            self.config.data.shards,
            self.texts.fingerprint
        );
        self.ahead = None;
        self.cursor = cursor;
        Ok(())
    }

    /// The next batch.
    pub fn next_batch(&mut self) -> Result<Batch> {
        if self.ahead.is_none() {
            self.ahead = Some(self.start()?);
        }
        let batches = self.ahead.as_ref().and_then(|ahead| ahead.batches.as_ref());
        let batch = batches.and_then(|batches| batches.recv().ok());
        let batch = batch.ok_or_else(|| anyhow!("the packing thread ended before its time"))??;
        self.cursor = batch.cursor_after.clone();
        Ok(batch)
    }

    fn start(&self) -> Result<Ahead> {
        let data = &self.config.data;
        let (texts, tokenizer) = (self.texts.clone(), self.tokenizer.clone());
        let packer = Packer::new(texts, tokenizer, data, self.config.seed, self.cursor.clone())?;
        let n_sequences = self.config.batch_sequences();
        let (sender, batches) = sync_channel(0);
        let thread = std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || pack(packer, n_sequences, &sender))
            .context("cannot start the packing thread")?;
        Ok(Ahead { batches: Some(batches), thread: Some(thread) })
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // Without a receiver the thread's next send fails, which ends it.
        drop(self.batches.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has already said so on standard error.
            let _ = thread.join();
        }
    }
}

fn pack(mut packer: Packer, n_sequences: usize, sender: &SyncSender<Result<Batch>>) {
    loop {
        let batch = next_batch(&mut packer, n_sequences);
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

fn next_batch(packer: &mut Packer, n_sequences: usize) -> Result<Batch> {
    let sequences: Vec<Sequence> = (0..n_sequences).map(|_| packer.next_sequence()).collect::<Result<_>>()?;
    let n_counted = sequences.iter().map(Sequence::n_counted).sum();
    Ok(Batch { sequences, n_counted, cursor_after: packer.cursor().clone() })
}
