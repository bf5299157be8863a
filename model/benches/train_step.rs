//! Tokens per second of a training step (forward, backward, AdamW) of shapes given on the command line.
//!
//! `cargo bench -p multicoder-model --bench train_step -- [d_model,n_layers,d_ff,vocab,sequence,batch,n_experts,d_ff_expert] ...`
//! (with `BF16=1` in the environment: in mixed precision) prints for each shape the median, over the timed steps, of wall time and tokens per second. Random ids: speed only.
#![allow(non_snake_case)]

use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use multicoder_model::config::{Activation, MoeConfig, MoeLayers};
use multicoder_model::ops::{AdamWStep, adamw_step};
use multicoder_model::router::RouterConfig;
use multicoder_model::{Batch, Gradients, ModelConfig, lm::CodeLm};

const TIMED_STEPS: usize = 5;
const DEFAULT: &str = "256,6,768,8192,512,8,8,256";

fn config(shape: &[usize]) -> ModelConfig {
    let &[d_model, n_layers, d_ff, vocab_size, context_tokens, _, n_experts, d_ff_expert] = shape else {
        panic!("shape {shape:?}: expected eight numbers like {DEFAULT}")
    };
    let router = RouterConfig::all().into_iter().find(|router| router.name() == "pl_shared").expect("a pl_shared row");
    let moe = MoeConfig {
        layers: MoeLayers::EveryN(2),
        n_experts,
        d_ff_expert,
        d_ff_shared: d_ff - d_ff_expert,
        router,
        expert_of_language: Default::default(),
    };
    ModelConfig {
        vocab_size,
        d_model,
        n_layers,
        n_heads: d_model / 64,
        n_kv_heads: (d_model / 128).max(1),
        d_head: 64,
        d_ff,
        activation: Activation::Relu2,
        context_tokens,
        rope_theta: 10_000.0,
        norm_eps: 1e-6,
        qk_norm: false,
        qkv_bias: false,
        tie_embeddings: true,
        bigram_buckets: 0,
        value_embedding_layers: Vec::new(),
        languages: (0..8).map(|i| format!("language{i}")).collect(),
        moe: (n_experts > 0).then_some(moe),
        copy: None,
    }
}

fn main() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: plain settings of glibc's allocator, before any thread starts.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
    if std::env::var_os("BF16").is_some() && !multicoder_model::ops::set_bf16_products(true) {
        eprintln!("this processor has no AVX-512 BF16: float32 it is");
    }
    let mut shapes: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if shapes.is_empty() {
        shapes.push(DEFAULT.to_string());
    }
    for shape in shapes {
        let numbers: Vec<usize> = shape.split(',').map(|n| n.trim().parse().expect("a number")).collect();
        let config = config(&numbers);
        let seconds = median_step(&config, numbers[5]);
        let tokens = (numbers[5] * config.context_tokens) as f64;
        let active = config.n_active_parameters() as f64 / 1e6;
        let total = config.n_parameters() as f64 / 1e6;
        println!(
            "{shape}: {active:.2} M active of {total:.2} M, {seconds:.3} s/step, {:.0} tokens/s",
            tokens / seconds
        );
    }
}

fn median_step(config: &ModelConfig, b: usize) -> f64 {
    let lm = CodeLm::init(config, 1, &Device::Cpu).expect("a model");
    let l = config.context_tokens;
    let ids = |seed: u32| -> Vec<u32> {
        (0..(b * l) as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) % config.vocab_size as u32)
            .collect()
    };
    let batch = Batch {
        x_BL: Tensor::from_vec(ids(1), (b, l), &Device::Cpu).expect("ids"),
        y_BL: Tensor::from_vec(ids(2), (b, l), &Device::Cpu).expect("ids"),
        language_BL: (0..b * l).map(|i| (i / l % config.languages.len()) as u32).collect(),
        start_BL: None,
    };
    let zero = |var: &Var| Var::from_tensor(&var.zeros_like().expect("zeros")).expect("a moment");
    let moments: Vec<(Var, Var)> = lm.parameters().iter().map(|(_, var)| (zero(var), zero(var))).collect();
    let mut gradients = Gradients::of(&lm);
    let mut seconds = Vec::new();
    for step in 1..=TIMED_STEPS as u64 + 1 {
        let start = Instant::now();
        let loss = lm.loss(&batch, (b * l) as f64).expect("a loss");
        let grads = loss.loss.backward().expect("gradients");
        let options = AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
        gradients.clear();
        for (idx, ((_, var), (m, v))) in lm.parameters().iter().zip(&moments).enumerate() {
            if let Some(grad) = grads.get(var) {
                gradients.add(idx, grad).expect("a sum");
                adamw_step(var, gradients.slice_mut(idx), 1.0, m, v, &options).expect("a step");
            }
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
