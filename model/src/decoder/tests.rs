//! Kernels against each other, bit for bit, and against the tensor library; the decoder against the model.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};

use super::*;
use crate::config::tests::tiny;
use crate::lm::CodeLm;
use crate::ops::tests::values;
use crate::router::RouterConfig;
use crate::tape::tests::{configs, model};
use crate::vocabulary::VocabularyFilter;

const FORMATS: [Format; 5] = [Format::Q8, Format::Q4, Format::Q4Least, Format::F16, Format::F32];

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    values(&[n], seed).to_vec1().unwrap()
}

/// Weights of a format; those of Q4_K need whole superblocks.
fn weights(format: Format, (rows, cols): (usize, usize), seed: u32) -> Packed {
    let w = numbers(rows * cols, seed);
    if format != Format::Q4Least {
        return Packed::from_floats(format, &w, cols).unwrap();
    }
    let blocks = quantized_by_candle(&w, (rows, cols), GgmlDType::Q4K);
    Packed::from_blocks(format, &blocks.data().unwrap(), (rows, cols)).unwrap()
}

fn quantized_by_candle(w: &[f32], shape: (usize, usize), dtype: GgmlDType) -> QTensor {
    QTensor::quantize(&Tensor::from_slice(w, shape, &Device::Cpu).unwrap(), dtype).unwrap()
}

fn activations(n: usize, cols: usize, seed: u32, w: &Packed) -> (Vec<f32>, Quantized) {
    let x = numbers(n * cols, seed);
    let mut quantized = Quantized::default();
    quantized.resize_for(n, w);
    x.chunks_exact(cols).enumerate().for_each(|(row, x)| quantized.set(row, x));
    (x, quantized)
}

/// All products, row by row of the activations.
fn product(w: &Packed, x: &Quantized, n_outputs: usize, simd: Simd) -> Vec<f32> {
    let (n, tiles) = (x.n_rows(), w.n_tiles());
    let mut by_tile = vec![f32::NAN; tiles * n * ROWS];
    // In two parts, as threads take them.
    let (first, second) = by_tile.split_at_mut(tiles / 3 * n * ROWS);
    multiply(w, x, 0..tiles / 3, first, simd);
    multiply(w, x, tiles / 3..tiles, second, simd);
    let output = |i: usize| by_tile[(i % n_outputs / ROWS * n + i / n_outputs) * ROWS + i % n_outputs % ROWS];
    (0..n * n_outputs).map(output).collect()
}

/// Rows and columns: those at the edges of tiles and blocks, and some that are drawn.
fn shapes(format: Format) -> Vec<(usize, usize)> {
    let edges: &[(usize, usize)] = match format {
        Format::Q4Least => &[(1, 256), (16, 256), (37, 768), (64, 512), (101, 256)],
        _ => &[(1, 1), (16, 32), (3, 7), (17, 33), (48, 96), (37, 200), (64, 512), (101, 64)],
    };
    let drawn = (0..20u64).map(|i| {
        let number = xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), format as u64) as usize;
        let (rows, cols) = (number % 150 + 1, number / 150 % 600 + 1);
        (rows, if format == Format::Q4Least { cols.next_multiple_of(256) } else { cols })
    });
    edges.iter().copied().chain(drawn).collect()
}

#[test]
fn every_instruction_set_gives_the_same_bits_however_many_rows_come_together() {
    for format in FORMATS {
        for (rows, cols) in shapes(format) {
            let w = weights(format, (rows, cols), 1);
            for n in (1..10).chain([15]) {
                let (_, x) = activations(n, cols, 2, &w);
                let expected = product(&w, &x, rows, Simd::Scalar);
                assert!(expected.iter().all(|y| y.is_finite()), "{format:?} {rows} x {cols}");
                for simd in Simd::all() {
                    let got = product(&w, &x, rows, simd);
                    let differs = got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert!(differs.is_none(), "{format:?} {rows} x {cols}, {n} rows, {simd:?}: output {differs:?}");
                }
            }
        }
    }
}

#[test]
fn attention_is_the_same_bits_by_every_instruction_set_however_many_queries_come_together() {
    let halves =
        |n: usize, seed| numbers(n, seed).iter().map(|x| half::f16::from_f32(*x).to_bits()).collect::<Vec<_>>();
    for (d, n) in [(8, 16), (6, 32), (64, 48), (80, 160)] {
        let (q, k, stride) = (numbers(7 * d, 1), halves(n * d, 2), d.next_multiple_of(ROWS));
        let (p, v) = (numbers(7 * n, 3), halves(n * stride, 4));
        let q: Vec<&[f32]> = q.chunks_exact(d).collect();
        // Some see fewer positions than others.
        let p: Vec<&[f32]> = p.chunks_exact(n).enumerate().map(|(i, p)| &p[..n - i % 3]).collect();
        let run = |from: usize, to: usize, simd| {
            let (mut y, mut sum) = (vec![0f32; (to - from) * (n + ROWS)], vec![0f32; (to - from) * stride]);
            kernel::scores(&q[from..to], &k, &mut y, simd);
            kernel::weighted(&p[from..to], &v, &mut sum, simd);
            let all = y.chunks_exact(n + ROWS).zip(sum.chunks_exact(stride)).map(|(y, sum)| [&y[..n], sum].concat());
            all.map(|all| all.iter().map(|x| x.to_bits()).collect()).collect::<Vec<Vec<u32>>>()
        };
        let alone: Vec<Vec<u32>> = (0..7).flat_map(|i| run(i, i + 1, Simd::Scalar)).collect();
        let exact: f64 = (0..d).map(|i| f64::from(q[0][i] * half::f16::from_bits(k[i * ROWS + 3]).to_f32())).sum();
        assert!((f64::from(f32::from_bits(alone[0][3])) - exact).abs() < 1e-4);
        for simd in Simd::all() {
            for (from, to) in [(0, 1), (0, 2), (1, 4), (2, 6), (0, 7)] {
                assert_eq!(run(from, to, simd), alone[from..to], "{simd:?}, {d} x {n}, queries {from} to {to}");
            }
        }
    }
}

#[test]
fn products_are_those_of_the_tensor_library() {
    for (format, dtype) in
        [(Format::Q8, GgmlDType::Q8_0), (Format::Q4, GgmlDType::Q4_0), (Format::Q4Least, GgmlDType::Q4K)]
    {
        // Their blocks are whole, and so are those of their activations.
        let whole = |(rows, cols): (usize, usize)| (rows, cols.next_multiple_of(dtype.block_size()));
        for (rows, cols) in shapes(format).into_iter().map(whole) {
            let quantized = quantized_by_candle(&numbers(rows * cols, 3), (rows, cols), dtype);
            let w = Packed::from_blocks(format, &quantized.data().unwrap(), (rows, cols)).unwrap();
            let floats = quantized.dequantize(&Device::Cpu).unwrap();
            let (x, packed_x) = activations(3, cols, 4, &w);
            let x = Tensor::from_vec(x, (3, cols), &Device::Cpu).unwrap();
            let exact = x.matmul(&floats.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let theirs = QMatMul::from_qtensor(quantized).unwrap().forward(&x).unwrap();
            let theirs = theirs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let got = product(&w, &packed_x, rows, Simd::best());
            let largest = exact.iter().fold(0f32, |largest, y| largest.max(y.abs()));
            let most = |a: &[f32]| a.iter().zip(&exact).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest;
            // Both round activations to eight bits; ours is no further from the product of floats than theirs.
            let (ours, theirs) = (most(&got), most(&theirs));
            assert!(ours < 0.01 && ours < 1.5 * theirs + 1e-3, "{format:?} {rows} x {cols}: {ours}, theirs {theirs}");
        }
    }
}

#[test]
fn floats_are_multiplied_as_the_tensor_library_does() {
    for (format, dtype) in [(Format::F32, DType::F32), (Format::F16, DType::F16)] {
        for (rows, cols) in shapes(format) {
            let w = Tensor::from_vec(numbers(rows * cols, 5), (rows, cols), &Device::Cpu).unwrap();
            let rounded = w.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            let packed = weights(format, (rows, cols), 5);
            let (x, quantized) = activations(3, cols, 6, &packed);
            let x = Tensor::from_vec(x, (3, cols), &Device::Cpu).unwrap();
            let expected = x.matmul(&rounded.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let got = product(&packed, &quantized, rows, Simd::best());
            let differs = got.iter().zip(&expected).find(|(a, b)| (**a - **b).abs() > 1e-6 * cols as f32);
            assert!(differs.is_none(), "{format:?} {rows} x {cols}: {differs:?}");
        }
    }
}

#[test]
fn rounding_is_that_of_the_tensor_library() {
    let (rows, cols) = (20, 64);
    let w = numbers(rows * cols, 7);
    for (format, dtype) in [(Format::Q8, GgmlDType::Q8_0), (Format::Q4, GgmlDType::Q4_0)] {
        let ours = Packed::from_floats(format, &w, cols).unwrap();
        let blocks = quantized_by_candle(&w, (rows, cols), dtype);
        let theirs = Packed::from_blocks(format, &blocks.data().unwrap(), (rows, cols)).unwrap();
        let (_, x) = activations(1, cols, 8, &ours);
        let (a, b) = (product(&ours, &x, rows, Simd::best()), product(&theirs, &x, rows, Simd::best()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-2), "{format:?}: {a:?} {b:?}");
    }
}

/// A decoder of the weights of a model, one whose weights are made of others after those are made.
fn decoder(lm: &CodeLm, format: Format) -> Decoder {
    let lm = lm.materialized().unwrap();
    let source = Arc::new(Floats::of(&lm, format).unwrap());
    Decoder::new(lm.config(), source, Simd::best()).unwrap()
}

/// The logits after each of `ids`, computed in pieces that end at `ends`.
fn logits(decoder: &Decoder, worker: &mut Worker, ids: &[u32], language: u32, ends: &[usize]) -> Vec<f32> {
    let mut cache = DecoderCache::new(decoder.config(), 64);
    let (mut all, mut from) = (Vec::new(), 0);
    for &end in ends {
        let piece = &ids[from..end];
        decoder.decode((piece, piece.len()), language, &mut cache, worker, &|| false).unwrap();
        all.extend(&worker.logits);
        from = end;
    }
    all
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 7 + i / 3 + 5) % 90).collect()
}

#[test]
fn logits_are_those_of_the_model_for_every_option() {
    let mut worker = Worker::new(2);
    for (name, config) in
        configs().into_iter().filter(|(_, config)| config.moe.as_ref().is_none_or(|moe| moe.is_causal()))
    {
        let lm = model(&config);
        let decoder = decoder(&lm, Format::F32);
        for language in [0, 2, crate::UNKNOWN_LANGUAGE] {
            let ids = ids(37);
            let expected = lm.forward_logits(&ids, language).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let got = logits(&decoder, &mut worker, &ids, language, &[37]);
            let largest = expected.iter().fold(1f32, |largest, z| largest.max(z.abs()));
            let most = got.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            // Keys and values are kept in 16 bits.
            assert!(most < 4e-3 * largest, "{name}, language {language}: {most} of {largest}");
        }
    }
}

#[test]
fn neither_how_a_text_is_cut_nor_what_is_asked_of_it_changes_a_bit() {
    for (name, config) in configs() {
        if config.moe.as_ref().is_some_and(|moe| moe.reads_tokens()) || config.adapter.is_some() {
            continue;
        }
        for format in [Format::Q8, Format::F32] {
            let decoder = decoder(&model(&config), format);
            let ids = ids(40);
            let whole = logits(&decoder, &mut Worker::new(1), &ids, 1, &[40]);
            let cuts: [&[usize]; 3] = [&[1, 2, 3, 20, 40], &[17, 39, 40], &[8, 16, 24, 32, 40]];
            for (cut, n_threads) in cuts.into_iter().zip([1, 2, 3]) {
                let got = logits(&decoder, &mut Worker::new(n_threads), &ids, 1, cut);
                let differs = got.iter().zip(&whole).position(|(a, b)| a.to_bits() != b.to_bits());
                assert!(differs.is_none(), "{name}, {format:?}, cut at {cut:?}: logit {differs:?}");
            }
            // The last layer leaves out rows of which no logits are asked for.
            for n_logits in [1, 3, 15] {
                let (mut cache, mut worker) = (DecoderCache::new(decoder.config(), 64), Worker::new(2));
                for (piece, n_logits) in [(&ids[..25], 0), (&ids[25..], n_logits)] {
                    decoder.decode((piece, n_logits), 1, &mut cache, &mut worker, &|| false).unwrap();
                }
                let expected = &whole[whole.len() - worker.logits.len()..];
                assert_eq!(worker.logits.len(), n_logits * decoder.config().vocab_size);
                assert!(worker.logits == expected, "{name}, {format:?}: the last {n_logits}");
            }
        }
    }
}

#[test]
fn only_experts_that_are_used_are_packed() {
    let config = tiny(Some(RouterConfig::all().remove(0)));
    let decoder = decoder(&model(&config), Format::Q8);
    assert_eq!(decoder.experts_in_memory(), (0, 0));
    logits(&decoder, &mut Worker::new(1), &ids(5), 1, &[5]);
    let (n, bytes) = decoder.experts_in_memory();
    assert!(n == 1 && bytes > 0, "{n} experts");
}

#[test]
fn experts_that_were_used_longest_ago_go_first_and_come_back_with_the_same_bits() {
    let config = tiny(Some(RouterConfig::all().remove(0)));
    let lm = model(&config);
    let roomy = decoder(&lm, Format::Q8);
    let n_languages = config.languages.len() as u32;
    let all = |decoder: &super::Decoder| -> Vec<Vec<f32>> {
        (0..n_languages).map(|language| logits(decoder, &mut Worker::new(1), &ids(5), language, &[5])).collect()
    };
    let expected = all(&roomy);
    let (n, bytes) = roomy.experts_in_memory();
    assert!(n as u32 == n_languages && n > 1, "{n} experts");
    // What a pass uses stays, even where there is no room for it.
    for budget in [bytes / n, 0] {
        let mut narrow = decoder(&lm, Format::Q8);
        narrow.shelf.set_budget(budget);
        assert_eq!((all(&narrow), all(&narrow)), (expected.clone(), expected.clone()));
        assert_eq!(narrow.experts_in_memory(), (1, bytes / n), "the last one used");
    }
}

#[test]
fn a_cancelled_pass_leaves_the_cache_as_it_was() {
    let decoder = decoder(&model(&tiny(None)), Format::Q8);
    let (mut cache, mut worker) = (DecoderCache::new(decoder.config(), 64), Worker::new(1));
    let ids = ids(12);
    decoder.decode((&ids[..6], 1), 0, &mut cache, &mut worker, &|| false).unwrap();
    let asked = std::cell::Cell::new(0);
    let cancelled = || asked.replace(asked.get() + 1) == 1;
    let error = decoder.decode((&ids[6..], 1), 0, &mut cache, &mut worker, &cancelled).unwrap_err();
    assert!(matches!(error, crate::Error::Cancelled) && cache.ids() == &ids[..6], "{error}");
    decoder.decode((&ids[6..], 1), 0, &mut cache, &mut worker, &|| false).unwrap();
    let got = worker.logits.clone();
    let expected = logits(&decoder, &mut Worker::new(1), &ids, 0, &[12]);
    assert_eq!(got, expected[11 * decoder.config().vocab_size..]);
    decoder.decode((&[5], 0), 0, &mut cache, &mut worker, &|| false).unwrap();
    assert!(worker.logits.is_empty(), "none were asked for");
    let mixed = decoder.decode((&[5], 1), 1, &mut cache, &mut worker, &|| false).unwrap_err().to_string();
    assert!(mixed.contains("tokens of language 1 after some of another"), "{mixed}");
    cache.truncate(12);
    let full = decoder.decode((&[1; 60], 1), 0, &mut cache, &mut worker, &|| false).unwrap_err().to_string();
    assert!(full.contains("60 tokens after 12: expected 1 to 52"), "{full}");
}

/// Weights of which one is of another format.
struct Mixed(Floats, Floats, &'static str);

impl WeightSource for Mixed {
    fn matrix(&self, name: &str, shape: (usize, usize)) -> crate::Result<Packed> {
        if name.contains(self.2) { self.1.matrix(name, shape) } else { self.0.matrix(name, shape) }
    }

    fn floats(&self, name: &str, shape: &[usize]) -> crate::Result<Vec<f32>> {
        self.0.floats(name, shape)
    }

    fn add_row(&self, name: &str, row: usize, out: &mut [f32]) -> crate::Result<()> {
        if name.contains("embed") && self.2 == "embed" {
            return Err(crate::Error::Input("no such table".into()));
        }
        self.0.add_row(name, row, out)
    }

    fn has(&self, name: &str) -> bool {
        self.0.has(name) && !(self.2 == "experts.2" && name.contains(self.2))
    }
}

#[test]
fn weights_that_do_not_fit_are_found_when_the_model_is_loaded() {
    let lm = model(&tiny(Some(RouterConfig::all().remove(0))));
    let error = |part| {
        let source = Mixed(Floats::of(&lm, Format::Q8).unwrap(), Floats::of(&lm, Format::F32).unwrap(), part);
        Decoder::new(lm.config(), Arc::new(source), Simd::best())
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert!(
        error("v_proj").contains("both kinds below model.layers.0.self_attn: expected all floats"),
        "{}",
        error("v_proj")
    );
    assert!(error("gate_proj").contains("both kinds below model.layers.0.mlp"), "{}", error("gate_proj"));
    assert!(error("embed").contains("no such table"));
    assert!(
        error("experts.2").contains("model.layers.1.mlp.experts.2.up_proj.weight is missing"),
        "{}",
        error("experts.2")
    );
}

#[test]
fn picked_rows_have_the_bits_of_their_rows() {
    for format in FORMATS {
        for (rows, cols) in shapes(format) {
            let w = weights(format, (rows, cols), 1);
            let picked: Vec<u32> = (0..rows as u32).rev().filter(|row| row % 3 != 1).collect();
            let (_, x) = activations(3, cols, 2, &w);
            let (whole, part) = (product(&w, &x, rows, Simd::best()), w.pick(&picked));
            let part = product(&part, &x, picked.len(), Simd::best());
            let expected = (0..3).flat_map(|n| picked.iter().map(move |&row| (n, row)));
            let expected: Vec<f32> = expected.map(|(n, row)| whole[n * rows + row as usize]).collect();
            assert_eq!(part, expected, "{format:?} {rows} x {cols}");
        }
    }
}

#[test]
fn a_filtered_vocabulary_has_the_same_logits_and_no_others() {
    for (softcap, tie) in [(0.0, true), (4.0, false)] {
        let mut config = tiny(Some(RouterConfig::all().remove(0)));
        (config.logit_softcap, config.tie_embeddings) = (softcap, tie);
        let lm = model(&config);
        let whole = Decoder::new(&config, Arc::new(Floats::of(&lm, Format::Q8).unwrap()), Simd::best()).unwrap();
        let mut filtered = Decoder::new(&config, Arc::new(Floats::of(&lm, Format::Q8).unwrap()), Simd::best()).unwrap();
        let mut filter = VocabularyFilter::default();
        let used: Vec<u32> = (0..config.vocab_size as u32).step_by(5).collect();
        filter.insert(&config.languages[1], used.clone());
        filtered.set_vocabulary_filter(&filter);
        let text = [1u32, 10, 7, 33];
        for language in [0, 1, crate::UNKNOWN_LANGUAGE] {
            let logits = |decoder: &Decoder| {
                let (mut cache, mut worker) = (DecoderCache::new(&config, 64), Worker::new(2));
                decoder.decode((&text[..2], 1), language, &mut cache, &mut worker, &|| false).unwrap();
                decoder.decode((&text[2..], 2), language, &mut cache, &mut worker, &|| false).unwrap();
                worker.logits
            };
            let (whole, filtered) = (logits(&whole), logits(&filtered));
            for (i, (whole, filtered)) in whole.iter().zip(&filtered).enumerate() {
                let id = (i % config.vocab_size) as u32;
                let is_there = language != 1 || used.contains(&id) || text.contains(&id);
                let expected = if is_there { *whole } else { f32::NEG_INFINITY };
                assert_eq!(*filtered, expected, "language {language}, {id}");
            }
        }
    }
}
