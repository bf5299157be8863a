//! Updates on a device: the optimizers' formulas, falling losses, and the way of weights and moments back to the host.

use candle_core::{Device as Cpu, Var};

use super::super::super::{DeviceOptimizer, DeviceRule, DeviceTape, TapeOptions};
use super::super::CudaTape;
use super::{Place, adamw, batch_of, cpu, device, error, sized};
use crate::config::tests::tiny;
use crate::gradients::Gradients;
use crate::lm::CodeLm;
use crate::ops::{AdamWStep, adamw_step};
use crate::router::RouterConfig;

fn values(var: &Var) -> Vec<f32> {
    var.flatten_all().unwrap().to_vec1().unwrap()
}

/// AdamW for all but hidden matrices, which go by Muon.
fn muon(lm: &CodeLm) -> DeviceOptimizer {
    let rule = |name: &str| match name.ends_with("_proj.weight") {
        true => DeviceRule::Muon { weight_decay: 0.1 },
        false => DeviceRule::AdamW { weight_decay: 0.0 },
    };
    DeviceOptimizer { rules: lm.parameters().iter().map(|(name, _)| rule(name)).collect(), ..adamw(lm) }
}

/// A model with experts, of which the fourth sees no token.
fn experts() -> CodeLm {
    cpu::model(&sized(&tiny(Some(RouterConfig::all().remove(1)))))
}

fn adamw_equals_the_hosts(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    let lm = experts();
    let mut tape = CudaTape::with_device(device, &lm, TapeOptions::default(), &adamw(&lm)).unwrap();
    let parameters: Vec<Var> =
        lm.parameters().iter().map(|(_, var)| Var::from_tensor(&var.copy().unwrap()).unwrap()).collect();
    let moments: Vec<[Var; 2]> =
        parameters.iter().map(|var| [0; 2].map(|_| Var::from_tensor(&var.zeros_like().unwrap()).unwrap())).collect();
    let mut gradients = Gradients::of(&lm);
    for step in 1..=3 {
        tape.clear().unwrap();
        tape.step(&lm, &batch_of(step, 2, 20), 40.0).unwrap();
        gradients.clear();
        tape.add_gradients(&mut gradients).unwrap();
        gradients.settle();
        let report = tape.update(0.01, 0.5).unwrap();
        assert!(report.is_finite && (report.grad_norm - gradients.norm()).abs() < 1e-4 * gradients.norm());
        let scale = (0.5 / gradients.norm()).min(1.0);
        for (idx, (parameter, [m, v])) in parameters.iter().zip(&moments).enumerate() {
            let Some(gradient) = gradients.get(idx) else { continue };
            let numbers =
                AdamWStep { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: step as u64 };
            adamw_step(parameter, gradient, scale, m, v, &numbers).unwrap();
        }
    }
    tape.download(&lm).unwrap();
    let state = tape.state().unwrap();
    let mut at = 0;
    for (idx, ((name, var), parameter)) in lm.parameters().iter().zip(&parameters).enumerate() {
        let error = error(&values(var), &values(parameter));
        assert!(error < 1e-5, "{name}: error {error}");
        let n = gradients.span(idx).len();
        for (flat, moment) in [(&state.first, &moments[idx][0]), (&state.second, &moments[idx][1])] {
            assert!(super::error(&flat[at..at + n], &values(moment)) < 1e-4, "{name}: a moment");
        }
        assert_eq!(state.n_steps[idx], if gradients.is_present(idx) { 3 } else { 0 }, "{name}");
        at += n;
    }
}

#[test]
fn emulated_adamw_equals_the_hosts() {
    adamw_equals_the_hosts("emulated_adamw_equals_the_hosts", Place::Host);
}

#[test]
fn adamw_on_a_gpu_equals_the_hosts() {
    adamw_equals_the_hosts("adamw_on_a_gpu_equals_the_hosts", Place::Gpu);
}

fn summed_gradients_update_as_one_devices(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    let lm = experts();
    let new = || CudaTape::with_device(device.clone(), &lm, TapeOptions::default(), &adamw(&lm)).unwrap();
    let batches = [batch_of(1, 2, 20), batch_of(2, 2, 20)];
    let mut whole = new();
    whole.clear().unwrap();
    batches.iter().for_each(|batch| drop(whole.step(&lm, batch, 80.0).unwrap()));
    let report = whole.update(0.01, 0.5).unwrap();
    // Two ranks with a batch each; what they have is summed on the host.
    let mut ranks = [new(), new()];
    let (mut sum, mut nll_B) = (Gradients::of(&lm), Vec::new());
    for (rank, batch) in ranks.iter_mut().zip(&batches) {
        rank.clear().unwrap();
        rank.step(&lm, batch, 80.0).unwrap();
        rank.add_gradients(&mut sum).unwrap();
        nll_B.extend(rank.losses().unwrap());
    }
    sum.settle();
    assert!((sum.norm() - report.grad_norm).abs() < 1e-4 * report.grad_norm && report.grad_norm > 0.5);
    assert!(nll_B.iter().zip(&report.nll_B).all(|(a, b)| (a - b).abs() < 1e-6) && nll_B.len() == 4, "{nll_B:?}");
    let weights = |tape: &mut CudaTape| {
        tape.download(&lm).unwrap();
        lm.parameters().iter().flat_map(|(_, var)| values(var)).collect::<Vec<f32>>()
    };
    let expected = weights(&mut whole);
    for rank in &mut ranks {
        rank.update_with(&sum, 0.5 / sum.norm(), 0.01).unwrap();
        assert_eq!(rank.state().unwrap().n_steps, whole.state().unwrap().n_steps);
        assert!(error(&weights(rank), &expected) < 1e-5);
    }
    sum.slice_mut(0)[0] = f32::NAN;
    assert!(ranks[0].update_with(&sum, 1.0, 0.01).unwrap_err().to_string().contains("no weight was changed"));
    assert!(ranks[0].update_with(&Gradients::new([1]), 1.0, 0.01).is_err());
}

#[test]
fn emulated_summed_gradients_update_as_one_devices() {
    summed_gradients_update_as_one_devices("emulated_summed_gradients_update_as_one_devices", Place::Host);
}

#[test]
fn summed_gradients_on_a_gpu_update_as_one_devices() {
    summed_gradients_update_as_one_devices("summed_gradients_on_a_gpu_update_as_one_devices", Place::Gpu);
}

/// The formula of Muon in float64: the direction of the momentum, five times through the quintic.
fn orthogonal(matrix: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let norm = matrix.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut x: Vec<f64> = matrix.iter().map(|value| value / (norm + 1e-7)).collect();
    let product = |a: &[f64], b: &[f64], m: usize, k: usize, n: usize| -> Vec<f64> {
        let at = |i: usize| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum();
        (0..m * n).map(at).collect()
    };
    for _ in 0..5 {
        let transposed: Vec<f64> = (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect();
        let gram = product(&x, &transposed, rows, cols, rows);
        let square = product(&gram, &gram, rows, rows, rows);
        let polynomial: Vec<f64> = gram.iter().zip(&square).map(|(a, b)| -4.7750 * a + 2.0315 * b).collect();
        let step = product(&polynomial, &x, rows, rows, cols);
        x.iter_mut().zip(step).for_each(|(x, step)| *x = 3.4445 * *x + step);
    }
    x
}

fn muon_equals_its_formula(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    let lm = experts();
    let before: Vec<Vec<f32>> = lm.parameters().iter().map(|(_, var)| values(var)).collect();
    let mut tape = CudaTape::with_device(device, &lm, TapeOptions::default(), &muon(&lm)).unwrap();
    tape.clear().unwrap();
    tape.step(&lm, &batch_of(1, 2, 20), 40.0).unwrap();
    // All singular values are of one size: else bfloat16 makes the formula's small ones noise.
    let mut flat = vec![0f32; tape.layout.len];
    for (idx, (_, var)) in lm.parameters().iter().enumerate().filter(|(_, (_, var))| var.rank() == 2) {
        let (rows, cols) = var.dims2().unwrap();
        let side = rows.min(cols);
        let noise = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let value = |i: usize| 0.05 * noise(i) + f32::from(u8::from(i / cols % side == i % cols % side));
        let values = flat[tape.layout.span(idx)].iter_mut().enumerate();
        values.for_each(|(i, x)| *x = value(i));
    }
    tape.device.write(&flat, tape.gradients.at).unwrap();
    let mut gradients = Gradients::of(&lm);
    tape.add_gradients(&mut gradients).unwrap();
    tape.update(0.01, 0.0).unwrap();
    tape.download(&lm).unwrap();
    for (idx, (name, var)) in lm.parameters().iter().enumerate().filter(|(_, (name, _))| name.ends_with("_proj.weight"))
    {
        let Some(gradient) = gradients.get(idx) else {
            assert_eq!(values(var), before[idx], "{name} has no gradient");
            continue;
        };
        let (rows, cols) = var.dims2().unwrap();
        let direction: Vec<f64> = gradient.iter().map(|&g| 1.95 * f64::from(g)).collect();
        let direction = orthogonal(&direction, rows, cols);
        let size = 0.01 * 0.2 * (rows.max(cols) as f64).sqrt();
        let moved: Vec<f32> = values(var).iter().zip(&before[idx]).map(|(now, before)| now - before * 0.999).collect();
        let expected: Vec<f32> = direction.iter().map(|x| (-size * x) as f32).collect();
        let error = error(&moved, &expected);
        assert!(error < 3e-2, "{name}: error {error}");
    }
}

#[test]
fn emulated_muon_equals_its_formula() {
    muon_equals_its_formula("emulated_muon_equals_its_formula", Place::Host);
}

#[test]
fn muon_on_a_gpu_equals_its_formula() {
    muon_equals_its_formula("muon_on_a_gpu_equals_its_formula", Place::Gpu);
}

fn twenty_steps_lower_the_loss(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    for options in [adamw as fn(&CodeLm) -> DeviceOptimizer, muon] {
        let lm = experts();
        let mut tape = CudaTape::with_device(device.clone(), &lm, TapeOptions::default(), &options(&lm)).unwrap();
        let mut losses = Vec::new();
        for _ in 0..20 {
            tape.clear().unwrap();
            tape.step(&lm, &batch_of(1, 2, 20), 40.0).unwrap();
            losses.push(tape.update(0.01, 1.0).unwrap().nll_sum);
        }
        assert!(losses[19] < 0.5 * losses[0], "{losses:?}");
    }
}

#[test]
fn twenty_emulated_steps_lower_the_loss() {
    twenty_steps_lower_the_loss("twenty_emulated_steps_lower_the_loss", Place::Host);
}

#[test]
fn twenty_steps_on_a_gpu_lower_the_loss() {
    twenty_steps_lower_the_loss("twenty_steps_on_a_gpu_lower_the_loss", Place::Gpu);
}

fn a_state_continues_and_infinities_change_nothing(test: &str, place: Place) {
    let Some(device) = device(test, place, 32) else { return };
    let (lm, other) = (experts(), experts());
    let new = |lm: &CodeLm| CudaTape::with_device(device.clone(), lm, TapeOptions::default(), &muon(lm)).unwrap();
    let step = |tape: &mut CudaTape, lm: &CodeLm, seed: usize| {
        tape.clear().unwrap();
        tape.step(lm, &batch_of(seed, 2, 20), 40.0).unwrap();
        tape.update(0.01, 1.0).unwrap()
    };
    let mut first = new(&lm);
    (1..4).for_each(|seed| assert!(step(&mut first, &lm, seed).is_finite));
    first.download(&lm).unwrap();
    for ((_, to), (_, from)) in other.parameters().iter().zip(lm.parameters()) {
        to.set(from.as_tensor()).unwrap();
    }
    let mut second = new(&other);
    second.set_state(&first.state().unwrap()).unwrap();
    assert_eq!(step(&mut first, &lm, 9), step(&mut second, &other, 9));
    first.download(&lm).unwrap();
    second.download(&other).unwrap();
    lm.parameters().iter().zip(other.parameters()).for_each(|((_, a), (_, b))| assert_eq!(values(a), values(b)));

    let before = first.state().unwrap();
    first.clear().unwrap();
    first.step(&lm, &batch_of(1, 2, 20), 1e-42).unwrap();
    let report = first.update(0.01, 1.0).unwrap();
    assert!(!report.is_finite, "{report:?}");
    assert_eq!(first.state().unwrap(), before);
    let weights: Vec<Vec<f32>> = lm.parameters().iter().map(|(_, var)| values(var)).collect();
    first.download(&lm).unwrap();
    lm.parameters().iter().zip(&weights).for_each(|((name, var), before)| assert_eq!(&values(var), before, "{name}"));
    assert!(lm.device().same_device(&Cpu::Cpu));
}

#[test]
fn an_emulated_state_continues() {
    a_state_continues_and_infinities_change_nothing("an_emulated_state_continues", Place::Host);
}

#[test]
fn a_state_on_a_gpu_continues() {
    a_state_continues_and_infinities_change_nothing("a_state_on_a_gpu_continues", Place::Gpu);
}
