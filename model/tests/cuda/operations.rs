//! Every operation of `ops`, composed on the GPU, beside its fused form on the CPU.

use candle_core::{Device, Tensor, Var};
use multicoder_model::IGNORE_ID;
use multicoder_model::ops::{self, AdamWStep, Rope};

use crate::{BFLOAT16, FLOAT32, Gpu, assert_close, assert_same, gpu, values};

fn assert_linear(gpu: &Gpu, tolerance: f64) {
    for (n, d, f) in [(70, 24, 10), (1, 256, 512), (300, 64, 64)] {
        let inputs = [values(&[n, d], 1), values(&[f, d], 2)];
        assert_same(gpu, tolerance, "linear", &inputs, |x| ops::linear(&x[0], &x[1]));
    }
}

fn assert_attention(gpu: &Gpu, tolerance: f64) {
    for (b, l, m, h, g) in [(2, 5, 5, 4, 2), (1, 70, 70, 2, 2), (1, 3, 9, 4, 1), (2, 130, 140, 2, 1), (1, 1, 8, 4, 2)] {
        let k = 16;
        let inputs = [values(&[b, l, h, k], 1), values(&[b, m, g, k], 2), values(&[b, m, g, k], 3)];
        let what = format!("attention of {l} to {m}");
        assert_same(gpu, tolerance, &what, &inputs, |x| ops::causal_attention(&x[0], &x[1], &x[2], None));
    }
}

fn assert_cross_entropy(gpu: &Gpu, tolerance: f64) {
    let targets = [3, 0, IGNORE_ID, 10, 3, 7].repeat(60);
    let inputs = [values(&[360, 32], 1), values(&[11, 32], 2)];
    assert_same(gpu, tolerance, "cross entropy", &inputs, |x| {
        Ok(ops::linear_cross_entropy(&x[0], &x[1], &targets, 0.5)?.nll_sum)
    });
}

#[test]
fn linear_maps_equal_the_cpus() {
    let Some(gpu) = gpu("linear_maps_equal_the_cpus") else { return };
    assert_linear(&gpu, FLOAT32);
}

#[test]
fn attention_equals_the_cpus() {
    let Some(gpu) = gpu("attention_equals_the_cpus") else { return };
    assert_attention(&gpu, FLOAT32);
}

#[test]
fn norms_equal_the_cpus() {
    let Some(gpu) = gpu("norms_equal_the_cpus") else { return };
    for dims in [[3, 5, 40], [1, 130, 256]] {
        let inputs = [values(&dims, 1), values(&dims[2..], 2)];
        assert_same(&gpu, FLOAT32, "rms_norm", &inputs, |x| ops::rms_norm(&x[0], &x[1], 1e-6));
    }
}

#[test]
fn rotations_equal_the_cpus() {
    let Some(gpu) = gpu("rotations_equal_the_cpus") else { return };
    let rope = Rope::new(8, 10_000.0, 64);
    for start in [0, 4, 40] {
        assert_same(&gpu, FLOAT32, "rope", &[values(&[2, 5, 3, 8], 1)], |x| ops::apply_rope(&x[0], &rope, start));
    }
}

#[test]
fn activations_equal_the_cpus() {
    let Some(gpu) = gpu("activations_equal_the_cpus") else { return };
    let gate = (values(&[90, 33], 2) * 6.0).unwrap();
    assert_same(&gpu, FLOAT32, "relu2", std::slice::from_ref(&gate), |x| ops::relu2(&x[0]));
    assert_same(&gpu, FLOAT32, "swiglu", &[gate, values(&[90, 33], 3)], |x| ops::swiglu(&x[0], &x[1]));
}

#[test]
fn the_loss_and_the_scores_equal_the_cpus() {
    let Some(gpu) = gpu("the_loss_and_the_scores_equal_the_cpus") else { return };
    assert_cross_entropy(&gpu, FLOAT32);
    let targets = [3, 0, IGNORE_ID, 10, 3, 7].repeat(1000);
    let inputs = [values(&[6000, 32], 1), values(&[11, 32], 2)];
    let scores = |device: &Device| {
        let [x_ND, w_VD] = [0, 1].map(|i| inputs[i].to_device(device).unwrap());
        ops::linear_scores(&x_ND, &w_VD, &targets, 0.5).unwrap()
    };
    let ((nll_N, correct_N), (nll_ref_N, correct_ref_N)) = (scores(&gpu.device), scores(&Device::Cpu));
    assert!(nll_N.iter().zip(&nll_ref_N).all(|(a, b)| (a - b).abs() < 1e-4), "scores");
    let differ = correct_N.iter().zip(&correct_ref_N).filter(|(a, b)| a != b).count();
    assert!(differ <= 6, "{differ} of 6000 tokens are likeliest on one device only: more than ties");
}

#[test]
fn rows_by_index_equal_the_cpus() {
    let Some(gpu) = gpu("rows_by_index_equal_the_cpus") else { return };
    let skewed: Vec<u32> =
        (0..3000u32).map(|i| if i % 3 == 0 { 0 } else { i.wrapping_mul(2_654_435_761) % 50 }).collect();
    let idx_A = Tensor::new(skewed, &Device::Cpu).unwrap();
    assert_same(&gpu, FLOAT32, "gather_rows", &[values(&[50, 24], 1)], |x| ops::gather_rows(&x[0], &idx_A));
    // One for each row, none for some, two for each, and all for one.
    let shuffled = |n: u32, per: u32| (0..n * per).map(|i| i * 7 % (n * per) / per).collect::<Vec<u32>>();
    let sparse: Vec<u32> = (0..10).filter(|i| i % 5 != 2).collect();
    for idx_A in [shuffled(10, 1), sparse, shuffled(10, 2), vec![3; 10]] {
        let x_AD = values(&[idx_A.len(), 24], 2);
        assert_same(&gpu, FLOAT32, "add_rows", &[x_AD], |x| ops::add_rows(&x[0], &idx_A, 10));
    }
}

#[test]
fn the_optimizer_moves_as_on_the_cpu() {
    let Some(gpu) = gpu("the_optimizer_moves_as_on_the_cpu") else { return };
    let run = |device: &Device| {
        let var = |x: Tensor| Var::from_tensor(&x.to_device(device).unwrap()).unwrap();
        let zeros = || var(values(&[7, 9], 1).zeros_like().unwrap());
        let (param, m, v) = (var(values(&[7, 9], 1)), zeros(), zeros());
        for step in 1..=5 {
            let grad = values(&[63], step as u32).to_vec1::<f32>().unwrap();
            let step = AdamWStep { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
            ops::adamw_step(&param, &grad, 1.0, &m, &v, &step).unwrap();
        }
        [param, m, v]
    };
    for (got, expected) in run(&gpu.device).iter().zip(&run(&Device::Cpu)) {
        assert_close(got, expected, FLOAT32, "after five steps");
    }
}

#[test]
fn bf16_products_stay_close_and_give_float32() {
    let Some(gpu) = gpu("bf16_products_stay_close_and_give_float32") else { return };
    let exact = |gpu: &Gpu| {
        let [x_ND, w_FD] = [values(&[64, 64], 1), values(&[64, 64], 2)].map(|x| x.to_device(&gpu.device).unwrap());
        ops::linear(&x_ND, &w_FD).unwrap()
    };
    let float32 = exact(&gpu);
    ops::set_bf16_products(true);
    let difference = (exact(&gpu) - float32).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference > 0.0, "the factors were not rounded");
    assert_linear(&gpu, BFLOAT16);
    assert_attention(&gpu, BFLOAT16);
    assert_cross_entropy(&gpu, BFLOAT16);
}
