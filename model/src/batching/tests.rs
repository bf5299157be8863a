//! Many clients beside each alone, and what of them goes into a pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;

use super::*;
use crate::config::tests::tiny;
use crate::decoder::{Decoder, DecoderCache, Floats, Format, Simd, Worker};
use crate::fim::{PromptBudget, prompt};
use crate::generate::{GenerateOptions, Generated, generate};
use crate::lm::CodeLm;
use crate::router::RouterConfig;
use crate::served::Computed;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::tests::toy;

/// The CPU's decoder, row by row.
struct OneByOne {
    decoder: Arc<Decoder>,
    caches: Vec<DecoderCache>,
    worker: Worker,
    max_rows: usize,
    /// Rows of each pass.
    passes: Vec<Vec<Row>>,
}

impl OneByOne {
    fn new(decoder: Arc<Decoder>, n_sequences: usize, max_rows: usize) -> OneByOne {
        let caches =
            (0..n_sequences).map(|_| DecoderCache::new(decoder.config(), decoder.config().context_tokens)).collect();
        OneByOne { decoder, caches, worker: Worker::new(1), max_rows, passes: Vec::new() }
    }
}

impl RowDecoder for OneByOne {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn n_sequences(&self) -> usize {
        self.caches.len()
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn decode(&mut self, rows: &[Row]) -> Result<Logits> {
        assert!(rows.len() <= self.max_rows);
        self.passes.push(rows.to_vec());
        let mut logits = Vec::new();
        for row in rows {
            let cache = &mut self.caches[row.sequence];
            assert!(row.position <= cache.ids().len(), "{row:?} after {} tokens", cache.ids().len());
            cache.truncate(row.position);
            assert_eq!(row.before, cache.ids().last().copied().unwrap_or(0));
            self.decoder.decode((&[row.id], 1), row.language, cache, &mut self.worker, &|| false)?;
            if row.is_wanted {
                logits.extend_from_slice(&self.worker.logits);
            }
        }
        Ok(Logits::new(Arc::new(logits), self.decoder.config().vocab_size, 0.0))
    }
}

fn decoder(tokenizer: &Tokenizer) -> Arc<Decoder> {
    let mut config = tiny(Some(RouterConfig::all().remove(0)));
    (config.vocab_size, config.context_tokens, config.bigram_buckets) = (tokenizer.vocab_size(), 120, 16);
    let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
    let weights = Arc::new(Floats::of(&lm, Format::Q8).unwrap());
    Arc::new(Decoder::new(&config, weights, Simd::best()).unwrap())
}

fn answer(sequence: &mut dyn Sequence, tokenizer: &Tokenizer, language: &str, text: &str) -> Generated {
    let budget = PromptBudget { max_tokens: 100, suffix_tokens: 20, snippet_tokens: 0 };
    let prompt = prompt(tokenizer, Some(language), &[], text, "\nend", &budget).unwrap();
    let options = GenerateOptions { max_new_tokens: 6, guesses: true };
    generate(sequence, tokenizer, &prompt, Some(language), &options, &mut |_| false, &|| false).unwrap()
}

#[test]
fn many_clients_at_once_have_the_answers_of_each_alone() {
    let tokenizer = toy();
    let decoder = decoder(&tokenizer);
    let own = decoder.clone();
    let batching = Batching::new(move || Ok(OneByOne::new(own, 6, 16))).unwrap();
    let client = |i: usize| {
        let (mut batched, mut alone) = (batching.client().unwrap(), Computed::new(decoder.config(), 1));
        let language = ["lua", "go"][i % 2];
        for step in 0..8 {
            // The text grows, shrinks and changes at its beginning.
            let text = format!("{}def add{i}(a, b", "x = 1\n".repeat(step * i % 5));
            let (got, expected) = (
                answer(&mut batched.sequence(), &tokenizer, language, &text),
                answer(&mut alone.of(&decoder), &tokenizer, language, &text),
            );
            assert_eq!((&got.ids, &got.logprobs), (&expected.ids, &expected.logprobs), "client {i}, step {step}");
        }
    };
    std::thread::scope(|scope| (0..6).for_each(|i| drop(scope.spawn(move || client(i)))));
}

#[test]
fn what_waits_goes_into_one_pass_as_far_as_it_fits() {
    let mut decoder = OneByOne::new(decoder(&toy()), 4, 7);
    let (jobs, waiting) = channel();
    let mut answers = Vec::new();
    for (sequence, n_rows) in [(0, 3), (1, 4), (2, 6), (3, 1)] {
        let row = |position| Row {
            sequence,
            position,
            id: 5,
            before: if position == 0 { 0 } else { 5 },
            is_wanted: position + 1 == n_rows || sequence == 1,
            ..Row::default()
        };
        let (reply, answer) = sync_channel(1);
        jobs.send(Job { rows: (0..n_rows).map(row).collect(), reply }).unwrap();
        answers.push(answer);
    }
    drop(jobs);
    serve(&mut decoder, &waiting);
    let sequences = |rows: &Vec<Row>| rows.iter().map(|row| row.sequence).collect::<Vec<usize>>();
    assert_eq!(
        decoder.passes.iter().map(sequences).collect::<Vec<_>>(),
        [[0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 3]]
    );
    let answered: Vec<(Logits, usize)> = answers.iter().map(|answer| answer.recv().unwrap().unwrap()).collect();
    assert_eq!(answered.iter().map(|(_, first)| *first).collect::<Vec<usize>>(), [0, 1, 0, 1]);
    let n_rows = |logits: &Logits| (0..).take_while(|n| logits.row(*n).is_ok()).count();
    assert_eq!(answered.iter().map(|(logits, _)| n_rows(logits)).collect::<Vec<usize>>(), [5, 5, 2, 2]);
}

#[test]
fn a_sequence_is_free_again_when_its_client_is_gone() {
    let decoder = decoder(&toy());
    let batching = Batching::new(move || Ok(OneByOne::new(decoder, 1, 8))).unwrap();
    let first = batching.client().unwrap();
    let message = batching.client().err().unwrap().to_string();
    assert!(message.contains("all sequences of the decoder are in use"), "{message}");
    drop(first);
    let mut second = batching.client().unwrap();
    assert_eq!(second.sequence().next(&[5], 0, &|| false).unwrap().len(), second.sequence().config().vocab_size);
}

#[test]
fn what_does_not_fit_is_refused_before_others_hear_of_it() {
    let decoder = decoder(&toy());
    let (vocab_size, capacity) = (decoder.config().vocab_size as u32, decoder.config().context_tokens);
    let batching = Batching::new(move || Ok(OneByOne::new(decoder, 1, 8))).unwrap();
    let mut client = batching.client().unwrap();
    let mut sequence = client.sequence();
    let mut message = |ids: &[u32], language| sequence.next(ids, language, &|| false).unwrap_err().to_string();
    assert!(message(&[vocab_size], 0).contains("expected one below vocab_size"));
    assert!(message(&vec![5; capacity + 1], 0).contains(&format!("expected 1 to {capacity}")));
    assert!(message(&[], 0).contains("expected 1 to"));
    assert!(matches!(sequence.next(&[5], 0, &|| true), Err(Error::Cancelled)));
    assert!(sequence.ids().is_empty());
    assert_eq!(sequence.next(&[5; 20], 0, &|| false).unwrap().len(), vocab_size as usize);
    let message = sequence.next(&[5], 1, &|| false).unwrap_err().to_string();
    assert!(message.contains("another language"), "{message}");
}

#[test]
fn a_decoder_that_cannot_be_made_says_why() {
    let made = Batching::new(|| Err::<OneByOne, _>(Error::Device("no such thing".to_owned())));
    assert_eq!(made.err().unwrap().to_string(), Error::Device("no such thing".to_owned()).to_string());
}

/// Takes its time to go, as a device that is given back.
struct Slow(OneByOne, Arc<AtomicBool>);

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.1.store(true, Ordering::SeqCst);
    }
}

impl RowDecoder for Slow {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn n_sequences(&self) -> usize {
        self.0.n_sequences()
    }

    fn max_rows(&self) -> usize {
        self.0.max_rows()
    }

    fn decode(&mut self, rows: &[Row]) -> Result<Logits> {
        self.0.decode(rows)
    }
}

/// A program ended while its decoder was giving back the GPU, and crashed.
#[test]
fn the_decoder_is_gone_when_its_last_client_is() {
    let (is_gone, tokenizer) = (Arc::new(AtomicBool::new(false)), toy());
    let (decoder, flag) = (decoder(&tokenizer), is_gone.clone());
    let batching = Batching::new(move || Ok(Slow(OneByOne::new(decoder, 2, 8), flag))).unwrap();
    let client = batching.client().unwrap();
    drop(batching);
    assert!(!is_gone.load(Ordering::SeqCst), "a client is left");
    drop(client);
    assert!(is_gone.load(Ordering::SeqCst));
}
