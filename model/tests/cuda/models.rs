//! Whole models on the GPU: loss and gradients with every router, decoding, checkpoints, the reference's logits, falling loss.

use std::path::{Path, PathBuf};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use multicoder_model::checkpoint::{load_lm, save_folder};
use multicoder_model::lm::LossOutput;
use multicoder_model::ops::{AdamWStep, adamw_step, set_bf16_products};
use multicoder_model::{Batch, CodeLm, KvCache, ModelConfig, RouterConfig, Tokenizer, UNKNOWN_LANGUAGE};
use serde_json::json;

use crate::{BFLOAT16, FLOAT32, assert_close, gpu};

/// A model of every kind of layer, with `router` in its second one.
fn config(router: &RouterConfig, activation: &str) -> ModelConfig {
    serde_json::from_value(json!({
        "vocab_size": 96, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 16, "d_ff": 96,
        "activation": activation, "qk_norm": true, "bigram_buckets": 64, "value_embedding_layers": [1],
        "context_tokens": 64, "languages": ["c", "go", "lua"],
        "moe": {"layers": {"every_n": 2}, "n_experts": 4, "d_ff_expert": 32, "d_ff_shared": 32,
                "router": serde_json::to_value(router).unwrap()},
    }))
    .unwrap()
}

fn routers() -> Vec<RouterConfig> {
    let more = [
        r#"{"kind": "pl_shared", "combine": "sigmoid"}"#,
        r#"{"kind": "pl_shared", "combine": "half"}"#,
        r#"{"kind": "token", "top_k": 2, "normalize": true}"#,
    ];
    RouterConfig::all().into_iter().chain(more.map(|text| serde_json::from_str(text).unwrap())).collect()
}

/// Four rows of 32 tokens, the last of an unknown language.
fn batch() -> Batch {
    let ids = |seed: u32| (0..128u32).map(|i| (i * 37 + seed + i * i * 7) % 96).collect::<Vec<_>>();
    let tensor = |ids| Tensor::from_vec(ids, (4, 32), &Device::Cpu).unwrap();
    let language = |n: usize| [0, 2, 1, UNKNOWN_LANGUAGE][n / 32];
    Batch {
        x_BL: tensor(ids(1)),
        y_BL: tensor(ids(2)),
        language_BL: (0..128).map(language).collect(),
        start_BL: None,
        training: None,
    }
}

fn losses(config: &ModelConfig, device: &Device) -> (CodeLm, LossOutput, GradStore) {
    let lm = CodeLm::init(config, 3, device).unwrap();
    let output = lm.loss(&batch(), 128.0).unwrap();
    let grads = output.loss.backward().unwrap();
    (lm, output, grads)
}

#[test]
fn every_router_trains_as_on_the_cpu() {
    let Some(gpu) = gpu("every_router_trains_as_on_the_cpu") else { return };
    for (router, activation) in routers().iter().flat_map(|router| [(router, "relu2"), (router, "swiglu")]) {
        let config = config(router, activation);
        let (lm, output, grads) = losses(&config, &gpu.device);
        let (lm_ref, output_ref, grads_ref) = losses(&config, &Device::Cpu);
        let off = (output.nll_sum - output_ref.nll_sum).abs() / output_ref.nll_sum;
        assert!(off < FLOAT32 && (output.aux_loss - output_ref.aux_loss).abs() < 1e-5, "{router:?}: {off}");
        assert_eq!(output.load_E, output_ref.load_E, "{router:?}");
        for ((name, var), (_, var_ref)) in lm.parameters().iter().zip(lm_ref.parameters()) {
            match (grads.get(var), grads_ref.get(var_ref)) {
                (Some(grad), Some(grad_ref)) => assert_close(grad, grad_ref, 5.0 * FLOAT32, name),
                (grad, grad_ref) => assert_eq!(grad.is_some(), grad_ref.is_some(), "{router:?}: {name}"),
            }
        }
    }
}

#[test]
fn decoding_equals_the_cpus() {
    let Some(gpu) = gpu("decoding_equals_the_cpus") else { return };
    for router in routers() {
        let logits = |device: &Device| {
            let lm = CodeLm::init(&config(&router, "relu2"), 3, device).unwrap();
            let mut cache = KvCache::new(lm.config(), device).unwrap();
            let parts: [&[u32]; 3] = [&[5, 9, 11], &[5], &[9, 70, 3]];
            parts.map(|ids| lm.decode(ids, 1, &mut cache, &|| false).unwrap())
        };
        for (got, expected) in logits(&gpu.device).into_iter().zip(logits(&Device::Cpu)) {
            let tensor = |logits: Vec<f32>| Tensor::new(logits, &Device::Cpu).unwrap();
            assert_close(&tensor(got), &tensor(expected), 5.0 * FLOAT32, "logits");
        }
    }
}

/// Mean loss of a batch before each of five steps and after them.
fn five_steps(device: &Device) -> Vec<f64> {
    let lm = CodeLm::init(&config(&routers()[1], "relu2"), 3, device).unwrap();
    let zeros = |var: &Var| Var::from_tensor(&var.zeros_like().unwrap()).unwrap();
    let moments: Vec<(Var, Var)> = lm.parameters().iter().map(|(_, var)| (zeros(var), zeros(var))).collect();
    let mut losses = Vec::new();
    for step in 1..=5 {
        let output = lm.loss(&batch(), 128.0).unwrap();
        let grads = output.loss.backward().unwrap();
        let options = AdamWStep { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
        for ((_, var), (m, v)) in lm.parameters().iter().zip(&moments) {
            if let Some(grad) = grads.get(var) {
                let grad = grad.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                adamw_step(var, &grad, 1.0, m, v, &options).unwrap();
            }
        }
        losses.push(output.nll_sum / 128.0);
    }
    losses.push(lm.loss(&batch(), 128.0).unwrap().nll_sum / 128.0);
    losses
}

#[test]
fn five_steps_lower_the_loss_as_on_the_cpu() {
    let Some(gpu) = gpu("five_steps_lower_the_loss_as_on_the_cpu") else { return };
    let expected = five_steps(&Device::Cpu);
    for (bf16, tolerance) in [(false, 1e-3), (true, BFLOAT16)] {
        set_bf16_products(bf16);
        let got = five_steps(&gpu.device);
        assert!(got.windows(2).all(|pair| pair[1] < pair[0]), "bf16 {bf16}: {got:?}");
        let close = got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < tolerance * b);
        assert!(close, "bf16 {bf16}: {got:?}, on the CPU {expected:?}");
    }
}

/// The folder of reference checkpoints, from the repository's root or from where this was built.
fn golden(name: &str) -> PathBuf {
    let built_at = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let here = PathBuf::from("tests/golden");
    if here.is_dir() { here.join(name) } else { built_at.join(name) }
}

#[test]
fn logits_equal_the_references() {
    let Some(gpu) = gpu("logits_equal_the_references") else { return };
    for name in ["qwen2", "qwen3", "llama"] {
        let lm = load_lm(&golden(name).join("checkpoint"), false, &gpu.device).unwrap();
        let tensors = candle_core::safetensors::load(golden(name).join("golden.safetensors"), &Device::Cpu).unwrap();
        for sequence in 0..3 {
            let ids = tensors[&format!("ids_{sequence}")].to_vec1::<i64>().unwrap();
            let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
            let logits_LV = lm.forward_logits(&ids, UNKNOWN_LANGUAGE).unwrap().to_device(&Device::Cpu).unwrap();
            let difference = (logits_LV - &tensors[&format!("logits_{sequence}")]).unwrap().abs().unwrap();
            let difference = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(difference < 1e-3, "{name}, sequence {sequence}: logits differ by {difference}");
        }
    }
}

#[test]
fn checkpoints_go_from_device_to_device() {
    let Some(gpu) = gpu("checkpoints_go_from_device_to_device") else { return };
    let source = golden("qwen3").join("checkpoint");
    let tokenizer = Tokenizer::from_file(&source.join("tokenizer.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let on_gpu = load_lm(&source, true, &gpu.device).unwrap();
    save_folder(&on_gpu, &tokenizer, folder.path()).unwrap();
    let (first, second) = (load_lm(&source, true, &Device::Cpu), load_lm(folder.path(), true, &Device::Cpu));
    for ((name, a), (_, b)) in first.unwrap().parameters().iter().zip(second.unwrap().parameters()) {
        assert_close(b, a, 0.0, name);
    }
}
