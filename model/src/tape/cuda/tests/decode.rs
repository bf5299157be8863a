//! Passes over rows of many sequences: the logits of the model that sees each sequence whole.

use super::*;
use crate::batching::{Batching, Row, RowDecoder};
use crate::generate::Sequence;
use crate::tape::CudaDecoder;

/// Sequences of their own languages, whose tokens come in chunks beside those of others.
struct Texts {
    ids: Vec<Vec<u32>>,
    languages: Vec<u32>,
    /// Tokens of each that were computed.
    done: Vec<usize>,
}

impl Texts {
    fn new(n: usize, len: usize) -> Texts {
        let text = |i: usize| (0..len).map(|j| ((j * (i + 3) + j * j / 5 + i) % 90) as u32).collect();
        let languages = (0..n).map(|i| if i == 3 { crate::UNKNOWN_LANGUAGE } else { i as u32 % 3 }).collect();
        Texts { ids: (0..n).map(text).collect(), languages, done: vec![0; n] }
    }

    /// The next `n` tokens of a sequence, of which the last, or every one, is wanted.
    fn rows(&mut self, sequence: usize, n: usize, all: bool) -> Vec<Row> {
        let (ids, start) = (&self.ids[sequence], self.done[sequence]);
        self.done[sequence] += n;
        let before = |position: usize| position.checked_sub(1).map_or(0, |at| ids[at]);
        let row = |position| Row {
            sequence,
            position,
            id: ids[position],
            before: before(position),
            language: self.languages[sequence],
            is_wanted: all || position + 1 == start + n,
        };
        (start..start + n).map(row).collect()
    }
}

/// Computes rows and compares their logits with those of the model.
fn assert_same_logits(what: &str, decoder: &mut CudaDecoder, lm: &CodeLm, texts: &Texts, rows: &[Row]) {
    let got = decoder.decode(rows).unwrap();
    let wanted: Vec<&Row> = rows.iter().filter(|row| row.is_wanted).collect();
    for (n, row) in wanted.into_iter().enumerate() {
        let got = got.row(n).unwrap();
        let ids = &texts.ids[row.sequence][..=row.position];
        let expected = lm.forward_logits(ids, row.language).unwrap().get(row.position).unwrap().to_vec1().unwrap();
        let error = error(&got, &expected);
        assert!(error <= TOLERANCE, "{what}, {row:?}: error {error:.4}");
    }
}

fn passes_equal_the_model_for_every_option(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    let mut n_models = 0;
    for (name, config) in cpu::configs() {
        let lm = rounded(cpu::model(&sized(&config)));
        let made = CudaDecoder::with_device(device.clone(), lm.materialized().unwrap(), 4);
        let mut decoder = match made {
            Ok(decoder) => decoder,
            Err(error) => {
                assert!(error.to_string().contains("router that reads tokens"), "{name}: {error}");
                continue;
            }
        };
        n_models += 1;
        let what = format!("{place:?}, {name}");
        let mut texts = Texts::new(4, 90);
        // Chunks of prompts, then a token of each, again and again: from the second time on by a graph.
        let first = [texts.rows(0, 13, false), texts.rows(2, 7, true), texts.rows(3, 1, true)].concat();
        assert_same_logits(&what, &mut decoder, &lm, &texts, &first);
        for step in 0..3 {
            // In another order each time.
            let rows: Vec<Row> = (0..4).flat_map(|i| texts.rows((i + step) % 4, 1, true)).collect();
            assert_same_logits(&format!("{what}, step {step}"), &mut decoder, &lm, &texts, &rows);
        }
        assert_eq!(decoder.n_graphs(), 1, "{what}");
        // As many rows of which others have an expert: those without one made a pass too short.
        for unknown in [0, 1, 0, 2, 1] {
            let rows = [texts.rows(3, unknown, true), texts.rows(1, 4 - unknown, true)].concat();
            assert_same_logits(&format!("{what}, {unknown} of no language"), &mut decoder, &lm, &texts, &rows);
        }
        // Back to the beginning, where another sequence was. On a GPU so many rows that products go by the library.
        texts.ids.swap(0, 1);
        texts.languages.swap(0, 1);
        texts.done[0] = 0;
        let again = texts.rows(0, if place == Place::Gpu { 70 } else { 3 }, false);
        assert_same_logits(&format!("{what}, again"), &mut decoder, &lm, &texts, &again);
    }
    assert!(n_models > 8, "{n_models}");
}

#[test]
fn emulated_passes_equal_the_model_for_every_option() {
    passes_equal_the_model_for_every_option("emulated_passes_equal_the_model_for_every_option", Place::Host);
}

#[test]
fn passes_on_a_gpu_equal_the_model_for_every_option() {
    passes_equal_the_model_for_every_option("passes_on_a_gpu_equal_the_model_for_every_option", Place::Gpu);
}

/// A graph that was made for one row of logits served passes of as many rows that ask for more, and read rows that nobody had written.
fn a_pass_that_asks_for_more_logits_has_a_graph_of_its_own(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    let lm = rounded(cpu::model(&sized(&crate::config::tests::tiny(None))));
    let mut decoder = CudaDecoder::with_device(device, lm.materialized().unwrap(), 1).unwrap();
    let mut texts = Texts::new(1, 60);
    for (all, n_graphs) in [(false, 0), (false, 1), (true, 1), (true, 2), (false, 2)] {
        let rows = texts.rows(0, 4, all);
        assert_same_logits(&format!("{place:?}, all {all}"), &mut decoder, &lm, &texts, &rows);
        assert_eq!(decoder.n_graphs(), n_graphs, "{place:?}, all {all}");
    }
}

#[test]
fn an_emulated_pass_that_asks_for_more_logits_has_a_graph_of_its_own() {
    let test = "an_emulated_pass_that_asks_for_more_logits_has_a_graph_of_its_own";
    a_pass_that_asks_for_more_logits_has_a_graph_of_its_own(test, Place::Host);
}

#[test]
fn a_pass_on_a_gpu_that_asks_for_more_logits_has_a_graph_of_its_own() {
    let test = "a_pass_on_a_gpu_that_asks_for_more_logits_has_a_graph_of_its_own";
    a_pass_that_asks_for_more_logits_has_a_graph_of_its_own(test, Place::Gpu);
}

#[test]
fn wide_heads_are_kept_too() {
    for head in [64, 128] {
        let Some(device) = device("wide_heads_are_kept_too", Place::Host, head) else { return };
        let mut config = sized(&crate::config::tests::tiny(None));
        (config.d_head, config.n_heads, config.n_kv_heads, config.qk_norm) = (head, 3, 1, true);
        let lm = rounded(cpu::model(&config));
        let mut decoder = CudaDecoder::with_device(device, lm.materialized().unwrap(), 2).unwrap();
        let mut texts = Texts::new(2, 60);
        for n in [17, 1, 2] {
            let rows = [texts.rows(1, n, true), texts.rows(0, n, true)].concat();
            assert_same_logits(&format!("head {head}"), &mut decoder, &lm, &texts, &rows);
        }
    }
}

/// Clients read the logits of a pass while the next one runs.
#[test]
fn logits_that_somebody_holds_are_not_written_again() {
    let Some(device) = device("logits_that_somebody_holds_are_not_written_again", Place::Host, 32) else { return };
    let lm = rounded(cpu::model(&sized(&crate::config::tests::tiny(None))));
    let mut decoder = CudaDecoder::with_device(device, lm.materialized().unwrap(), 1).unwrap();
    let mut texts = Texts::new(1, 60);
    let held = decoder.decode(&texts.rows(0, 4, true)).unwrap();
    let before: Vec<Vec<f32>> = (0..4).map(|n| held.row(n).unwrap()).collect();
    for n in [2, 4, 8] {
        drop(decoder.decode(&texts.rows(0, n, true)).unwrap());
    }
    let after: Vec<Vec<f32>> = (0..4).map(|n| held.row(n).unwrap()).collect();
    assert_eq!(before, after);
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let Some(device) = device("rows_that_do_not_fit_are_refused", Place::Host, 32) else { return };
    let lm = cpu::model(&sized(&crate::config::tests::tiny(None)));
    let mut decoder = CudaDecoder::with_device(device, lm.materialized().unwrap(), 2).unwrap();
    let good = Row { is_wanted: true, ..Row::default() };
    let mut message = |rows: &[Row]| decoder.decode(rows).err().unwrap().to_string();
    assert!(message(&[]).contains("0 rows: expected 1 to 256"));
    assert!(message(&vec![good; 257]).contains("257 rows: expected 1 to 256"));
    assert!(message(&[Row { sequence: 2, ..good }]).contains("expected a sequence below 2"));
    assert!(message(&[Row { position: 160, ..good }]).contains("a position below 160"));
    assert!(message(&[Row { id: 5000, ..good }]).contains("expected one below vocab_size"));
}

/// Without a GPU it says so; with one, clients on threads of their own have their answers from it.
#[test]
fn clients_on_a_gpu_are_served_or_told_that_there_is_none() {
    let lm = rounded(cpu::model(&sized(&crate::config::tests::tiny(None))));
    let batching = match Batching::on_gpu(0, &lm, 3) {
        Ok(batching) => batching,
        Err(error) => return assert!(error.to_string().contains("CUDA"), "{error}"),
    };
    std::thread::scope(|scope| {
        for i in 0..3u32 {
            let (mut client, lm) = (batching.client().unwrap(), &lm);
            scope.spawn(move || {
                let mut ids = vec![i, 7, 11];
                let mut sequence = client.sequence();
                for _ in 0..20 {
                    let kept = sequence.keep_common_prefix(&ids, 0).min(ids.len() - 1);
                    sequence.truncate(kept);
                    let got = sequence.next(&ids[kept..], 0, &|| false).unwrap();
                    let expected = lm.forward_logits(&ids, 0).unwrap().get(ids.len() - 1).unwrap().to_vec1().unwrap();
                    assert!(error(&got, &expected) <= TOLERANCE, "client {i} after {} tokens", ids.len());
                    ids.push((ids.len() as u32 * (i + 2)) % 90);
                }
            });
        }
    });
}
