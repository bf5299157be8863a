//! A model with packed weights, and one pass of it over some tokens.

mod feed_forward;

use std::sync::{Arc, Mutex, PoisonError};

use super::attention::Heads;
use super::cache::{DecoderCache, LayerCache, max_positions};
use super::crew::Pieces;
use super::head::Head;
use super::kernel::Simd;
use super::layer::Layer;
use super::network::{add_row, copy_row, products, ranges};
use super::packed::Packed;
use super::shelf::Shelf;
use super::weights::{WeightSource, build, check_tables};
use super::worker::Worker;
use crate::adapters::{AdapterConfig, Adapters, adapt};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::lm::{bigram_bucket, check_ids, language_rows};
use crate::ops::Rope;
use crate::ops::norm_row;
use crate::vocabulary::VocabularyFilter;

/// A model with packed weights.
pub struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) source: Arc<dyn WeightSource>,
    layers: Vec<Layer>,
    pub(super) shelf: Shelf,
    adapters: Option<Box<dyn Adapters>>,
    norm: Vec<f32>,
    head: Head,
    rope: Rope,
    simd: Simd,
}

/// What a pass is over.
struct Pass<'a> {
    ids: &'a [u32],
    language_N: Vec<u32>,
    /// The position of the first of `ids`.
    start: usize,
}

impl Pass<'_> {
    /// Leaves the last `n` rows alone, with what `worker` has of them.
    fn keep_last(&mut self, n: usize, worker: &mut Worker) {
        let (all, dropped) = (self.ids.len(), self.ids.len() - n);
        for rows in [&mut worker.x, &mut worker.q] {
            rows.drain(..rows.len() / all * dropped);
        }
        self.language_N.drain(..dropped);
        (self.ids, self.start) = (&self.ids[dropped..], self.start + dropped);
    }
}

impl Decoder {
    /// The model of a configuration with the weights of `source`; experts are packed when they are first used.
    ///
    /// # Errors
    /// A configuration that is wrong, or whose weights are made of others; weights that are missing or misshapen.
    pub fn new(config: &ModelConfig, source: Arc<dyn WeightSource>, simd: Simd) -> Result<Decoder> {
        config.validate()?;
        if !config.is_plain() {
            return Err(Error::Input("weights that are made of others: expected those of CodeLm::materialized".into()));
        }
        if !simd.is_here() {
            return Err(Error::Device(format!("{simd:?}: this machine does not have it")));
        }
        // Whoever cuts a prompt asks the decoder's own configuration how long it may be.
        let config = &ModelConfig { context_tokens: max_positions(config), ..config.clone() };
        let d = config.d_model;
        check_tables(config, &*source)?;
        let adapters =
            |adapter: &AdapterConfig| build(&*source, "model.adapters", |params| adapter.build(config, params));
        let head = if config.tie_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        Ok(Decoder {
            shelf: Shelf::new(config.moe.as_ref().is_some_and(|moe| moe.router.is_by_language())),
            layers: (0..config.n_layers).map(|layer| Layer::load(config, layer, &*source)).collect::<Result<_>>()?,
            adapters: config.adapter.as_ref().map(adapters).transpose()?,
            norm: source.floats("model.norm.weight", &[d])?,
            head: Head::new(source.matrix(head, (config.vocab_size, d))?),
            rope: Rope::new(config.d_head, config.rope_theta, config.context_tokens),
            config: config.clone(),
            source,
            simd,
        })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Has each language of `filter` compute logits of what it says alone, and of what stands in the text; those of all other entries are
    /// minus infinity from now on. `filter` is for this vocabulary.
    pub fn set_vocabulary_filter(&mut self, filter: &VocabularyFilter) {
        self.head.set_filter(&self.config, filter);
    }

    /// Experts that are packed, and their bytes.
    pub fn experts_in_memory(&self) -> (usize, usize) {
        self.shelf.in_memory()
    }

    /// Computes `ids`, which follow what `cache` holds, and the logits after each of the last `n_logits` of them; asks `cancelled` before
    /// every layer.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the caller gave up; the cache then is as before. [`Error::Input`] for ids that do not fit.
    pub fn decode(
        &self,
        (ids, n_logits): (&[u32], usize),
        language: u32,
        cache: &mut DecoderCache,
        worker: &mut Worker,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<()> {
        let (start, n) = (cache.ids().len(), ids.len());
        cache.follow(language)?;
        if n == 0 || start + n > cache.capacity() {
            let room = cache.capacity() - start;
            return Err(Error::Input(format!("{n} tokens after {start}: expected 1 to {room}")));
        }
        check_ids(ids, self.config.vocab_size)?;
        let mut language_N = std::mem::take(&mut worker.language_N);
        language_N.clear();
        language_N.resize(n, language);
        let (mut pass, n_logits) = (Pass { ids, language_N, start }, n_logits.min(n));
        self.shelf.begin_pass();
        self.embed(&pass, cache.ids().last().copied().unwrap_or(0), worker)?;
        for (i, layer) in self.layers.iter().enumerate() {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            self.project(layer, &pass, i, cache, worker)?;
            if i + 1 == self.layers.len() {
                // Of the rows without logits nobody reads more than the keys and values.
                pass.keep_last(n_logits, worker);
            }
            if pass.ids.is_empty() {
                break;
            }
            self.attend(layer, &pass, &cache.layers[i], worker);
            self.feed_forward(layer, &pass, worker)?;
            self.adapt(i, &pass, worker)?;
        }
        worker.language_N = pass.language_N;
        cache.commit(ids);
        self.logits(n_logits, (language, cache.ids()), worker);
        Ok(())
    }

    fn embed(&self, pass: &Pass, before: u32, worker: &mut Worker) -> Result<()> {
        let (d, config) = (self.config.d_model, &self.config);
        worker.x.clear();
        worker.x.resize(pass.ids.len() * d, 0.0);
        let rows = match config.language_embedding {
            true => language_rows(&pass.language_N, config.languages.len())?,
            false => Vec::new(),
        };
        let mut last = before;
        for (n, (&id, x)) in pass.ids.iter().zip(worker.x.chunks_exact_mut(d)).enumerate() {
            self.source.add_row("model.embed_tokens.weight", id as usize, x)?;
            if config.bigram_buckets > 0 {
                let bucket = bigram_bucket(last, id, config.bigram_buckets as u32);
                self.source.add_row("model.embed_bigrams.weight", bucket as usize, x)?;
            }
            if let Some(row) = rows.get(n) {
                self.source.add_row("model.embed_languages.weight", *row as usize, x)?;
            }
            last = id;
        }
        Ok(())
    }

    /// Normalizes each row of the residual stream and quantizes it for products with `w`.
    fn norm(&self, weight: &[f32], w: &Packed, worker: &mut Worker) {
        let (d, n) = (weight.len(), worker.x.len() / weight.len());
        worker.quantized.resize_for(n, w);
        worker.rows.resize(n * d, 0.0);
        let (n_parts, range) = ranges(n, &worker.crew);
        let (x, rows, quantized) = (&worker.x, Pieces::new(&mut worker.rows), worker.quantized.writer());
        worker.crew.run(n_parts, &|part| {
            for row in range(part) {
                let own = row * d..(row + 1) * d;
                // SAFETY: each part has rows of its own.
                unsafe {
                    let normed = rows.take(own.clone());
                    norm_row(normed, &x[own], weight, self.config.norm_eps as f32);
                    quantized.set_row(row, normed);
                }
            }
        });
    }

    /// Queries into `worker.q`, keys and values into the cache.
    fn project(
        &self,
        layer: &Layer,
        pass: &Pass,
        i: usize,
        cache: &mut DecoderCache,
        worker: &mut Worker,
    ) -> Result<()> {
        self.norm(&layer.norm, &layer.qkv[0], worker);
        let [q, k, v] = &mut worker.qkv;
        let [w_q, w_k, w_v] = &layer.qkv;
        let x = &worker.quantized;
        products(&mut worker.crew, [(x, w_q), (x, w_k), (x, w_v)], [q, k, v], self.simd);
        self.finish_projections(layer, pass, worker)?;
        let width = self.config.n_kv_heads * self.config.d_head;
        for (row, kv) in worker.rows.chunks_exact(2 * width).enumerate() {
            cache.layers[i].put(pass.start + row, &kv[..width], &kv[width..]);
        }
        Ok(())
    }

    fn attend(&self, layer: &Layer, pass: &Pass, cached: &LayerCache, worker: &mut Worker) {
        let (n, n_heads, n_kv_heads, d) =
            (pass.ids.len(), self.config.n_heads, self.config.n_kv_heads, self.config.d_head);
        worker.attended.resize(n * n_heads * d, 0.0);
        let heads = Heads { n_heads, n_kv_heads, d, start: pass.start };
        let (crew, memory) = (&mut worker.crew, &mut worker.attention);
        heads.attend(crew, &worker.q, cached, memory, &mut worker.attended, self.simd);
        worker.quantized.resize_for(n, &layer.out);
        for (row, x) in worker.attended.chunks_exact(n_heads * d).enumerate() {
            worker.quantized.set(row, x);
        }
        products(&mut worker.crew, [(&worker.quantized, &layer.out)], [&mut worker.y], self.simd);
        self.add_all(worker);
    }

    /// Makes queries, keys and values of the products: `worker.q`, and `[row][keys, values]` in `worker.rows`.
    fn finish_projections(&self, layer: &Layer, pass: &Pass, worker: &mut Worker) -> Result<()> {
        let (config, n) = (&self.config, pass.ids.len());
        let (queries, width) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
        worker.q.resize(n * queries, 0.0);
        worker.rows.clear();
        worker.rows.resize(n * 2 * width, 0.0);
        let (n_parts, range) = ranges(n, &worker.crew);
        let (q, rows, failed) = (Pieces::new(&mut worker.q), Pieces::new(&mut worker.rows), Mutex::new(None));
        let [by_tile_q, by_tile_k, by_tile_v] = &worker.qkv;
        worker.crew.run(n_parts, &|part| {
            for row in range(part) {
                // SAFETY: each part has rows of its own.
                let (q, kv) = unsafe {
                    (q.take(row * queries..(row + 1) * queries), rows.take(row * 2 * width..(row + 1) * 2 * width))
                };
                let (k, v) = kv.split_at_mut(width);
                copy_row(by_tile_q, (row, n), q);
                copy_row(by_tile_k, (row, n), k);
                copy_row(by_tile_v, (row, n), v);
                self.finish_heads(layer, 0, pass.start + row, q);
                self.finish_heads(layer, 1, pass.start + row, k);
                if let Err(error) = self.finish_values(layer, pass.ids[row], v) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Bias, norm of each head and rotation; `which` is 0 for queries, 1 for keys.
    fn finish_heads(&self, layer: &Layer, which: usize, position: usize, heads: &mut [f32]) {
        let d = self.config.d_head;
        if let Some(biases) = &layer.biases {
            heads.iter_mut().zip(&biases[which]).for_each(|(x, bias)| *x += bias);
        }
        if let Some(norms) = &layer.head_norms {
            let eps = self.config.norm_eps as f32;
            heads.chunks_exact_mut(d).for_each(|head| {
                let mean = head.iter().map(|x| x * x).sum::<f32>() / d as f32;
                let inverse = 1.0 / (mean + eps).sqrt();
                head.iter_mut().zip(&norms[which]).for_each(|(x, weight)| *x *= inverse * weight);
            });
        }
        self.rope.rotate_at(heads, position);
    }

    fn finish_values(&self, layer: &Layer, id: u32, v: &mut [f32]) -> Result<()> {
        if let Some(biases) = &layer.biases {
            v.iter_mut().zip(&biases[2]).for_each(|(x, bias)| *x += bias);
        }
        layer.value_table.as_ref().map_or(Ok(()), |table| self.source.add_row(table, id as usize, v))
    }

    /// Adds what stands in `worker.y` to all rows.
    fn add_all(&self, worker: &mut Worker) {
        let (d, n) = (self.config.d_model, worker.x.len() / self.config.d_model);
        let (n_parts, range) = ranges(n, &worker.crew);
        let (x, y) = (Pieces::new(&mut worker.x), &worker.y);
        worker.crew.run(n_parts, &|part| {
            // SAFETY: each part has rows of its own.
            range(part).for_each(|row| add_row(y, (row, n), 1.0, unsafe { x.take(row * d..(row + 1) * d) }));
        });
    }

    fn adapt(&self, layer: usize, pass: &Pass, worker: &mut Worker) -> Result<()> {
        let Some(adapters) = &self.adapters else { return Ok(()) };
        let shape = (1, pass.ids.len(), self.config.d_model);
        let x_1ND = candle_core::Tensor::from_slice(&worker.x, shape, &candle_core::Device::Cpu)?;
        let y_1ND = adapt(&**adapters, layer, &x_1ND, &pass.language_N)?;
        worker.x = y_1ND.flatten_all()?.to_vec1()?;
        Ok(())
    }

    fn logits(&self, n_logits: usize, text: (u32, &[u32]), worker: &mut Worker) {
        worker.logits.resize(n_logits * self.config.vocab_size, 0.0);
        if n_logits == 0 {
            return;
        }
        self.norm(&self.norm, self.head.first(), worker);
        let Worker { crew, quantized, y, y_in_text, wanted, logits, .. } = worker;
        let out = (self.config.logit_softcap, logits.as_mut_slice());
        self.head.run((crew, self.simd), quantized, (text.0, [text.1, wanted]), [y, y_in_text], out);
    }
}
