//! The folder format: `config.json`, `model.safetensors`, `tokenizer.json`; ours, and Qwen2-, Qwen3- and Llama-shaped ones.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::bundle::{Bundle, BundleInfo};
use crate::config::{Activation, ModelConfig};
use crate::error::{Error, Result};
use crate::lm::CodeLm;
use crate::params::Params;
use crate::tokenizer::Tokenizer;

const MODEL_TYPE: &str = "multicoder";

/// Writes the three files of a checkpoint into `dir`, which must exist.
pub fn save_folder(lm: &CodeLm, tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let mut config = serde_json::to_value(lm.config()).map_err(|e| Error::file(dir, e))?;
    config["model_type"] = Value::from(MODEL_TYPE);
    let path = dir.join("config.json");
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::file(&path, e))?;
    std::fs::write(&path, text + "\n").map_err(|e| Error::file(&path, e))?;
    let tensors: HashMap<String, Tensor> = lm.weights().iter().cloned().collect();
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors"))?;
    tokenizer.save(&dir.join("tokenizer.json"))
}

/// Reads a checkpoint folder to serve it.
pub fn load_folder(dir: &Path, device: &Device) -> Result<Bundle> {
    let (lm, tokenizer, info) = load_parts(dir, device)?;
    Bundle::new(lm, tokenizer, info)
}

/// What a checkpoint folder holds of a bundle.
pub(crate) fn load_parts(dir: &Path, device: &Device) -> Result<(CodeLm, Tokenizer, BundleInfo)> {
    let lm = load_lm(dir, false, device)?;
    let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json"))?;
    let info = BundleInfo::new(lm.config(), &dir.display().to_string(), "f32");
    Ok((lm, tokenizer, info))
}

/// Reads a checkpoint folder's model; a trainable one keeps what a backward pass needs.
pub fn load_lm(dir: &Path, trainable: bool, device: &Device) -> Result<CodeLm> {
    let config = load_config(&dir.join("config.json"))?;
    let (tensors, origin) = load_tensors(dir, device)?;
    CodeLm::new(&config, Params::from_tensors(tensors, &origin, trainable, device), device)
}

fn load_config(path: &Path) -> Result<ModelConfig> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    let mut json: Value = serde_json::from_str(&text).map_err(|e| Error::file(path, e))?;
    let model_type = json["model_type"].as_str().unwrap_or("none").to_string();
    match model_type.as_str() {
        MODEL_TYPE => {
            json.as_object_mut().map(|fields| fields.remove("model_type"));
            serde_json::from_value(json).map_err(|e| Error::file(path, e))
        }
        "qwen2" | "qwen3" | "llama" => {
            from_hugging_face(&json, &model_type).map_err(|reason| Error::file(path, reason))
        }
        other => Err(Error::file(path, format!("model_type {other}: expected {MODEL_TYPE}, qwen2, qwen3 or llama"))),
    }
}

/// Reads the fields of a `transformers` configuration.
fn from_hugging_face(json: &Value, model_type: &str) -> std::result::Result<ModelConfig, String> {
    let size = |name: &str| match json[name].as_u64() {
        Some(value) => Ok(value as usize),
        None => Err(format!("{name} = {}: expected a number", json[name])),
    };
    let expect = |name: &str, ok: bool, expected: &str| match ok {
        true => Ok(()),
        false => Err(format!("{name} = {}: expected {expected}", json[name])),
    };
    let act = json["hidden_act"].as_str().unwrap_or("silu");
    expect("hidden_act", act == "silu", "silu")?;
    expect("use_sliding_window", json["use_sliding_window"].as_bool() != Some(true), "false")?;
    let rope = if json["rope_parameters"].is_object() { &json["rope_parameters"] } else { &json["rope_scaling"] };
    let rope_type = rope["rope_type"].as_str().or(rope["type"].as_str()).unwrap_or("default");
    if rope_type != "default" {
        return Err(format!("rope_type = {rope_type:?}: expected \"default\""));
    }
    let (d_model, n_heads) = (size("hidden_size")?, size("num_attention_heads")?);
    let bias = json["attention_bias"].as_bool().unwrap_or(model_type == "qwen2");
    expect("attention_bias", model_type == "qwen2" || !bias, "false")?;
    Ok(ModelConfig {
        vocab_size: size("vocab_size")?,
        d_model,
        n_layers: size("num_hidden_layers")?,
        n_heads,
        n_kv_heads: size("num_key_value_heads").unwrap_or(n_heads),
        d_head: size("head_dim").unwrap_or(d_model / n_heads.max(1)),
        d_ff: size("intermediate_size")?,
        activation: Activation::Swiglu,
        context_tokens: size("max_position_embeddings")?.min(8192),
        rope_theta: rope["rope_theta"].as_f64().or(json["rope_theta"].as_f64()).unwrap_or(10_000.0),
        norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6),
        qk_norm: model_type == "qwen3",
        qkv_bias: model_type == "qwen2",
        tie_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(false),
        logit_softcap: json["final_logit_softcapping"].as_f64().unwrap_or(0.0) as f32,
        bigram_buckets: 0,
        language_embedding: false,
        value_embedding_layers: Vec::new(),
        languages: Vec::new(),
        moe: None,
        adapter: None,
        copy: None,
    })
}

/// The weights of one file or of the files that an index names, and what to call them in errors.
fn load_tensors(dir: &Path, device: &Device) -> Result<(HashMap<String, Tensor>, String)> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    let mut files = vec![single.clone()];
    if !single.exists() && index.exists() {
        let text = std::fs::read_to_string(&index).map_err(|e| Error::file(&index, e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| Error::file(&index, e))?;
        let map =
            json["weight_map"].as_object().ok_or_else(|| Error::file(&index, "weight_map: expected an object"))?;
        let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
        names.sort_unstable();
        names.dedup();
        files = names.into_iter().map(|name| dir.join(name)).collect();
    }
    let mut tensors = HashMap::new();
    for file in &files {
        if !file.exists() {
            return Err(Error::file(file, "no such file"));
        }
        tensors.extend(candle_core::safetensors::load(file, device).map_err(|e| Error::file(file, e))?);
    }
    Ok((tensors, dir.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::router::RouterConfig;
    use crate::tokenizer::tests::toy;

    #[test]
    fn a_folder_round_trip_keeps_every_logit() {
        let tokenizer = toy();
        for router in RouterConfig::all().into_iter().filter(RouterConfig::is_causal) {
            let mut config = tiny(Some(router));
            config.vocab_size = tokenizer.vocab_size();
            let lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
            let dir = tempfile::tempdir().unwrap();
            save_folder(&lm, &tokenizer, dir.path()).unwrap();
            let again = load_folder(dir.path(), &Device::Cpu).unwrap();
            assert_eq!(again.lm.config(), &config);
            let logits = |lm: &CodeLm| {
                lm.forward_logits(&[1, 5, 9], 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(logits(&lm), logits(&again.lm));
        }
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        let dir = tempfile::tempdir().unwrap();
        let message = |json: &str| {
            std::fs::write(dir.path().join("config.json"), json).unwrap();
            load_config(&dir.path().join("config.json")).unwrap_err().to_string()
        };
        assert!(message(r#"{"model_type": "bert"}"#).contains("config.json: model_type bert: expected multicoder"));
        assert!(message(r#"{"model_type": "llama", "hidden_act": "gelu"}"#).contains("hidden_act = \"gelu\""));
        assert!(message(r#"{"model_type": "llama"}"#).contains("hidden_size = null: expected a number"));
        assert!(message(r#"{"model_type": "multicoder", "d_modle": 3}"#).contains("d_modle"));
    }
}
