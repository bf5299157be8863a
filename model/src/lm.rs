//! `CodeLm`: token ids in; a loss, scores or logits out.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use crate::adapters::{self, Adapters};
use crate::block::{Block, Ffn, MoeReport, TokenContext};
use crate::cache::KvCache;
use crate::config::{ModelConfig, UNKNOWN_LANGUAGE, check};
use crate::copy::CopyConfig;
use crate::draw::{Draw, StepKey};
use crate::error::{Error, Result};
use crate::exchange::ExpertExchange;
use crate::experts::Experts;
use crate::ops::{self, Rope, linear};
use crate::params::{Built, Init, Params};
use crate::router::{Router, RouterContext};

/// The target id that is not counted in a loss.
pub const IGNORE_ID: u32 = u32::MAX;

/// One batch: `x_BL` are ids, `y_BL` the ids that follow, both u32; [`IGNORE_ID`] in `y_BL` is not counted. They are read on the host:
/// best on the CPU, whatever the model's device.
#[derive(Clone)]
pub struct Batch {
    pub x_BL: Tensor,
    pub y_BL: Tensor,
    /// Language index of each position, row-major; on the host, where routers by language read it.
    pub language_BL: Vec<u32>,
    /// The position in its sequence at which each token's document begins: attention stays within documents. None: one document a row.
    pub start_BL: Option<Vec<u32>>,
    /// The step of training that it is for: what is random there, and only there, depends on it.
    pub training: Option<StepKey>,
}

impl Batch {
    /// The random numbers of its step, for rows of `l` of its ids.
    pub(crate) fn draw(&self, id_N: &[u32], l: usize) -> Option<Draw> {
        self.training.map(|key| Draw::new(key, id_N, l))
    }
}

/// What [`CodeLm::loss`] returns.
pub struct LossOutput {
    /// Sum of the counted tokens' nats divided by the divisor, plus the routers' losses; a differentiable scalar.
    pub loss: Tensor,
    pub nll_sum: f64,
    pub aux_loss: f64,
    /// `nll_sum` of each row of the batch.
    pub nll_B: Vec<f64>,
    /// Counted tokens.
    pub n_tokens: usize,
    /// Per layer with experts, the share of assignments of each.
    pub load_E: Vec<Vec<f32>>,
}

/// What [`CodeLm::scores`] returns: per position, row-major.
pub struct Scores {
    /// -ln p(target), nats; 0 where not counted.
    pub nll_N: Vec<f32>,
    /// Whether the target is the likeliest id.
    pub correct_N: Vec<bool>,
}

/// A decoder-only language model of code.
pub struct CodeLm {
    config: ModelConfig,
    embed_VD: Tensor,
    /// Added by the hash of the last two ids.
    bigram_VD: Option<Tensor>,
    /// Added by language; the last row is that of unknown languages.
    language_VD: Option<Tensor>,
    adapters: Option<Box<dyn Adapters>>,
    blocks: Vec<Block>,
    norm_D: Tensor,
    /// The output projection where it is not the embedding.
    head_VD: Option<Tensor>,
    rope: Rope,
    weights: Vec<(String, Tensor)>,
    vars: Vec<(String, Var)>,
    device: Device,
}

impl CodeLm {
    /// A model with fresh weights, all trainable.
    pub fn init(config: &ModelConfig, seed: u64, device: &Device) -> Result<CodeLm> {
        CodeLm::new(config, Params::random(seed, device), device)
    }

    /// A model with the weights that `params` hands out.
    ///
    /// # Errors
    /// A configuration that is wrong, a weight that is missing, misshapen or not part of the model.
    pub fn new(config: &ModelConfig, mut params: Params, device: &Device) -> Result<CodeLm> {
        config.validate()?;
        let (v, d) = (config.vocab_size, config.d_model);
        let (embed_VD, bigram_VD, language_VD, adapters, blocks, norm_D) = params.scope("model", |params| {
            let embed_VD = params.get("embed_tokens.weight", &[v, d], Init::Normal(1.0 / (d as f64).sqrt()))?;
            let bigram_VD = match config.bigram_buckets {
                0 => None,
                buckets => Some(params.get("embed_bigrams.weight", &[buckets, d], Init::Zero)?),
            };
            let language_VD = match config.language_embedding {
                false => None,
                true => Some(params.get("embed_languages.weight", &[config.languages.len() + 1, d], Init::Zero)?),
            };
            let adapters = match &config.adapter {
                Some(adapter) => Some(params.scope("adapters", |params| adapter.build(config, params))?),
                None => None,
            };
            let block = |layer| params.scope(&format!("layers.{layer}"), |params| Block::new(config, layer, params));
            let blocks = (0..config.n_layers).map(block).collect::<Result<Vec<_>>>()?;
            Ok((embed_VD, bigram_VD, language_VD, adapters, blocks, params.get("norm.weight", &[d], Init::One)?))
        })?;
        let head_VD = match config.tie_embeddings {
            true => None,
            false => Some(params.get("lm_head.weight", &[v, d], Init::Normal(1.0 / (d as f64).sqrt()))?),
        };
        let rope = Rope::new(config.d_head, config.rope_theta, config.context_tokens);
        let known = |name: &str| config.tie_embeddings && name == "lm_head.weight" || name.ends_with("inv_freq");
        let Built { weights, vars } = params.finish(&known)?;
        let device = device.clone();
        Ok(CodeLm {
            config: config.clone(),
            embed_VD,
            bigram_VD,
            language_VD,
            adapters,
            blocks,
            norm_D,
            head_VD,
            rope,
            weights,
            vars,
            device,
        })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Changes how what the text itself says is mixed in.
    ///
    /// # Errors
    /// [`Error::Config`] for a table of another shape.
    pub fn set_copy(&mut self, copy: Option<CopyConfig>) -> Result<()> {
        copy.as_ref().map_or(Ok(()), CopyConfig::validate)?;
        self.config.copy = copy;
        Ok(())
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All weights by checkpoint name, in a fixed order.
    pub fn weights(&self) -> &[(String, Tensor)] {
        &self.weights
    }

    /// The trainable weights by checkpoint name, in a fixed order; empty for a model that was loaded to serve.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.vars
    }

    /// Cross-entropy of a batch in nats, summed and divided by `divisor`, plus the routers' losses.
    pub fn loss(&self, batch: &Batch, divisor: f64) -> Result<LossOutput> {
        self.loss_of_share(batch, divisor, 1.0)
    }

    /// The part that a batch has in the loss of an optimizer step, of whose tokens it holds `share` (0 to 1): nats divided by
    /// `divisor`, the counted tokens of the step, plus the routers' losses, which are means over tokens, times `share`.
    pub fn loss_of_share(&self, batch: &Batch, divisor: f64, share: f64) -> Result<LossOutput> {
        let (x_ND, reports) = self.hidden_of(batch)?;
        let target_N = batch.y_BL.flatten_all()?.to_vec1::<u32>()?;
        let cross_entropy = ops::linear_cross_entropy(&x_ND, self.head(), &target_N, self.config.logit_softcap)?;
        let mut loss = (&cross_entropy.nll_sum / divisor)?;
        let mut parts = vec![cross_entropy.nll_sum.reshape(1)?];
        for aux in reports.iter().filter_map(|report| report.aux_loss.as_ref()) {
            let aux = (aux * share)?;
            loss = (loss + &aux)?;
            parts.push(aux.reshape(1)?);
        }
        let n_scalars = parts.len();
        parts.push(cross_entropy.nll_N);
        // The one read from the device.
        let parts = Tensor::cat(&parts, 0)?.detach().to_vec1::<f32>()?;
        let (scalars, nll_N) = parts.split_at(n_scalars);
        let aux_loss = scalars[1..].iter().map(|&aux| f64::from(aux)).sum();
        let nll_B = row_sums(nll_N, batch.x_BL.dim(1)?);
        let load_E = reports.into_iter().map(|report| report.load_E).collect();
        let n_tokens = cross_entropy.n_tokens;
        Ok(LossOutput { loss, nll_sum: f64::from(scalars[0]), aux_loss, nll_B, n_tokens, load_E })
    }

    /// How likely each target was. No gradient.
    pub fn scores(&self, batch: &Batch) -> Result<Scores> {
        let (x_ND, _) = self.hidden_of(batch)?;
        let target_N = batch.y_BL.flatten_all()?.to_vec1::<u32>()?;
        let (nll_N, correct_N) = ops::linear_scores(&x_ND, self.head(), &target_N, self.config.logit_softcap)?;
        Ok(Scores { nll_N, correct_N })
    }

    /// Logits of every position of one sequence, without a cache. Shape: `LV`.
    pub fn forward_logits(&self, ids: &[u32], language: u32) -> Result<Tensor> {
        let x_1L = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let language_N = vec![language; ids.len()];
        let router = RouterContext { language_N: &language_N, ..RouterContext::default() };
        let (x_LD, _) = self.hidden(&x_1L, TokenContext { router, ..TokenContext::default() })?;
        self.logits(&x_LD)
    }

    /// Share of the assignments that each expert has in each layer with experts, over the positions of one sequence.
    pub fn expert_loads(&self, ids: &[u32], language: u32) -> Result<Vec<Vec<f32>>> {
        let x_1L = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let language_N = vec![language; ids.len()];
        let router = RouterContext { language_N: &language_N, ..RouterContext::default() };
        let (_, reports) = self.hidden(&x_1L, TokenContext { router, ..TokenContext::default() })?;
        Ok(reports.into_iter().map(|report| report.load_E).collect())
    }

    /// Logits after the last of `ids`, which follow what `cache` holds; asks `cancelled` before every layer.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the caller gave up; the cache then is as before.
    pub fn decode(
        &self,
        ids: &[u32],
        language: u32,
        cache: &mut KvCache,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<f32>> {
        let held = cache.ids().len();
        if ids.is_empty() || held + ids.len() > cache.capacity() {
            let (n, capacity) = (ids.len(), cache.capacity());
            return Err(Error::Input(format!("{n} tokens after {held}: expected 1 to {}", capacity - held)));
        }
        cache.truncate(held);
        check_ids(ids, self.config.vocab_size)?;
        let language_N = vec![language; ids.len()];
        let router = RouterContext { id_N: ids, language_N: &language_N, ..RouterContext::default() };
        let context = TokenContext { router, ..TokenContext::default() };
        let ids_N = Tensor::new(ids, &Device::Cpu)?;
        let before = cache.ids().last().copied().unwrap_or(0);
        let x_LD = self.embed(&ids_N, ids, ids.len(), before)?;
        let mut x_1LD = self.add_languages(x_LD, &language_N)?.unsqueeze(0)?;
        for (layer, (block, cached)) in self.blocks.iter().zip(&mut cache.layers).enumerate() {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            (x_1LD, _) = block.forward(&x_1LD, &ids_N, &self.rope, &context, Some(cached))?;
            x_1LD = self.adapt(layer, x_1LD, &language_N)?;
        }
        cache.commit(ids);
        let last_1D = x_1LD.narrow(1, ids.len() - 1, 1)?.squeeze(1)?;
        let last_1D = ops::rms_norm(&last_1D, &self.norm_D, self.config.norm_eps)?;
        Ok(self.logits(&last_1D)?.squeeze(0)?.to_vec1()?)
    }

    /// Connects the layers of experts with the other ranks of a run, or cuts them off.
    pub fn set_exchange(&mut self, exchange: Option<Arc<dyn ExpertExchange>>) {
        for block in &mut self.blocks {
            if let Ffn::Moe(layer) = &mut block.ffn {
                layer.set_exchange(exchange.clone());
            }
        }
    }

    /// What connects the layers of experts with other ranks.
    pub(crate) fn exchange(&self) -> Option<&Arc<dyn ExpertExchange>> {
        self.blocks.iter().find_map(|block| match &block.ffn {
            Ffn::Moe(layer) => layer.exchange(),
            Ffn::Dense(_) => None,
        })
    }

    /// Of normalized states. Shape: `ND` -> `NV`.
    fn logits(&self, x_ND: &Tensor) -> Result<Tensor> {
        Ok(ops::softcap(&linear(x_ND, self.head())?, self.config.logit_softcap)?)
    }

    fn head(&self) -> &Tensor {
        self.head_VD.as_ref().unwrap_or(&self.embed_VD)
    }

    fn hidden_of(&self, batch: &Batch) -> Result<(Tensor, Vec<MoeReport>)> {
        let id_N = batch.x_BL.flatten_all()?.to_vec1::<u32>()?;
        let draw = batch.draw(&id_N, batch.x_BL.dim(1)?);
        let router = RouterContext { language_N: &batch.language_BL, ..RouterContext::default() };
        let context = TokenContext { router, draw: draw.as_ref(), start_BL: batch.start_BL.as_deref() };
        self.hidden(&batch.x_BL, context)
    }

    /// The final hidden states of ids, normalized. Shape: `BL` -> `ND`.
    fn hidden(&self, x_BL: &Tensor, context: TokenContext) -> Result<(Tensor, Vec<MoeReport>)> {
        let (b, l) = x_BL.dims2()?;
        self.check_batch(b, l, context.router.language_N.len())?;
        let ids_N = x_BL.flatten_all()?.to_device(&Device::Cpu)?;
        let ids = ids_N.to_vec1::<u32>()?;
        check_ids(&ids, self.config.vocab_size)?;
        let router = RouterContext { id_N: &ids, ..context.router };
        let context = TokenContext { router, ..context };
        let mut reports = Vec::new();
        let x_ND = self.add_languages(self.embed(&ids_N, &ids, l, 0)?, context.router.language_N)?;
        let mut x_BLD = x_ND.reshape((b, l, self.config.d_model))?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (y_BLD, report) = block.forward(&x_BLD, &ids_N, &self.rope, &context, None)?;
            x_BLD = self.adapt(layer, y_BLD, context.router.language_N)?;
            reports.extend(report);
        }
        let x_BLD = ops::rms_norm(&x_BLD, &self.norm_D, self.config.norm_eps)?;
        Ok((x_BLD.reshape((b * l, self.config.d_model))?, reports))
    }

    pub(crate) fn check_batch(&self, b: usize, l: usize, n_languages: usize) -> Result<()> {
        let context = format!("at most context_tokens = {}", self.config.context_tokens);
        check(l <= self.config.context_tokens, "sequence length", l, &context)?;
        check(n_languages == b * l, "language_BL", n_languages, &format!("{} positions", b * l))
    }

    pub(crate) fn rope(&self) -> &Rope {
        &self.rope
    }

    pub(crate) fn adapters(&self) -> Option<&dyn Adapters> {
        self.adapters.as_deref()
    }

    /// The experts of each layer that has some, with the number of the layer.
    pub(crate) fn experts_by_layer(&self) -> impl Iterator<Item = (usize, &dyn Experts)> {
        self.blocks.iter().enumerate().filter_map(|(layer, block)| match &block.ffn {
            Ffn::Moe(moe) => Some((layer, moe.experts())),
            Ffn::Dense(_) => None,
        })
    }

    /// What a layer says, with that of its adapters. Shape: `BLD`.
    fn adapt(&self, layer: usize, x_BLD: Tensor, language_N: &[u32]) -> Result<Tensor> {
        match &self.adapters {
            Some(adapters) => adapters::adapt(&**adapters, layer, &x_BLD, language_N),
            None => Ok(x_BLD),
        }
    }

    /// The routers of the layers with experts, in order.
    pub(crate) fn routers(&self) -> impl Iterator<Item = &dyn Router> {
        self.blocks.iter().filter_map(|block| match &block.ffn {
            Ffn::Moe(layer) => Some(layer.router()),
            Ffn::Dense(_) => None,
        })
    }

    /// The first hidden states of `ids`, also given as `ids_N` on the CPU, rows of `l`, whose first position follows the id `before`. Shape: `ND`.
    fn embed(&self, ids_N: &Tensor, ids: &[u32], l: usize, before: u32) -> Result<Tensor> {
        let x_ND = ops::gather_rows(&self.embed_VD, ids_N)?;
        let Some(bigram_VD) = &self.bigram_VD else { return Ok(x_ND) };
        let buckets = bigram_VD.dim(0)? as u32;
        let last = |n: usize| if n.is_multiple_of(l) { before } else { ids[n - 1] };
        let bucket_N: Vec<u32> = (0..ids.len()).map(|n| bigram_bucket(last(n), ids[n], buckets)).collect();
        Ok((x_ND + ops::gather_rows(bigram_VD, &Tensor::new(bucket_N, &Device::Cpu)?)?)?)
    }

    /// Shape: `ND`.
    fn add_languages(&self, x_ND: Tensor, language_N: &[u32]) -> Result<Tensor> {
        let Some(language_VD) = &self.language_VD else { return Ok(x_ND) };
        let row_N = language_rows(language_N, self.config.languages.len())?;
        Ok((x_ND + ops::gather_rows(language_VD, &Tensor::new(row_N, &Device::Cpu)?)?)?)
    }
}

/// The sum of each row of `l` tokens.
pub(crate) fn row_sums(nll_N: &[f32], l: usize) -> Vec<f64> {
    nll_N.chunks(l.max(1)).map(|nll_L| nll_L.iter().map(|&nll| f64::from(nll)).sum()).collect()
}

pub(crate) fn check_ids(ids: &[u32], v: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= v) {
        Some(id) => Err(Error::Input(format!("token id {id}: expected one below vocab_size = {v}"))),
        None => Ok(()),
    }
}

/// The row of each token in the table of `n` languages and, after them, the unknown one.
pub(crate) fn language_rows(language_N: &[u32], n: usize) -> Result<Vec<u32>> {
    let row = |&language: &u32| match language {
        UNKNOWN_LANGUAGE => Ok(n as u32),
        language if (language as usize) < n => Ok(language),
        language => Err(Error::Input(format!("language index {language}: expected one below {n}"))),
    };
    language_N.iter().map(row).collect()
}

/// The row of two consecutive ids in the bigram table, by Fibonacci hashing (Knuth, TAOCP vol. 3, §6.4).
pub(crate) fn bigram_bucket(last: u32, id: u32, buckets: u32) -> u32 {
    let pair = u64::from(last) << 32 | u64::from(id);
    ((pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % u64::from(buckets)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::ops::tests::{BF16, assert_close, composed, values};
    use crate::router::RouterConfig;

    /// A model with both tables, which begin with zeros, filled.
    fn with_tables() -> CodeLm {
        let mut config = tiny(Some(RouterConfig::all().remove(1)));
        (config.bigram_buckets, config.value_embedding_layers) = (64, vec![1]);
        config.language_embedding = true;
        let lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
        for (name, var) in lm.parameters() {
            if name.contains("bigrams") || name.contains("languages") || name.contains("value_embedding") {
                var.set(&values(var.dims(), 5)).unwrap();
            }
        }
        lm
    }

    #[test]
    fn tables_decode_as_they_train() {
        let lm = with_tables();
        let ids = [5u32, 9, 11, 5, 9, 70, 3];
        let all_LV = lm.forward_logits(&ids, 1).unwrap();
        let mut cache = KvCache::new(lm.config(), &Device::Cpu).unwrap();
        for (start, end) in [(0, 3), (3, 4), (4, 7)] {
            let logits = lm.decode(&ids[start..end], 1, &mut cache, &|| false).unwrap();
            let logits_V = Tensor::new(logits, &Device::Cpu).unwrap();
            assert_close(&logits_V, &all_LV.get(end - 1).unwrap(), "logits");
        }
    }

    #[test]
    fn the_configuration_counts_every_parameter() {
        for lm in [with_tables(), CodeLm::init(&tiny(None), 1, &Device::Cpu).unwrap()] {
            let n: usize = lm.parameters().iter().map(|(_, var)| var.elem_count()).sum();
            assert_eq!(lm.config().n_parameters(), n);
        }
    }

    fn batch() -> Batch {
        let ids = |seed: u32| Tensor::new(vec![(0..12).map(|i| i * 7 % 90 + seed).collect::<Vec<u32>>()], &Device::Cpu);
        let language_BL = (0..12).map(|i| i % 3).collect();
        Batch { x_BL: ids(1).unwrap(), y_BL: ids(2).unwrap(), language_BL, start_BL: None, training: None }
    }

    #[test]
    fn every_trained_weight_has_a_gradient() {
        let lm = with_tables();
        let grads = lm.loss(&batch(), 12.0).unwrap().loss.backward().unwrap();
        for (name, var) in lm.parameters() {
            // The fourth expert belongs to no language.
            assert_eq!(grads.get(var).is_some(), !name.contains("experts.3."), "{name}");
        }
    }

    #[test]
    fn composed_bf16_products_train_nearly_as_float32_does() {
        let lm = with_tables();
        let run = |bf16: bool| {
            BF16.set(bf16);
            let output = composed(|| lm.loss(&batch(), 12.0).unwrap());
            BF16.set(false);
            (output.nll_sum, output.loss.backward().unwrap())
        };
        let ((nll_sum, grads), (nll_ref, grads_ref)) = (run(true), run(false));
        assert!(nll_sum != nll_ref && (nll_sum - nll_ref).abs() < 0.01 * nll_ref, "{nll_sum} {nll_ref}");
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        for (name, var) in lm.parameters() {
            let Some((grad, grad_ref)) = grads.get(var).zip(grads_ref.get(var)) else { continue };
            let difference = norm(&(grad - grad_ref).unwrap());
            assert!(difference < 0.03 * norm(grad_ref), "{name}: {difference} of {}", norm(grad_ref));
        }
    }

    #[test]
    fn composed_operations_train_as_the_fused_do() {
        for router in RouterConfig::all() {
            let mut config = tiny(Some(router));
            (config.bigram_buckets, config.value_embedding_layers) = (64, vec![1]);
            let lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
            let run = || {
                let output = lm.loss(&batch(), 12.0).unwrap();
                (output.nll_sum, output.aux_loss, output.loss.backward().unwrap())
            };
            let ((nll_sum, aux_loss, grads), (nll_ref, aux_ref, grads_ref)) = (composed(run), run());
            assert!((nll_sum - nll_ref).abs() < 1e-3 && (aux_loss - aux_ref).abs() < 1e-6, "{nll_sum} {nll_ref}");
            for (name, var) in lm.parameters() {
                match (grads.get(var), grads_ref.get(var)) {
                    (Some(grad), Some(grad_ref)) => assert_close(grad, grad_ref, name),
                    (grad, grad_ref) => assert_eq!(grad.is_some(), grad_ref.is_some(), "{name}"),
                }
            }
        }
    }
}
