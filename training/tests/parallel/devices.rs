//! Ranks whose steps run on devices of their own: gradients and losses pass through the host, and the steps are those of one process.
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

    fn update(&mut self, _: f64, _: f64) -> Result<DeviceReport> {
        unreachable!("several ranks judge together")
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

/// Some steps; the device's where `world` is above 1. Weights, moments and reports.
fn steps(fixture: &Fixture, config: &RunConfig, mut mesh: Mesh) -> (Vec<f32>, Vec<f32>, Vec<StepReport>) {
    let mut lm = CodeLm::init(&config.model, config.seed, &Device::Cpu).unwrap();
    let mut optimizer = Optimizer::new(&config.optimizer, lm.parameters()).unwrap();
    let mut loader = Loader::open(config, &fixture.tokenizer).unwrap();
    let mut workspace = match mesh.world() {
        1 => Workspace::new(&lm, TapeOptions::default()),
        world => Workspace::on(TrainTape::on(Box::new(StandIn::new(config))), &lm, &optimizer, world).unwrap(),
    };
    mesh.divide(config, &mut lm, &loader.language_probs(), &workspace.gradients);
    let options = StepOptions {
        micro_batch_sequences: config.micro_batch_sequences(),
        clip_norm: 0.5,
        language_indices: config.data.languages.iter().map(|name| config.model.language_index(Some(name))).collect(),
        document_mask: false,
        device: Device::Cpu,
    };
    let mut one = || step(&mut lm, &mut optimizer, &mut workspace, &mut loader, &mut mesh, &options, 1e-3).unwrap();
    let reports = (0..8).map(|_| one()).collect();
    workspace.bring_back(&lm, &mut optimizer).unwrap();
    make_whole(&mesh, &lm, &mut optimizer).unwrap();
    let values = |(_, var): &(String, candle_core::Var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let weights = lm.parameters().iter().flat_map(values).collect();
    let moments = optimizer.device_state().unwrap().first;
    mesh.leave().unwrap();
    (weights, moments, reports)
}

fn assert_close(got: &[f32], expected: &[f32], what: &str) {
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(got.len() == expected.len() && worst < 1e-5, "{what}: {worst}");
}

#[test]
fn ranks_on_devices_take_the_steps_of_one_process() {
    for mode in ["data", "language_owned"] {
        let fixture = Fixture::new();
        let single = fixture.config(&[]);
        let (weights, moments, reports) = steps(&fixture, &single, Mesh::single());
        let config = fixture.config(&[&format!("parallel.mode={mode}")]);
        let meshes = Mesh::threads(2, &config.parallel).unwrap();
        let (fixture, config) = (&fixture, &config);
        let ranks: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                meshes.into_iter().map(|mesh| scope.spawn(move || steps(fixture, config, mesh))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (rank, (its_weights, its_moments, its_reports)) in ranks.iter().enumerate() {
            assert_close(its_weights, &weights, &format!("{mode}: weights of rank {rank}"));
            assert_close(its_moments, &moments, &format!("{mode}: moments of rank {rank}"));
            for (got, expected) in its_reports.iter().zip(&reports) {
                assert!((got.loss - expected.loss).abs() < 1e-5 && expected.grad_norm > 0.5, "{mode}: {got:?}");
                assert!((got.grad_norm - expected.grad_norm).abs() < 1e-4, "{mode}: {got:?}, not {expected:?}");
                for (got, expected) in got.languages.iter().zip(&expected.languages) {
                    assert!((got.nll_sum - expected.nll_sum).abs() < 1e-3, "{mode}: {got:?}, not {expected:?}");
                }
            }
        }
    }
}
