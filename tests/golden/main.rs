//! Our decoder against the reference implementation: logits, token ids, loss and gradients of tiny Hugging Face checkpoints.
//!
//! `make_golden.py` beside this file made the numbers and says what is in the folders.

#![allow(non_snake_case)]

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use multicoder_model::checkpoint::load_lm;
use multicoder_model::{Batch, Bundle, UNKNOWN_LANGUAGE};
use multicoder_tests::repository_root;
use std::collections::HashMap;
use std::path::PathBuf;

/// Largest difference of a logit. The reference computes in float32 with sums in another order.
const MAX_LOGIT_DIFFERENCE: f32 = 1e-4;
/// Largest relative difference of a gradient's norm.
const MAX_NORM_DIFFERENCE: f64 = 1e-3;

struct Golden {
    bundle: Bundle,
    tensors: HashMap<String, Tensor>,
    facts: serde_json::Value,
}

fn folder(name: &str) -> PathBuf {
    repository_root().join("tests/golden").join(name)
}

fn load(name: &str) -> Result<Golden> {
    let folder = folder(name);
    let bundle = Bundle::load(&folder.join("checkpoint"), &Device::Cpu).with_context(|| format!("loading {name}"))?;
    let tensors = candle_core::safetensors::load(folder.join("golden.safetensors"), &Device::Cpu)?;
    let facts = serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json"))?)?;
    Ok(Golden { bundle, tensors, facts })
}

impl Golden {
    fn ids(&self, sequence: usize) -> Result<Vec<u32>> {
        let ids = self.tensors.get(&format!("ids_{sequence}")).context("ids")?.to_vec1::<i64>()?;
        ids.into_iter().map(|id| u32::try_from(id).context("a token id")).collect()
    }

    fn check_logits(&self) -> Result<()> {
        for sequence in 0..3 {
            let expected_LV = &self.tensors[&format!("logits_{sequence}")];
            let got_LV = self.bundle.lm.forward_logits(&self.ids(sequence)?, UNKNOWN_LANGUAGE)?;
            ensure!(got_LV.dims() == expected_LV.dims(), "shape {:?}, not {:?}", got_LV.dims(), expected_LV.dims());
            let difference = (got_LV - expected_LV)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            ensure!(difference < MAX_LOGIT_DIFFERENCE, "sequence {sequence}: logits differ by {difference}");
        }
        Ok(())
    }

    fn check_token_ids(&self) -> Result<()> {
        for case in self.facts["texts"].as_array().context("texts")? {
            let text = case["text"].as_str().context("text")?;
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
            let got = self.bundle.tokenizer.encode(text)?;
            ensure!(got == expected, "{text:?} gives {got:?}, the reference gives {expected:?}");
            ensure!(self.bundle.tokenizer.decode(&got) == text, "{text:?} does not survive");
        }
        Ok(())
    }

    fn check_loss_and_gradients(&self, name: &str) -> Result<()> {
        let lm = load_lm(&folder(name).join("checkpoint"), true, &Device::Cpu)?;
        let ids = self.ids(0)?;
        let n_predicted = ids.len() - 1;
        let row = |ids: &[u32]| Tensor::new(ids, &Device::Cpu)?.unsqueeze(0);
        let (x_BL, y_BL) = (row(&ids[..n_predicted])?, row(&ids[1..])?);
        let batch =
            Batch { x_BL, y_BL, language_BL: vec![UNKNOWN_LANGUAGE; n_predicted], start_BL: None, training: None };
        let output = lm.loss(&batch, n_predicted as f64)?;
        let expected = self.facts["mean_loss_0"].as_f64().context("mean_loss_0")?;
        let got = f64::from(output.loss.to_scalar::<f32>()?);
        ensure!((got - expected).abs() < 1e-4, "loss {got}, the reference has {expected}");

        let gradients = output.loss.backward()?;
        let mut got = Vec::new();
        for (name, parameter) in lm.parameters() {
            let gradient = gradients.get(parameter).with_context(|| format!("no gradient reaches {name}"))?;
            got.push((f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt(), name.clone()));
        }
        check_norms(got, &self.facts["gradient_norms_0"])
    }
}

/// Compares norms in the order of their size: our parameters need not be called as the reference calls them.
fn check_norms(mut got: Vec<(f64, String)>, expected: &serde_json::Value) -> Result<()> {
    let expected: HashMap<String, f64> = serde_json::from_value(expected.clone())?;
    let mut expected: Vec<(f64, String)> = expected.into_iter().map(|(name, norm)| (norm, name)).collect();
    ensure!(got.len() == expected.len(), "{} parameters, the reference has {}", got.len(), expected.len());
    got.sort_by(|left, right| left.0.total_cmp(&right.0));
    expected.sort_by(|left, right| left.0.total_cmp(&right.0));
    for ((got, our_name), (expected, name)) in got.iter().zip(&expected) {
        let relative = (got - expected).abs() / expected;
        ensure!(
            relative < MAX_NORM_DIFFERENCE,
            "gradient of {our_name}: norm {got}, the reference has {expected} ({name})"
        );
    }
    Ok(())
}

fn check(name: &str) -> Result<()> {
    let golden = load(name)?;
    golden.check_token_ids().with_context(|| format!("{name}: tokenizer"))?;
    golden.check_logits().with_context(|| format!("{name}: logits"))?;
    golden.check_loss_and_gradients(name).with_context(|| format!("{name}: loss and gradients"))
}

#[test]
fn qwen2_equals_the_reference() -> Result<()> {
    check("qwen2")
}

#[test]
fn llama_equals_the_reference() -> Result<()> {
    check("llama")
}

#[test]
fn qwen3_equals_the_reference() -> Result<()> {
    check("qwen3")
}

/// A checkpoint that needs what we do not have is refused with its name, never loaded as something else.
#[test]
fn unsupported_checkpoints_are_refused() -> Result<()> {
    let edits = [
        ("llama", "\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"", "yarn"),
        ("llama", "\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "gelu"),
        ("llama", "\"model_type\": \"llama\"", "\"model_type\": \"mamba\"", "mamba"),
        ("qwen2", "\"hidden_size\": 64", "\"hidden_size\": 128", "128"),
        ("qwen2", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "layers.2"),
    ];
    for (name, from, to, named) in edits {
        let changed = tempfile::tempdir()?;
        for file in ["model.safetensors", "tokenizer.json"] {
            std::fs::copy(folder(name).join("checkpoint").join(file), changed.path().join(file))?;
        }
        let config = std::fs::read_to_string(folder(name).join("checkpoint/config.json"))?;
        ensure!(config.contains(from), "{name}: config.json has {from}");
        std::fs::write(changed.path().join("config.json"), config.replace(from, to))?;
        let error = Bundle::load(changed.path(), &Device::Cpu).err().with_context(|| format!("{to} was accepted"))?;
        let message = format!("{:#}", anyhow::Error::new(error));
        ensure!(message.contains(named), "the message for {to} names {named}: {message}");
    }
    Ok(())
}
