//! A model as llama.cpp reads it: a GGUF file of architecture `llama`, `qwen2` or `qwen3`.
//!
//! What a language's tokens pass through is an ordinary decoder where the language chooses the expert: the shared expert and the
//! language's own, both with weight 1, are one network as wide as both. Options of the network that those architectures do not have are
//! named in errors. What is beside the network stays here: the copy component, and how text is split into tokens.

use std::io::Cursor;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};

use crate::config::{Activation, ModelConfig, check};
use crate::decoder::GgufWeights;
use crate::error::{Error, Result};
use crate::lm::CodeLm;
use crate::router::RouterConfig;
use crate::router::pl_shared::Combine;
use crate::tokenizer::Tokenizer;

/// How weights are stored; vectors stay float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlamaFormat {
    F32,
    F16,
    Q8_0,
    Q4_0,
    /// Superblocks of 256 values where rows are whole ones, `Q4_0` elsewhere.
    Q4K,
}

/// The file of a model, for one of its languages if it has experts.
///
/// # Errors
/// [`Error::Config`] with the first option that llama.cpp's architectures do not have; a language that is missing or unknown.
pub fn to_bytes(
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    name: &str,
    language: Option<&str>,
    format: LlamaFormat,
) -> Result<Vec<u8>> {
    check_exportable(lm.config())?;
    let sliced = match (&lm.config().moe, language) {
        (None, _) => None,
        (Some(_), Some(language)) => Some(lm.extract(&[language.to_owned()])?),
        (Some(_), None) => return Err(Error::Input("a model with experts: expected a language".into())),
    };
    let lm = sliced.as_ref().unwrap_or(lm);
    let weights = Weights { lm, architecture: architecture(lm.config()) };
    let mut tensors = Vec::new();
    for (name, tensor) in weights.all()? {
        let dtype = dtype(format, &tensor);
        tensors.push((name, QTensor::quantize(&tensor, dtype)?));
    }
    let mut metadata = metadata(lm.config(), weights.architecture, name, &weights)?;
    metadata.extend(vocabulary(tokenizer, lm.config().vocab_size)?);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut cursor = Cursor::new(Vec::new());
    gguf_file::write(&mut cursor, &metadata, &tensors)?;
    Ok(cursor.into_inner())
}

/// The weights as they are in a file of that format, by the names that they have in a checkpoint.
///
/// # Errors
/// No memory.
pub fn weights(lm: &CodeLm, format: LlamaFormat) -> Result<GgufWeights> {
    let quantize = |(_, weight): &(String, Tensor)| QTensor::quantize(weight, dtype(format, weight));
    let quantized = lm.weights().iter().map(quantize).collect::<candle_core::Result<Vec<_>>>()?;
    let tensors: Vec<(&str, &QTensor)> = lm.weights().iter().map(|(name, _)| name.as_str()).zip(&quantized).collect();
    let mut cursor = Cursor::new(Vec::new());
    gguf_file::write(&mut cursor, &[], &tensors)?;
    GgufWeights::open(Arc::new(cursor.into_inner()), "the weights for llama.cpp")
}

fn check_exportable(config: &ModelConfig) -> Result<()> {
    let activation = format!("{:?}", config.activation).to_lowercase();
    check(config.activation == Activation::Swiglu, "activation", activation, "swiglu, which llama.cpp has")?;
    check(config.bigram_buckets == 0, "bigram_buckets", config.bigram_buckets, "0: llama.cpp has no such table")?;
    let tables = format!("{:?}", config.value_embedding_layers);
    check(config.value_embedding_layers.is_empty(), "value_embedding_layers", tables, "none")?;
    check(!config.language_embedding, "language_embedding", config.language_embedding, "false")?;
    check(config.logit_softcap == 0.0, "logit_softcap", config.logit_softcap, "0")?;
    check(config.adapter.is_none(), "adapter", "adapters", "none")?;
    check(!(config.qk_norm && config.qkv_bias), "qk_norm, qkv_bias", "both", "one of them at most")?;
    let Some(moe) = &config.moe else { return Ok(()) };
    let is_plain = moe.modifiers.is_empty() && moe.expert_param.is_plain();
    let is_unit = match &moe.router {
        RouterConfig::PlHard(_) => true,
        RouterConfig::PlShared(spec) => spec.combine == Combine::Sum,
        _ => false,
    };
    let expected = "pl_hard, or pl_shared with combine = \"sum\", without modifiers";
    check(is_plain && is_unit, "moe.router", moe.router.name(), expected)
}

fn architecture(config: &ModelConfig) -> &'static str {
    match (config.qk_norm, config.qkv_bias) {
        (true, _) => "qwen3",
        (_, true) => "qwen2",
        _ => "llama",
    }
}

fn dtype(format: LlamaFormat, tensor: &Tensor) -> GgmlDType {
    let is_matrix = tensor.rank() == 2;
    let is_whole = |block: usize| is_matrix && tensor.dims()[1].is_multiple_of(block);
    match format {
        LlamaFormat::Q8_0 if is_whole(32) => GgmlDType::Q8_0,
        LlamaFormat::Q4K if is_whole(256) => GgmlDType::Q4K,
        LlamaFormat::Q4_0 | LlamaFormat::Q4K if is_whole(32) => GgmlDType::Q4_0,
        LlamaFormat::F16 if is_matrix => GgmlDType::F16,
        _ => GgmlDType::F32,
    }
}

struct Weights<'a> {
    lm: &'a CodeLm,
    architecture: &'static str,
}

impl Weights<'_> {
    fn find(&self, name: &str) -> Option<&Tensor> {
        self.lm.weights().iter().find(|(known, _)| known == name).map(|(_, weight)| weight)
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.find(name).ok_or_else(|| Error::Input(format!("no weight {name} in the model")))
    }

    /// All tensors under llama.cpp's names.
    fn all(&self) -> Result<Vec<(String, Tensor)>> {
        let config = self.lm.config();
        let mut all = vec![
            ("token_embd.weight".to_owned(), self.get("model.embed_tokens.weight")?.clone()),
            ("output_norm.weight".to_owned(), self.get("model.norm.weight")?.clone()),
        ];
        if !config.tie_embeddings {
            all.push(("output.weight".to_owned(), self.get("lm_head.weight")?.clone()));
        }
        for layer in 0..config.n_layers {
            let (ours, theirs) = (format!("model.layers.{layer}"), format!("blk.{layer}"));
            let mut push = |name: &str, tensor: Tensor| all.push((format!("{theirs}.{name}"), tensor));
            push("attn_norm.weight", self.get(&format!("{ours}.input_layernorm.weight"))?.clone());
            push("ffn_norm.weight", self.get(&format!("{ours}.post_attention_layernorm.weight"))?.clone());
            push("attn_output.weight", self.get(&format!("{ours}.self_attn.o_proj.weight"))?.clone());
            for (projection, heads) in [("q", config.n_heads), ("k", config.n_kv_heads), ("v", 0)] {
                let weight = self.get(&format!("{ours}.self_attn.{projection}_proj.weight"))?;
                push(&format!("attn_{projection}.weight"), self.turned(weight, heads)?);
                if let Some(bias) = self.find(&format!("{ours}.self_attn.{projection}_proj.bias")) {
                    push(&format!("attn_{projection}.bias"), bias.clone());
                }
                if let Some(norm) = self.find(&format!("{ours}.self_attn.{projection}_norm.weight")) {
                    push(&format!("attn_{projection}_norm.weight"), norm.clone());
                }
            }
            for (projection, their_name) in [("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down")] {
                push(&format!("ffn_{their_name}.weight"), self.network(layer, projection)?);
            }
        }
        Ok(all)
    }

    /// Rows of heads as the architecture rotates them: `llama` turns neighbours, all others (and we) the halves of a head.
    fn turned(&self, weight: &Tensor, heads: usize) -> Result<Tensor> {
        if self.architecture != "llama" || heads == 0 {
            return Ok(weight.clone());
        }
        let (rows, d) = weight.dims2()?;
        let halves = weight.reshape((heads, 2, rows / heads / 2, d))?;
        Ok(halves.transpose(1, 2)?.contiguous()?.reshape((rows, d))?)
    }

    /// A matrix of the layer's network: shared expert and own one side by side.
    fn network(&self, layer: usize, projection: &str) -> Result<Tensor> {
        let name = format!("model.layers.{layer}.mlp");
        if !self.lm.config().is_moe_layer(layer) {
            return Ok(self.get(&format!("{name}.{projection}.weight"))?.clone());
        }
        let own = self.get(&format!("{name}.experts.0.{projection}.weight"))?;
        match self.find(&format!("{name}.shared_expert.{projection}.weight")) {
            // Hidden values are rows of the first matrices and columns of the last.
            Some(shared) => Ok(Tensor::cat(&[shared, own], usize::from(projection == "down_proj"))?),
            None => Ok(own.clone()),
        }
    }
}

fn metadata(config: &ModelConfig, architecture: &str, name: &str, weights: &Weights) -> Result<Vec<(String, Value)>> {
    let number = |n: usize| Value::U32(n as u32);
    let widths: Vec<usize> =
        (0..config.n_layers).map(|layer| Ok(weights.network(layer, "up_proj")?.dim(0)?)).collect::<Result<_>>()?;
    let width = match widths.iter().all(|width| *width == widths[0]) {
        true => number(widths[0]),
        false => Value::Array(widths.into_iter().map(number).collect()),
    };
    let own = [
        ("context_length", number(config.context_tokens)),
        ("embedding_length", number(config.d_model)),
        ("block_count", number(config.n_layers)),
        ("feed_forward_length", width),
        ("attention.head_count", number(config.n_heads)),
        ("attention.head_count_kv", number(config.n_kv_heads)),
        ("attention.key_length", number(config.d_head)),
        ("attention.value_length", number(config.d_head)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps as f32)),
        ("rope.dimension_count", number(config.d_head)),
        ("rope.freq_base", Value::F32(config.rope_theta as f32)),
        ("vocab_size", number(config.vocab_size)),
    ];
    let mut all = vec![
        ("general.architecture".to_owned(), Value::String(architecture.to_owned())),
        ("general.name".to_owned(), Value::String(name.to_owned())),
    ];
    all.extend(own.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)));
    Ok(all)
}

/// The tokens as byte-level BPE has them. Rows of the embedding without a token are marked as unused.
fn vocabulary(tokenizer: &Tokenizer, n_rows: usize) -> Result<Vec<(String, Value)>> {
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    const UNUSED: i32 = 5;
    let json: serde_json::Value =
        serde_json::from_str(&tokenizer.to_json()?).map_err(|e| Error::Tokenizer(e.to_string()))?;
    let mut tokens: Vec<String> = (0..n_rows).map(|id| format!("<unused {id}>")).collect();
    let mut kinds = vec![UNUSED; n_rows];
    let mut put = |token: &str, id: Option<u64>, kind: i32| {
        if let Some(id) = id.map(|id| id as usize).filter(|id| *id < n_rows) {
            (tokens[id], kinds[id]) = (token.to_owned(), kind);
        }
    };
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        put(token, id.as_u64(), NORMAL);
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        put(added["content"].as_str().unwrap_or_default(), added["id"].as_u64(), CONTROL);
    }
    let merge = |merge: &serde_json::Value| match merge.as_array().map(Vec::as_slice) {
        Some([left, right]) => format!("{} {}", left.as_str().unwrap_or_default(), right.as_str().unwrap_or_default()),
        _ => merge.as_str().unwrap_or_default().to_owned(),
    };
    let merges = json["model"]["merges"].as_array().into_iter().flatten().map(|of| Value::String(merge(of)));
    let end = tokenizer.special().end_of_text;
    Ok(vec![
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre".to_owned(), Value::String("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens.into_iter().map(Value::String).collect())),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(kinds.into_iter().map(Value::I32).collect())),
        ("tokenizer.ggml.merges".to_owned(), Value::Array(merges.collect())),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(end)),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(end)),
        ("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MoeLayers;
    use crate::config::tests::tiny;
    use crate::decoder::WeightSource;
    use crate::params::Params;
    use crate::tokenizer::tests::toy;
    use candle_core::Device;
    use std::collections::HashMap;

    fn read(bytes: &[u8]) -> gguf_file::Content {
        gguf_file::Content::read(&mut Cursor::new(bytes)).unwrap()
    }

    fn config(router: usize) -> ModelConfig {
        let mut config = tiny(Some(RouterConfig::all().remove(router)));
        config.vocab_size = toy().vocab_size() + 3;
        config
    }

    #[test]
    fn shared_and_own_expert_become_one_network_of_the_language() {
        let lm = CodeLm::init(&config(1), 3, &Device::Cpu).unwrap();
        let bytes = to_bytes(&lm, &toy(), "toy", Some("lua"), LlamaFormat::F32).unwrap();
        let content = read(&bytes);
        let number = |key: &str| content.metadata[key].clone();
        assert!(matches!(number("general.architecture"), Value::String(name) if name == "llama"));
        // A dense layer of 48, and one of 16 shared and 16 own.
        let Value::Array(widths) = number("llama.feed_forward_length") else { panic!("no widths") };
        assert_eq!(widths.iter().map(|width| width.to_u32().unwrap()).collect::<Vec<_>>(), [48, 32]);
        let tensor = |name: &str| {
            content.tensor(&mut Cursor::new(&bytes), name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap()
        };
        let down_DF = tensor("blk.1.ffn_down.weight");
        let find = |name: &str| lm.parameters().iter().find(|(known, _)| known == name).unwrap().1.as_tensor().clone();
        let own = find("model.layers.1.mlp.experts.1.down_proj.weight");
        let got = down_DF.narrow(1, 16, 16).unwrap();
        assert_eq!(got.to_vec2::<f32>().unwrap(), own.to_vec2::<f32>().unwrap());
        // Heads of 8: rows 0, 4, 1, 5, ... of ours.
        let (theirs, ours) = (tensor("blk.0.attn_q.weight"), find("model.layers.0.self_attn.q_proj.weight"));
        let row = |of: &Tensor, row: usize| of.get(row).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((row(&theirs, 1), row(&theirs, 2), row(&theirs, 9)), (row(&ours, 4), row(&ours, 1), row(&ours, 12)));
        let Value::Array(tokens) = number("tokenizer.ggml.tokens") else { panic!("no tokens") };
        assert_eq!(tokens.len(), lm.config().vocab_size);
    }

    /// The file read as what it says that it is: a dense model.
    #[test]
    fn a_languages_slice_has_the_logits_of_the_model() {
        for router in [0, 1] {
            let mut config = config(router);
            config.moe.as_mut().unwrap().layers = MoeLayers::EveryN(1);
            let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
            let bytes = to_bytes(&lm, &toy(), "toy", Some("lua"), LlamaFormat::F32).unwrap();
            let content = read(&bytes);
            let moe = config.moe.take().unwrap();
            config.d_ff = moe.d_ff_expert + moe.d_ff_shared;
            config.languages.clear();
            let d_head = config.d_head;
            let tensor = |name: &str| {
                let tensor = content.tensor(&mut Cursor::new(&bytes), name, &Device::Cpu).unwrap();
                tensor.dequantize(&Device::Cpu).unwrap()
            };
            // Pairs that are turned lie side by side there and half a head apart here.
            let halves = |w: Tensor| {
                let (rows, d) = w.dims2().unwrap();
                let pairs = w.reshape((rows / d_head, d_head / 2, 2, d)).unwrap();
                pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, d)).unwrap()
            };
            let mut tensors = HashMap::new();
            for (ours, theirs) in [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm")] {
                tensors.insert(format!("{ours}.weight"), tensor(&format!("{theirs}.weight")));
            }
            let names = [
                ("input_layernorm", "attn_norm"),
                ("self_attn.q_proj", "attn_q"),
                ("self_attn.k_proj", "attn_k"),
                ("self_attn.v_proj", "attn_v"),
                ("self_attn.o_proj", "attn_output"),
                ("post_attention_layernorm", "ffn_norm"),
                ("mlp.gate_proj", "ffn_gate"),
                ("mlp.up_proj", "ffn_up"),
                ("mlp.down_proj", "ffn_down"),
            ];
            for layer in 0..config.n_layers {
                for (ours, theirs) in names {
                    let w = tensor(&format!("blk.{layer}.{theirs}.weight"));
                    let w = if matches!(theirs, "attn_q" | "attn_k") { halves(w) } else { w };
                    tensors.insert(format!("model.layers.{layer}.{ours}.weight"), w);
                }
            }
            let params = Params::from_tensors(tensors, "the file", false, &Device::Cpu);
            let dense = CodeLm::new(&config, params, &Device::Cpu).unwrap();
            let ids = [3, 1, 4, 1, 5, 9, 2, 6];
            let expected = lm.forward_logits(&ids, 1).unwrap();
            let error = (dense.forward_logits(&ids, 0).unwrap() - expected).unwrap().abs().unwrap().max_all().unwrap();
            assert!(error.to_scalar::<f32>().unwrap() < 1e-5, "{}: {error}", moe.router.name());
        }
    }

    #[test]
    fn weights_by_our_names_are_those_of_the_file() {
        let mut config = config(0);
        (config.moe, config.languages, config.d_ff) = (None, Vec::new(), 256);
        let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
        let mut seen = Vec::new();
        for format in [LlamaFormat::Q8_0, LlamaFormat::Q4_0, LlamaFormat::Q4K, LlamaFormat::F16] {
            let bytes = to_bytes(&lm, &toy(), "toy", None, format).unwrap();
            let tensor = read(&bytes).tensor(&mut Cursor::new(&bytes), "blk.0.ffn_down.weight", &Device::Cpu).unwrap();
            let expected = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let own = weights(&lm, format).unwrap();
            let own = own.floats("model.layers.0.mlp.down_proj.weight", &[config.d_model, config.d_ff]).unwrap();
            assert_eq!(own, expected, "{format:?}");
            assert!(!seen.contains(&own), "{format:?}");
            seen.push(own);
        }
    }

    #[test]
    fn options_that_llama_cpp_lacks_are_named() {
        let error = |edit: fn(&mut ModelConfig), language: Option<&str>| {
            let mut config = config(0);
            edit(&mut config);
            let lm = CodeLm::init(&config, 3, &Device::Cpu).unwrap();
            to_bytes(&lm, &toy(), "toy", language, LlamaFormat::Q8_0).unwrap_err().to_string()
        };
        assert!(error(|config| config.bigram_buckets = 8, Some("lua")).contains("bigram_buckets = 8: expected 0"));
        assert!(error(|config| config.activation = Activation::Relu2, Some("lua")).contains("activation = relu2"));
        assert!(
            error(|config| config.moe.as_mut().unwrap().router = RouterConfig::all().remove(4), Some("lua"))
                .contains("moe.router = token: expected pl_hard")
        );
        assert!(error(|_| (), None).contains("expected a language"));
        assert!(error(|_| (), Some("cobol")).contains("cobol"));
    }
}
