//! The kernels: that they compile, that they are right on the host (emulated) and on a GPU, and that a tape on either equals the CPU's.
//!
//! A test that needs what this machine lacks prints `SKIPPED` and why.

use std::process::Command;

use candle_core::Tensor;

use super::super::tests as cpu;
use super::super::{DeviceOptimizer, DeviceRule, DeviceTape, TapeOptions, TrainTape};
use super::CudaTape;
use super::device::Device;
use super::kernels::{HEADS, SOURCES, compile};
use crate::config::ModelConfig;
use crate::experts::ExpertParam;
use crate::gradients::Gradients;
use crate::lm::{Batch, CodeLm};

mod decode;
mod host;
mod updates;

/// Where tapes are tried: the emulator, and a GPU where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Host,
    Gpu,
}

/// The device of a test; `None`, said aloud, where there is none.
fn device(test: &str, place: Place, head: usize) -> Option<Device> {
    if place == Place::Host {
        return host::device(test, head);
    }
    match Device::open(0, head) {
        Ok(device) => Some(device),
        Err(error) => {
            println!("SKIPPED {test}: no CUDA device: {error}");
            None
        }
    }
}

/// A configuration with sizes that the kernels take.
fn sized(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    (config.d_head, config.d_model, config.d_ff, config.context_tokens) = (32, 40, 48, 160);
    if let Some(moe) = &mut config.moe
        && let ExpertParam::Mpo(mpo) = &mut moe.expert_param
    {
        (mpo.width, mpo.model) = (vec![moe.d_ff_expert], vec![config.d_model]);
    }
    config
}

/// The model with weights that bfloat16 has, so that only activations are rounded.
fn rounded(lm: CodeLm) -> CodeLm {
    for (_, var) in lm.parameters() {
        let half = var.to_dtype(candle_core::DType::BF16).unwrap();
        var.set(&half.to_dtype(candle_core::DType::F32).unwrap()).unwrap();
    }
    lm
}

fn adamw(lm: &CodeLm) -> DeviceOptimizer {
    let rules = vec![DeviceRule::AdamW { weight_decay: 0.1 }; lm.parameters().len()];
    DeviceOptimizer { beta1: 0.9, beta2: 0.95, eps: 1e-8, momentum: 0.95, rules }
}

/// ‖got - expected‖ / ‖expected‖.
fn error(got: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = expected.iter().map(|&x| square(x)).sum();
    (difference / norm.max(1e-12)).sqrt()
}

/// Bfloat16 rounds each activation by up to 0.4 %; gradients are the sum of several layers of them.
const TOLERANCE: f64 = 3e-2;

fn assert_same_gradients(what: &str, tape: &mut CudaTape, lm: &CodeLm, batch: &Batch) {
    let mut expected = Gradients::of(lm);
    let loss = TrainTape::default().step(lm, batch, (40.0, 1.0), &mut expected, None).unwrap();
    // Twice, as gradients add up.
    tape.clear().unwrap();
    for _ in 0..2 {
        tape.step(lm, batch, 40.0).unwrap();
    }
    let mut got = Gradients::of(lm);
    tape.add_gradients(&mut got).unwrap();
    let norm = expected.norm();
    for (idx, (name, _)) in lm.parameters().iter().enumerate() {
        assert_eq!(got.is_present(idx), expected.is_present(idx), "{what}, {name}: is there a gradient?");
        let (got, expected) = (&got.values()[got.span(idx)], &expected.values()[expected.span(idx)]);
        let half: Vec<f32> = got.iter().map(|x| x / 2.0).collect();
        // A parameter whose gradient is next to nothing is all rounding.
        let share = expected.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt() / norm;
        let error = error(&half, expected);
        assert!(error <= TOLERANCE || error * share <= 1e-3, "{what}, {name}: error {error:.4}, share {share:.4}");
    }
    let report = tape.update(0.0, 0.0).unwrap();
    let nll_sum = report.nll_sum / 2.0;
    assert!((nll_sum - loss.nll_sum).abs() <= 2e-3 * loss.nll_sum, "{what}: loss {nll_sum}, not {}", loss.nll_sum);
    let rows = || loss.nll_B.iter().chain(&loss.nll_B);
    assert_eq!(report.nll_B.len(), rows().count(), "{what}: sequences of both steps");
    for (got, expected) in report.nll_B.iter().zip(rows()) {
        assert!(
            (got - expected).abs() <= 5e-3 * expected.abs() + 1e-6,
            "{what}: a sequence's loss {got}, not {expected}"
        );
    }
    let norm = report.grad_norm / 2.0;
    assert!((norm - expected.norm()).abs() <= 2e-2 * expected.norm(), "{what}: norm {norm}, not {}", expected.norm());
}

fn every_option_equals_the_cpu(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    for (name, config) in cpu::configs() {
        let lm = rounded(cpu::model(&sized(&config)));
        if !TrainTape::is_for_gpu(&lm) {
            let error = CudaTape::with_device(device.clone(), &lm, TapeOptions::default(), &adamw(&lm)).err();
            assert!(error.is_some_and(|error| error.to_string().contains("router that reads tokens")), "{name}");
            continue;
        }
        for checkpoint_activations in [false, true] {
            let options = TapeOptions { checkpoint_activations };
            let mut tape = CudaTape::with_device(device.clone(), &lm, options, &adamw(&lm)).unwrap();
            // Experts: by tiles of sorted rows, of rows in place, and by the library.
            let shapes = [(1, 150, true), (4, 40, false), (3, 64, false), (1, 1, false)];
            for (b, l, mixed) in shapes.into_iter().take(if checkpoint_activations { 1 } else { shapes.len() }) {
                let what =
                    format!("{place:?}, {name}, checkpointing {checkpoint_activations}, {b} x {l}, mixed {mixed}");
                assert_same_gradients(&what, &mut tape, &lm, &cpu::batch(b, l, mixed));
            }
        }
    }
}

/// Wider heads, shared by three queries' heads each.
fn wide_heads_equal_the_cpu(test: &str, place: Place) {
    for head in [64, 128] {
        let Some(device) = device(test, place, head) else { return };
        let mut config = sized(&crate::config::tests::tiny(None));
        (config.d_head, config.n_heads, config.n_kv_heads, config.qk_norm) = (head, 3, 1, true);
        let lm = rounded(cpu::model(&config));
        let mut tape = CudaTape::with_device(device, &lm, TapeOptions::default(), &adamw(&lm)).unwrap();
        assert_same_gradients(&format!("{place:?}, head {head}"), &mut tape, &lm, &cpu::batch(1, 150, true));
    }
}

#[test]
fn emulated_wide_heads_equal_the_cpus() {
    wide_heads_equal_the_cpu("emulated_wide_heads_equal_the_cpus", Place::Host);
}

#[test]
fn wide_heads_on_a_gpu_equal_the_cpus() {
    wide_heads_equal_the_cpu("wide_heads_on_a_gpu_equal_the_cpus", Place::Gpu);
}

#[test]
fn an_emulated_tape_equals_the_cpus_for_every_option() {
    every_option_equals_the_cpu("an_emulated_tape_equals_the_cpus_for_every_option", Place::Host);
}

#[test]
fn a_tape_on_a_gpu_equals_the_cpus_for_every_option() {
    every_option_equals_the_cpu("a_tape_on_a_gpu_equals_the_cpus_for_every_option", Place::Gpu);
}

/// A language for each token: stretches in place, by the library and sorted, across the ends of sequences, some without a language.
fn rows_that_mix_languages_equal_the_cpu(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    for (name, config) in cpu::configs_with_experts() {
        let lm = rounded(cpu::model(&sized(&config)));
        if !TrainTape::is_for_gpu(&lm) {
            continue;
        }
        let mut tape = CudaTape::with_device(device.clone(), &lm, TapeOptions::default(), &adamw(&lm)).unwrap();
        // By the library across the end of a sequence, by tiles of rows in place, by tiles of sorted rows.
        for (stretch, unknown) in [(100, false), (40, false), (7, false), (11, true)] {
            let what = format!("{place:?}, {name}, stretches of {stretch}, unknown {unknown}");
            assert_same_gradients(&what, &mut tape, &lm, &cpu::batch_of_stretches(2, 80, stretch, unknown));
        }
    }
}

#[test]
fn emulated_rows_that_mix_languages_equal_the_cpus() {
    rows_that_mix_languages_equal_the_cpu("emulated_rows_that_mix_languages_equal_the_cpus", Place::Host);
}

#[test]
fn rows_that_mix_languages_on_a_gpu_equal_the_cpus() {
    rows_that_mix_languages_equal_the_cpu("rows_that_mix_languages_on_a_gpu_equal_the_cpus", Place::Gpu);
}

/// From the third on a GPU replays a graph: it must read the batch that is there then.
fn batches_follow_each_other(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    let router = crate::router::RouterConfig::all().remove(1);
    let lm = rounded(cpu::model(&sized(&crate::config::tests::tiny(Some(router)))));
    let mut tape = CudaTape::with_device(device, &lm, TapeOptions::default(), &adamw(&lm)).unwrap();
    let mut held = None;
    for seed in 0..4 {
        assert_same_gradients(&format!("{place:?}, batch {seed}"), &mut tape, &lm, &batch_of(seed, 3, 64));
        assert_eq!(*held.get_or_insert(tape.n_bytes()), tape.n_bytes(), "nothing is allocated after the first step");
    }
    if place == Place::Gpu {
        assert!(tape.ready().is_empty(), "the last step was a replay");
        tape.set_profiling(true);
        tape.step(&lm, &batch_of(9, 3, 64), 40.0).unwrap();
        assert!(tape.profile().entries().iter().any(|(name, time, _)| *name == "attention" && !time.is_zero()));
    }
}

#[test]
fn emulated_batches_follow_each_other() {
    batches_follow_each_other("emulated_batches_follow_each_other", Place::Host);
}

#[test]
fn batches_on_a_gpu_follow_each_other() {
    batches_follow_each_other("batches_on_a_gpu_follow_each_other", Place::Gpu);
}

/// Languages come in another order with every batch: graphs serve them all, also where products go by the library.
fn languages_in_any_order_are_replayed(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    let router = crate::router::RouterConfig::all().remove(1);
    let lm = rounded(cpu::model(&sized(&crate::config::tests::tiny(Some(router)))));
    let orders = [[0, 1, 2, 0], [2, 2, 1, 0], [0, 0, 0, 0], [1, 0, 2, 1], [1, 1, 0, 2]];
    for l in [40, 80] {
        let mut tape = CudaTape::with_device(device.clone(), &lm, TapeOptions::default(), &adamw(&lm)).unwrap();
        for (seed, order) in orders.iter().enumerate() {
            let mut batch = batch_of(seed, 4, l);
            batch.language_BL = (0..4 * l).map(|i| order[i / l]).collect();
            assert_same_gradients(&format!("{place:?}, {l} tokens, languages {order:?}"), &mut tape, &lm, &batch);
            // A shorter last micro-batch is a tape of its own.
            assert_same_gradients("a short batch", &mut tape, &lm, &batch_of(seed, 1, l));
        }
        // Each batch comes twice, and each tape is captured when it comes for the third time.
        assert_eq!(tape.n_replays(), 2 * (2 * orders.len() - 2), "{place:?}, {l} tokens");
    }
}

#[test]
fn emulated_languages_in_any_order_are_replayed() {
    languages_in_any_order_are_replayed("emulated_languages_in_any_order_are_replayed", Place::Host);
}

#[test]
fn languages_in_any_order_on_a_gpu_are_replayed() {
    languages_in_any_order_are_replayed("languages_in_any_order_on_a_gpu_are_replayed", Place::Gpu);
}

#[test]
fn memory_of_the_device_is_counted() {
    let Some(device) = device("memory_of_the_device_is_counted", Place::Host, 32) else { return };
    let lm = cpu::model(&sized(&crate::config::tests::tiny(None)));
    let mut tape = CudaTape::with_device(device.clone(), &lm, TapeOptions::default(), &adamw(&lm)).unwrap();
    // Weights, gradients and two moments of float32, and bfloat16 weights.
    let states = 18 * tape.layout.len;
    assert!((states..2 * states).contains(&tape.peak_bytes()), "{} bytes, of which states {states}", tape.peak_bytes());
    tape.step(&lm, &batch_of(1, 2, 20), 40.0).unwrap();
    let held = tape.peak_bytes();
    assert!(held >= states + tape.n_bytes());
    tape.step(&lm, &batch_of(2, 2, 20), 40.0).unwrap();
    drop(device.zeros(1000).unwrap());
    assert!(tape.peak_bytes() <= held + 1000 + 64, "what was freed counts no more");
    drop(device.zeros(1000).unwrap());
    assert!(tape.peak_bytes() <= held + 1000 + 64, "what was freed counts no more");
}

/// Whether the compiler of kernels can be loaded; else says that `test` is skipped.
fn has_compiler(test: &str) -> bool {
    // SAFETY: loading the library runs no more than its own initialisers.
    let is_there = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    if !is_there {
        println!("SKIPPED {test}: libnvrtc cannot be loaded");
    }
    is_there
}

#[test]
fn every_kernel_compiles_for_the_devices_that_are_meant() {
    if !has_compiler("every_kernel_compiles_for_the_devices_that_are_meant") {
        return;
    }
    for arch in ["sm_80", "sm_90"] {
        for source in SOURCES {
            for head in HEADS.into_iter().take(if source.is_attention { HEADS.len() } else { 1 }) {
                let cubin = compile(source, arch, head).unwrap();
                assert!(cubin.starts_with(b"\x7fELF"), "{} for {arch}: no machine code", source.name);
            }
        }
    }
}

#[test]
fn kernels_equal_sums_in_float64() {
    let folder = tempfile::tempdir().unwrap();
    let programs = [("rest.cpp", 0), ("attention.cpp", 32), ("attention.cpp", 64), ("attention.cpp", 128)];
    for (source, head) in programs {
        let path = folder.path().join(format!("{source}-{head}"));
        let option = format!("-DHEAD={head}");
        let Some(()) = host::compile("kernels_equal_sums_in_float64", source, &path, &[&option]) else { return };
        let output = Command::new(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{source}, head {head}:\n{said}{}", String::from_utf8_lossy(&output.stderr));
        println!("{}", said.trim_end());
    }
}

#[test]
fn what_the_kernels_do_not_take_is_named() {
    let lm = cpu::model(&crate::config::tests::tiny(None));
    let message = CudaTape::new(0, &lm, TapeOptions::default(), &adamw(&lm)).err().unwrap().to_string();
    assert!(message.contains("d_head = 8: expected 32, 64 or 128"), "{message}");
    let mut config = sized(&crate::config::tests::tiny(None));
    config.d_ff = 50;
    let lm = cpu::model(&config);
    let message = CudaTape::new(0, &lm, TapeOptions::default(), &adamw(&lm)).err().unwrap().to_string();
    assert!(message.contains("d_ff = 50: expected a multiple of 8"), "{message}");
}

#[test]
fn a_machine_without_a_gpu_is_told_so() {
    let lm = cpu::model(&sized(&crate::config::tests::tiny(None)));
    match TrainTape::on_gpu(0, &lm, TapeOptions::default(), &adamw(&lm)) {
        Ok(mut tape) => println!("there is one: {}", tape.device().unwrap().describe()),
        Err(error) => assert!(error.to_string().contains("CUDA"), "{error}"),
    }
}

/// A batch whose ids are all below 90, as those of the tests of the CPU's tape.
fn batch_of(seed: usize, b: usize, l: usize) -> Batch {
    let mut batch = cpu::batch(b, l, false);
    let ids = (0..b * l).map(|i| ((i * 3 + seed) % 11) as u32).collect::<Vec<u32>>();
    let next = (0..b * l).map(|i| ((i * 3 + 3 + seed) % 11) as u32).collect::<Vec<u32>>();
    batch.x_BL = Tensor::from_vec(ids, (b, l), &candle_core::Device::Cpu).unwrap();
    batch.y_BL = Tensor::from_vec(next, (b, l), &candle_core::Device::Cpu).unwrap();
    batch
}
