//! Batches for the loop: a thread packs the next one while the current one is trained on; the cursor stays exact all the same.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use multicoder_model::Tokenizer;
use rayon::ThreadPool;

use super::packer::{Cursor, PackOptions, Packer, Sequence, language_probs};
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
    /// Opens the training split, tokenized at its first use, and stands at its start.
    ///
    /// # Errors
    /// Those of [`Texts::open`].
    pub fn open(config: &RunConfig, tokenizer: &Arc<Tokenizer>) -> Result<Loader> {
        let texts = Texts::open(&config.data, "train", tokenizer)?;
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

    /// Passes over the text of each language so far.
    pub fn epochs(&self) -> Vec<f64> {
        self.cursor.epochs(&self.texts)
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
        let (texts, tokenizer) = (self.texts.clone(), self.tokenizer.clone());
        let packer = Packer::new(texts, tokenizer, PackOptions::of(&self.config), self.cursor.clone())?;
        let n_sequences = self.config.batch_sequences();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads()).thread_name(|n| format!("packer {n}"));
        let pool = pool.build().context("cannot start the threads that pack")?;
        let (sender, batches) = sync_channel(0);
        let thread = std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || pack(packer, n_sequences, &pool, &sender))
            .context("cannot start the packing thread")?;
        Ok(Ahead { batches: Some(batches), thread: Some(thread) })
    }
}

/// Half of the cores: beside a GPU the others have little to do, and beside a step on the processor these mostly wait, with a batch ready.
/// They are not those of the training step: waiting for its own work, that would take up ours.
fn n_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get() / 2).clamp(1, 16)
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

fn pack(mut packer: Packer, n_sequences: usize, pool: &ThreadPool, sender: &SyncSender<Result<Batch>>) {
    loop {
        let batch = pool.install(|| next_batch(&mut packer, n_sequences));
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

fn next_batch(packer: &mut Packer, n_sequences: usize) -> Result<Batch> {
    let sequences = packer.next_sequences(n_sequences)?;
    let n_counted = sequences.iter().map(Sequence::n_counted).sum();
    Ok(Batch { sequences, n_counted, cursor_after: packer.cursor() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::data::packer::{IGNORE_ID, LanguageCursor, NO_LANGUAGE};
    use crate::data::shard::{Document, ShardWriter};
    use multicoder_model::tokenizer::TokenizerOptions;

    struct Corpus {
        _dir: tempfile::TempDir,
        config: RunConfig,
        tokenizer: Arc<Tokenizer>,
    }

    fn corpus(sets: &[&str]) -> Corpus {
        let dir = tempfile::tempdir().unwrap();
        let text = |language: &str, n: usize| {
            (0..20 + n % 9).map(|k| format!("{language} name_{n}_{k} = call({k}, größe)\n")).collect::<String>()
        };
        let mut texts = Vec::new();
        for (language, n_files) in [("lua", 4), ("python", 60)] {
            let mut writer = ShardWriter::create(dir.path(), "train", language).unwrap();
            for n in 0..n_files {
                let (text, language) = (text(language, n), language.to_owned());
                texts.push(text.clone());
                writer.push(Document { text, language, ..Document::default() }).unwrap();
            }
            writer.finish().unwrap();
        }
        let languages = vec!["lua".to_owned(), "python".to_owned()];
        let options = TokenizerOptions { vocab_size: 400, languages, min_frequency: 2, ..TokenizerOptions::default() };
        let tokenizer = Arc::new(Tokenizer::train(texts.iter(), &options).unwrap());
        let mut table = config::parse(config::preset("smoke").unwrap(), "smoke").unwrap();
        for set in sets {
            config::set(&mut table, set).unwrap();
        }
        let shards = format!("data.shards={}", dir.path().display());
        for set in [&shards, "data.languages=[\"lua\", \"python\"]", "model.languages=[\"lua\", \"python\"]"] {
            config::set(&mut table, set).unwrap();
        }
        Corpus { _dir: dir, config: config::resolve(&table, "smoke").unwrap(), tokenizer }
    }

    fn batches(loader: &mut Loader, n: usize) -> Vec<Vec<Sequence>> {
        (0..n).map(|_| loader.next_batch().unwrap().sequences).collect()
    }

    fn packer(corpus: &Corpus, loader: &Loader, start: Cursor) -> Packer {
        let options = PackOptions { seed: 1, ..PackOptions::of(&corpus.config) };
        Packer::new(loader.texts.clone(), corpus.tokenizer.clone(), options, start).unwrap()
    }

    #[test]
    fn a_cursor_continues_exactly_whatever_was_prepared_ahead() {
        let corpus = corpus(&[]);
        let mut unbroken = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let expected = batches(&mut unbroken, 8);
        let mut first = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        batches(&mut first, 3);
        let saved = serde_json::to_string(first.cursor()).unwrap();
        let mut second = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        second.seek(serde_json::from_str(&saved).unwrap(), first.texts().fingerprint).unwrap();
        assert_eq!(batches(&mut second, 5), expected[3..]);
        assert_eq!(second.cursor(), unbroken.cursor());
    }

    #[test]
    fn every_token_knows_where_its_piece_begins() {
        let corpus = corpus(&["data.window_tokens=40", "data.tag_dropout_frac=0.0"]);
        let mut loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let mut n_pieces = 0;
        for sequence in batches(&mut loader, 4).into_iter().flatten() {
            let language = &loader.texts().languages[sequence.language_idx].name;
            let tag = corpus.tokenizer.language_token(language).unwrap();
            assert_eq!((sequence.start_L.len(), sequence.start_L[0]), (sequence.x_L.len(), 0));
            for (l, &start) in sequence.start_L.iter().enumerate() {
                assert!(start as usize <= l && sequence.start_L[start as usize] == start, "{l}: {start}");
                // All but the padding at the end begin with the language, after the token of a fill-in-the-middle piece.
                let begins = &sequence.x_L[l..sequence.x_L.len().min(l + 2)];
                if start as usize == l && sequence.x_L[l..].contains(&tag) {
                    assert!(begins.contains(&tag), "piece at {l}: {begins:?}");
                    n_pieces += 1;
                }
            }
        }
        assert!(n_pieces > 100, "{n_pieces}");
    }

    #[test]
    fn a_third_of_the_pieces_begin_with_snippets_that_do_not_count() {
        let corpus = corpus(&[
            "data.sequence_tokens=256",
            "data.window_tokens=250",
            "data.tag_dropout_frac=0",
            "data.snippet_frac=0.33",
        ]);
        let mut loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let separator = corpus.tokenizer.special().file_sep.unwrap();
        let (mut n_pieces, mut n_with_snippets) = (0, 0);
        // The first piece of each sequence has room for them.
        for sequence in batches(&mut loader, 40).concat() {
            let end = sequence.start_L.iter().position(|&start| start > 0).unwrap_or(sequence.x_L.len());
            n_pieces += 1;
            let Some(last) = (0..end).rev().find(|&l| sequence.x_L[l] == separator) else { continue };
            n_with_snippets += 1;
            assert!(last <= 256 / 4, "{last}");
            assert!(sequence.y_L[..last].iter().all(|&target| target == IGNORE_ID));
        }
        let share = f64::from(n_with_snippets) / f64::from(n_pieces);
        assert!((share - 0.33).abs() < 0.08, "{n_with_snippets} of {n_pieces}");
    }

    #[test]
    fn pieces_of_the_named_languages_are_now_and_then_of_no_language() {
        let dropout = ["data.expert_dropout_frac=0.25", "data.expert_dropout_languages=[\"lua\"]"];
        let corpus = corpus(&dropout);
        let mut loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let (mut n_pieces, mut n_dropped) = (0, 0);
        for sequence in batches(&mut loader, 60).concat() {
            let is_lua = loader.texts().languages[sequence.language_idx].name == "lua";
            for (l, _) in sequence.start_L.iter().enumerate().filter(|(l, start)| **start as usize == *l) {
                let is_dropped = sequence.language_L[l] == NO_LANGUAGE;
                assert!(is_lua || !is_dropped);
                (n_pieces, n_dropped) = (n_pieces + usize::from(is_lua), n_dropped + usize::from(is_dropped));
            }
        }
        let share = n_dropped as f64 / n_pieces as f64;
        assert!((share - 0.25).abs() < 0.06, "{n_dropped} of {n_pieces}");
    }

    #[test]
    fn epochs_count_passes_and_their_parts() {
        let corpus = corpus(&[]);
        let mut loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        assert_eq!(loader.epochs(), [0.0, 0.0]);
        batches(&mut loader, 10);
        let (epochs, cursor) = (loader.epochs(), loader.cursor().clone());
        for (epochs, cursor) in epochs.iter().zip(&cursor.languages) {
            assert!((*epochs as u64 == cursor.epoch || epochs.fract() == 0.0) && *epochs > 0.0, "{epochs} {cursor:?}");
        }
        assert!(epochs[0] > epochs[1], "the smaller language is passed over more often: {epochs:?}");
    }

    #[test]
    fn another_corpus_is_refused() {
        let corpus = corpus(&[]);
        let mut loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let (cursor, fingerprint) = (loader.cursor().clone(), loader.texts().fingerprint);
        let message = loader.seek(cursor, fingerprint ^ 1).unwrap_err().to_string();
        assert!(message.contains("not that of the checkpoint"), "{message}");
    }

    #[test]
    fn plain_sequences_of_an_epoch_hold_every_window_once() {
        let corpus = corpus(&["data.fim_frac=0", "data.snippet_frac=0", "data.tag_dropout_frac=1"]);
        let loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let start = loader.cursor().clone();
        let mut packer = packer(&corpus, &loader, start);
        let mut text = String::new();
        while packer.cursor().languages[0].epoch == 0 {
            let sequence = packer.sequence_of(0).unwrap();
            let first = corpus.tokenizer.decode(&sequence.x_L[..1]);
            let counted: Vec<u32> = sequence.y_L.iter().copied().filter(|&id| id != IGNORE_ID).collect();
            text += &(first + &corpus.tokenizer.decode(&counted));
        }
        let lines_of = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines.dedup();
            lines
        };
        let tokens = &loader.texts.languages[0].tokens;
        let all = corpus.tokenizer.decode(&tokens.ids(0..tokens.n_tokens()));
        let (seen, all) = (lines_of(&text), lines_of(&all));
        let missing = all.iter().filter(|line| seen.binary_search(line).is_err()).count();
        assert_eq!(missing, 0, "of {} lines", all.len());
    }

    #[test]
    fn targets_follow_inputs_and_structure_does_not_count() {
        let corpus = corpus(&["data.fim_frac=1", "data.count_suffix=false"]);
        let mut loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let special = corpus.tokenizer.special().clone();
        let fim = special.fim.unwrap();
        let mut n_middles = 0;
        for sequence in batches(&mut loader, 4).concat() {
            assert_eq!(sequence.x_L.len(), corpus.config.data.sequence_tokens);
            for (idx, &target) in sequence.y_L.iter().enumerate().filter(|&(_, &target)| target != IGNORE_ID) {
                assert!(![fim.prefix, fim.suffix, fim.middle].contains(&target));
                assert!(target == special.end_of_text || !corpus.tokenizer.bytes_of(target).is_empty());
                assert!(sequence.x_L.get(idx + 1).is_none_or(|&next| next == target));
            }
            // Between <|fim_suffix|> and <|fim_middle|> nothing counts.
            let suffix = sequence.x_L.iter().position(|&id| id == fim.suffix);
            let middle = sequence.x_L.iter().position(|&id| id == fim.middle);
            if let (Some(suffix), Some(middle)) = (suffix, middle.filter(|&middle| suffix.is_some_and(|s| s < middle)))
            {
                assert!(sequence.y_L[suffix..middle].iter().all(|&target| target == IGNORE_ID));
                n_middles += 1;
            }
            assert!(sequence.n_counted() > 0);
        }
        assert!(n_middles > 10, "{n_middles}");
    }

    #[test]
    fn temperature_favours_the_rare_language() {
        let proportional = Loader::open(&corpus(&["data.language_temperature=1.0"]).config, &corpus(&[]).tokenizer);
        let warm = corpus(&["data.language_temperature=4.0"]);
        let warm = Loader::open(&warm.config, &warm.tokenizer).unwrap().language_probs();
        let proportional = proportional.unwrap().language_probs();
        assert!(warm[0] > 2.0 * proportional[0] && warm[0] < 0.5, "{warm:?} {proportional:?}");
        assert!((warm.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn languages_come_in_their_shares_at_every_length() {
        let corpus = corpus(&["data.language_temperature=2.0"]);
        let mut loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let probs = loader.language_probs();
        let mut n_lua = 0;
        for (idx, sequence) in batches(&mut loader, 20).concat().iter().enumerate() {
            n_lua += usize::from(sequence.language_idx == 0);
            let expected = probs[0] * (idx + 1) as f64;
            assert!((n_lua as f64 - expected).abs() < 3.0, "{n_lua} of {}, expected {expected}", idx + 1);
        }
    }

    #[test]
    fn a_language_of_the_curriculum_comes_from_its_step_on_and_the_others_take_its_part() {
        let corpus = corpus(&["data.curriculum={ lua = 10 }"]);
        let mut loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let n_lua = |batches: Vec<Vec<Sequence>>| batches.concat().iter().filter(|of| of.language_idx == 0).count();
        assert_eq!(n_lua(batches(&mut loader, 10)), 0);
        assert!(n_lua(batches(&mut loader, 10)) > 0);
        // What the configuration cannot know, where it names no languages.
        let error = |starts: &[(&str, u64)]| {
            let mut corpus = self::corpus(&[]);
            corpus.config.data.curriculum = starts.iter().map(|(name, step)| (name.to_string(), *step)).collect();
            let loader = Loader::open(&corpus.config, &corpus.tokenizer);
            loader
                .and_then(|mut loader| loader.next_batch())
                .err()
                .map(|error| format!("{error:#}"))
                .unwrap_or_default()
        };
        let unknown = error(&[("cobol", 1)]);
        assert!(unknown.contains("data.curriculum: cobol: expected languages of the run"), "{unknown}");
        let starts: Vec<(&str, u64)> = loader.texts().languages.iter().map(|of| (of.name.as_str(), 9)).collect();
        let none = error(&starts);
        assert!(none.contains("drawn from step 0 on"), "{none}");
    }

    #[test]
    fn short_epochs_repeat_in_another_order() {
        let corpus = corpus(&[]);
        let loader = Loader::open(&corpus.config, &corpus.tokenizer).unwrap();
        let mut packer = packer(&corpus, &loader, loader.cursor().clone());
        let mut cursors: Vec<LanguageCursor> = Vec::new();
        for _ in 0..60 {
            packer.sequence_of(0).unwrap();
            cursors.push(packer.cursor().languages[0].clone());
        }
        assert!(cursors.last().unwrap().epoch >= 2, "{:?}", cursors.last());
    }
}
