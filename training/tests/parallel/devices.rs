//! Steps on a device, alone and on several ranks, whose gradients and losses pass through the host: those of one process on the CPU.
//!
//! The device is a stand-in that computes on the CPU, with weights, gradients and an optimizer that are its own, as a GPU's are.

#![allow(non_snake_case)]

use candle_core::Device;
use multicoder_model::tape::{DeviceReport, DeviceState, DeviceTape, Profile, StepLoss, TapeOptions, TrainTape};
use multicoder_model::{Batch, CodeLm, Gradients, Result};
use multicoder_training::config::RunConfig;
use multicoder_training::data::loader::Loader;
use multicoder_training::optimizer::Optimizer;
use multicoder_training::parallel::{Mesh, make_whole};
use multicoder_training::step::{StepOptions, StepReport, Workspace, step};

use crate::fixture::Fixture;

struct StandIn {
    lm: CodeLm,
    tape: TrainTape,
    gradients: Gradients,
    optimizer: Optimizer,
    nll_B: Vec<f64>,
    profile: Profile,
}

fn failed(error: anyhow::Error) -> multicoder_model::Error {
    multicoder_model::Error::Device(format!("{error:#}"))
}

impl StandIn {
    fn new(config: &RunConfig) -> StandIn {
        let lm = CodeLm::init(&config.model, config.seed, &Device::Cpu).unwrap();
        let optimizer = Optimizer::new(&config.optimizer, lm.parameters()).unwrap();
        let (gradients, tape) = (Gradients::of(&lm), TrainTape::new(TapeOptions::default()));
        StandIn { lm, tape, gradients, optimizer, nll_B: Vec::new(), profile: Profile::default() }
    }
}

impl DeviceTape for StandIn {
    fn clear(&mut self) -> Result<()> {
        self.gradients.clear();
        self.nll_B.clear();
        Ok(())
    }

    fn step(&mut self, _: &CodeLm, batch: &Batch, divisor: f64) -> Result<StepLoss> {
        let loss = self.tape.step(&self.lm, batch, (divisor, 1.0), &mut self.gradients, None)?;
        self.nll_B.extend(&loss.nll_B);
        Ok(StepLoss { nll_sum: 0.0, nll_B: Vec::new(), ..loss })
    }

    fn update(&mut self, lr: f64, clip_norm: f64) -> Result<DeviceReport> {
        self.gradients.settle();
        let (nll_B, grad_norm) = (self.nll_B.clone(), self.gradients.norm());
        let scale = if clip_norm > 0.0 { (clip_norm / grad_norm).min(1.0) } else { 1.0 };
        let nll_sum: f64 = nll_B.iter().sum();
        let is_finite = nll_sum.is_finite() && grad_norm.is_finite();
        if is_finite {
            self.optimizer.step(&self.gradients, scale, lr).map_err(failed)?;
        }
        Ok(DeviceReport { nll_sum, nll_B, grad_norm, is_finite })
    }

    fn losses(&mut self) -> Result<Vec<f64>> {
        Ok(self.nll_B.clone())
    }

    fn update_with(&mut self, gradients: &Gradients, scale: f64, lr: f64) -> Result<()> {
        self.optimizer.step(gradients, scale, lr).map_err(failed)
    }

    fn upload(&mut self, lm: &CodeLm) -> Result<()> {
        copy(lm, &self.lm)
    }

    fn download(&mut self, lm: &CodeLm) -> Result<()> {
        copy(&self.lm, lm)
    }

    fn add_gradients(&mut self, gradients: &mut Gradients) -> Result<()> {
        for idx in 0..gradients.n_parameters() {
            let Some(values) = self.gradients.get(idx) else { continue };
            gradients.slice_mut(idx).iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    fn state(&mut self) -> Result<DeviceState> {
        self.optimizer.device_state().map_err(failed)
    }

    fn set_state(&mut self, state: &DeviceState) -> Result<()> {
        self.optimizer.set_device_state(state).map_err(failed)
    }

    fn profile(&mut self) -> &mut Profile {
        &mut self.profile
    }

    fn set_profiling(&mut self, _: bool) {}

    fn n_bytes(&self) -> usize {
        self.tape.n_bytes()
    }

    fn peak_bytes(&self) -> usize {
        self.n_bytes()
    }

    fn describe(&self) -> String {
        "a stand-in on the CPU".to_owned()
    }
}

fn copy(from: &CodeLm, to: &CodeLm) -> Result<()> {
    for ((_, from), (_, to)) in from.parameters().iter().zip(to.parameters()) {
        to.set(&from.as_tensor().copy()?)?;
    }
    Ok(())
}

/// Weights, moments and reports.
type Outcome = (Vec<f32>, Vec<f32>, Vec<StepReport>);

/// Some steps, on the CPU or on a device.
fn steps(fixture: &Fixture, config: &RunConfig, mut mesh: Mesh, device: Option<StandIn>) -> anyhow::Result<Outcome> {
    let mut lm = CodeLm::init(&config.model, config.seed, &Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(&config.optimizer, lm.parameters()).unwrap();
    let mut loader = Loader::open(config, &fixture.tokenizer).unwrap();
    let mut workspace = match device {
        None => Workspace::new(&lm, TapeOptions::default()),
        Some(device) => Workspace::on(TrainTape::on(Box::new(device)), &lm, &optimizer, mesh.world())?,
    };
    mesh.divide(config, &mut lm, &loader.language_probs(), &workspace.gradients);
    let options = StepOptions {
        micro_batch_sequences: config.micro_batch_sequences(),
        clip_norm: 0.5,
        language_indices: config.data.languages.iter().map(|name| config.model.language_index(Some(name))).collect(),
        document_mask: false,
        device: Device::Cpu,
        seed: 1,
    };
    let mut one = || step(&mut lm, &mut optimizer, &mut workspace, &mut loader, &mut mesh, &options, (0, 1e-3));
    let reports = (0..8).map(|_| one()).collect::<anyhow::Result<_>>()?;
    workspace.bring_back(&lm, &mut optimizer).unwrap();
    make_whole(&mesh, &lm, &mut optimizer).unwrap();
    let values = |(_, var): &(String, candle_core::Var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let weights = lm.parameters().iter().flat_map(values).collect();
    let moments = optimizer.device_state().unwrap().first;
    mesh.leave()?;
    Ok((weights, moments, reports))
}

fn assert_close(got: &[f32], expected: &[f32], what: &str) {
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(got.len() == expected.len() && worst < 1e-5, "{what}: {worst}");
}

fn assert_same_steps(got: &Outcome, expected: &Outcome, what: &str) {
    assert_close(&got.0, &expected.0, &format!("{what}: weights"));
    assert_close(&got.1, &expected.1, &format!("{what}: moments"));
    for (got, expected) in got.2.iter().zip(&expected.2) {
        assert!((got.loss - expected.loss).abs() < 1e-5 && expected.grad_norm > 0.5, "{what}: {got:?}");
        assert!((got.grad_norm - expected.grad_norm).abs() < 1e-4, "{what}: {got:?}, not {expected:?}");
        assert!(expected.languages.iter().filter(|language| language.nll_sum > 0.0).count() > 1, "{expected:?}");
        for (got, expected) in got.languages.iter().zip(&expected.languages) {
            assert!((got.nll_sum - expected.nll_sum).abs() < 1e-3, "{what}: {got:?}, not {expected:?}");
        }
    }
}

#[test]
fn a_device_takes_the_steps_of_the_cpu_and_says_the_loss_of_each_language() {
    let fixture = Fixture::new();
    let config = fixture.config(&[]);
    let on = |device| steps(&fixture, &config, Mesh::single(), device);
    let (expected, got) = (on(None).unwrap(), on(Some(StandIn::new(&config))).unwrap());
    assert_same_steps(&got, &expected, "one device");
}

#[test]
fn a_device_whose_loss_is_no_number_ends_the_run() {
    let fixture = Fixture::new();
    let config = fixture.config(&[]);
    let device = StandIn::new(&config);
    let (_, norm) = device.lm.parameters().iter().find(|(name, _)| name == "model.norm.weight").unwrap();
    norm.set(&(norm.as_tensor() * f64::NAN).unwrap()).unwrap();
    let error = steps(&fixture, &config, Mesh::single(), Some(device)).unwrap_err().to_string();
    assert!(error.contains("expected finite numbers; no weight was changed"), "{error}");
}

#[test]
fn ranks_on_devices_take_the_steps_of_one_process() {
    for mode in ["data", "language_owned"] {
        let fixture = Fixture::new();
        let expected = steps(&fixture, &fixture.config(&[]), Mesh::single(), None).unwrap();
        let config = fixture.config(&[&format!("parallel.mode={mode}")]);
        let meshes = Mesh::threads(2, &config.parallel).unwrap();
        let (fixture, config) = (&fixture, &config);
        let ranks: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = meshes
                .into_iter()
                .map(|mesh| scope.spawn(move || steps(fixture, config, mesh, Some(StandIn::new(config))).unwrap()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (rank, got) in ranks.iter().enumerate() {
            assert_same_steps(got, &expected, &format!("{mode}: rank {rank}"));
        }
    }
}
