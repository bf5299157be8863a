//! A corpus, a tokenizer and a model for tests of many ranks, and runs over them on threads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use multicoder_model::Tokenizer;
use multicoder_model::tokenizer::TokenizerOptions;
use multicoder_training::config::{self, RunConfig};
use multicoder_training::data::shard::{Document, ShardWriter};
use multicoder_training::parallel::Mesh;
use multicoder_training::run::{Start, run};
use tempfile::TempDir;

/// Languages and the number of their files: unequal loads.
const LANGUAGES: [(&str, usize); 4] = [("go", 6), ("lua", 3), ("python", 24), ("rust", 10)];

/// Six sequences a step in two micro-steps of three: with four ranks, one has none; a second run over it has other numbers.
const SETTINGS: [&str; 16] = [
    "n_steps=50",
    "data.sequence_tokens=32",
    "data.window_tokens=30",
    "data.batch_tokens=192",
    "data.micro_batch_tokens=96",
    "eval.every_steps=25",
    "eval.sequences_per_language=3",
    "checkpoint.every_steps=0",
    "schedule.lr=1e-3",
    "model.d_model=32",
    "model.d_ff=48",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.d_head=16",
    "model.moe={ layers = { every_n = 1 }, n_experts = 4, d_ff_expert = 24, d_ff_shared = 24, router = { kind = \"pl_shared\" } }",
];

pub(crate) struct Fixture {
    dir: TempDir,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let mut texts = Vec::new();
        for (split, divisor) in [("train", 1), ("valid", 3)] {
            for (language, n_files) in LANGUAGES {
                let mut writer = ShardWriter::create(&dir.path().join("shards"), split, language).unwrap();
                for n in 0..n_files / divisor {
                    let text: String =
                        (0..12 + n % 5).map(|k| format!("{language} f_{n}_{k}(a, b) = a + {k} * b\n")).collect();
                    texts.push(text.clone());
                    writer.push(Document { text, language: language.to_owned(), ..Document::default() }).unwrap();
                }
                writer.finish().unwrap();
            }
        }
        let languages = LANGUAGES.map(|(name, _)| name.to_owned()).to_vec();
        let options = TokenizerOptions { vocab_size: 340, languages, min_frequency: 2, ..TokenizerOptions::default() };
        let tokenizer = Arc::new(Tokenizer::train(texts.iter(), &options).unwrap());
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_json().unwrap()).unwrap();
        Fixture { dir, tokenizer }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The settings of this file and then `sets`, as `--set` takes them.
    pub(crate) fn settings(&self, sets: &[&str]) -> Vec<String> {
        let names = LANGUAGES.map(|(name, _)| format!("{name:?}")).join(", ");
        let mut all = vec![
            format!("data.shards={:?}", self.path("shards").display().to_string()),
            format!("data.tokenizer={:?}", self.path("tokenizer.json").display().to_string()),
            format!("data.languages=[{names}]"),
            format!("model.languages=[{names}]"),
            format!("model.vocab_size={}", self.tokenizer.vocab_size()),
        ];
        all.extend(SETTINGS.iter().chain(sets).map(|set| (*set).to_owned()));
        all
    }

    pub(crate) fn config(&self, sets: &[&str]) -> RunConfig {
        let mut table = config::parse(config::preset("smoke").unwrap(), "smoke").unwrap();
        self.settings(sets).iter().for_each(|set| config::set(&mut table, set).unwrap());
        config::resolve(&table, "smoke").unwrap()
    }

    /// One process.
    pub(crate) fn single(&self, name: &str, sets: &[&str]) -> Outcome {
        let out = self.out(name, 0);
        let config = self.config(sets);
        run(&config, &self.tokenizer, Start::Scratch, &Device::Cpu, &out, Mesh::single()).unwrap();
        Outcome::read(&out, config.n_steps)
    }

    /// What each of `world` ranks returns; `start` and `sets` by rank.
    pub(crate) fn ranks(
        &self,
        name: &str,
        world: usize,
        sets: impl Fn(usize) -> Vec<String> + Sync,
        start: impl Fn(usize) -> Start + Sync,
    ) -> Vec<Result<PathBuf>> {
        let config = |rank: usize| self.config(&sets(rank).iter().map(String::as_str).collect::<Vec<_>>());
        let meshes = Mesh::threads(world, &config(0).parallel).unwrap();
        let train = |mesh: Mesh| {
            let rank = mesh.rank();
            let out = self.out(name, rank);
            run(&config(rank), &self.tokenizer, start(rank), &Device::Cpu, &out, mesh)
        };
        let train = &train;
        std::thread::scope(|scope| {
            let threads: Vec<_> = meshes.into_iter().map(|mesh| scope.spawn(move || train(mesh))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// `world` ranks from the start, which must all succeed; only the first may write.
    pub(crate) fn parallel(&self, name: &str, world: usize, sets: &[&str]) -> Outcome {
        let all = sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>();
        for result in self.ranks(name, world, |_| all.clone(), |_| Start::Scratch) {
            result.unwrap();
        }
        for rank in 1..world {
            assert_eq!(fs::read_dir(self.out(name, rank)).unwrap().count(), 0, "rank {rank} wrote something");
        }
        Outcome::read(&self.out(name, 0), self.config(sets).n_steps)
    }

    /// The folder of a rank, made.
    pub(crate) fn out(&self, name: &str, rank: usize) -> PathBuf {
        let out = self.path(&format!("{name}-{rank}"));
        fs::create_dir_all(&out).unwrap();
        out
    }
}

/// What a run leaves.
pub(crate) struct Outcome {
    /// Of the training steps.
    pub(crate) steps: Vec<serde_json::Value>,
    /// Of the validations.
    pub(crate) valid: Vec<serde_json::Value>,
    /// Weights and moments by name.
    pub(crate) tensors: BTreeMap<String, Vec<f32>>,
    /// Of each parameter.
    pub(crate) parameter_steps: Vec<u64>,
}

impl Outcome {
    pub(crate) fn read(out: &Path, step: u64) -> Outcome {
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let (steps, valid) = lines.partition(|line| line["kind"] == "train");
        let folder = out.join(format!("checkpoints/step-{step:08}"));
        let mut tensors = BTreeMap::new();
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let read = candle_core::safetensors::load(folder.join(file), &Device::Cpu).unwrap().into_iter();
            tensors.extend(read.map(|(name, x)| (name, x.flatten_all().unwrap().to_vec1::<f32>().unwrap())));
        }
        let state: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("state.json")).unwrap()).unwrap();
        let parameter_steps = serde_json::from_value(state["parameter_steps"].clone()).unwrap();
        Outcome { steps, valid, tensors, parameter_steps }
    }

    /// A number of each training step.
    pub(crate) fn curve(&self, name: &str) -> Vec<f64> {
        self.steps.iter().map(|step| step[name].as_f64().unwrap()).collect()
    }

    /// The largest difference from `reference` of a step's loss, relative to it, and of a weight or moment.
    pub(crate) fn drift(&self, reference: &Outcome) -> (f64, f64) {
        let losses = self.curve("loss").into_iter().zip(reference.curve("loss"));
        let loss = losses.map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max);
        let values = |outcome: &Outcome| outcome.tensors.values().flatten().copied().collect::<Vec<f32>>();
        let differences = values(self).into_iter().zip(values(reference)).map(|(a, b)| f64::from((a - b).abs()));
        (loss, differences.fold(0.0, f64::max))
    }

    /// Asserts that this run is `reference` up to rounding: losses, by language too, norms, loads, validation, weights, moments, step counts.
    pub(crate) fn assert_equals(&self, reference: &Outcome, what: &str) {
        for name in ["loss", "aux_loss", "grad_norm"] {
            let (a, b) = (self.curve(name), reference.curve(name));
            assert_eq!(a.len(), b.len(), "{what}: steps");
            for (step, (a, b)) in a.iter().zip(&b).enumerate() {
                assert!((a - b).abs() <= DRIFT * b.abs().max(1.0), "{what}: {name} of step {step}: {a}, expected {b}");
            }
        }
        for (a, b) in self.steps.iter().zip(&reference.steps) {
            assert_eq!((&a["n_tokens"], &a["n_counted"]), (&b["n_tokens"], &b["n_counted"]), "{what}");
        }
        for (step, (a, b)) in self.steps.iter().zip(&reference.steps).enumerate() {
            assert_eq!(a["counted_by_language"], b["counted_by_language"], "{what}: languages of step {step}");
            for (name, b) in b["loss_by_language"].as_object().unwrap() {
                let (a, b) = (a["loss_by_language"][name].as_f64().unwrap(), b.as_f64().unwrap());
                assert!(
                    (a - b).abs() <= DRIFT * b.max(1.0),
                    "{what}: loss of {name} at step {step}: {a}, expected {b}"
                );
            }
        }
        for (a, b) in self.valid.iter().zip(&reference.valid) {
            for (name, b) in b.as_object().unwrap().iter().filter_map(|(name, b)| Some((name, b.as_f64()?))) {
                let a = a[name].as_f64().unwrap();
                assert!((a - b).abs() <= DRIFT, "{what}: validation {name}: {a}, expected {b}");
            }
        }
        assert_eq!(self.valid.len(), reference.valid.len(), "{what}: validations");
        assert_eq!(self.parameter_steps, reference.parameter_steps, "{what}: steps of each parameter");
        assert_eq!(self.tensors.keys().collect::<Vec<_>>(), reference.tensors.keys().collect::<Vec<_>>(), "{what}");
        for (name, b) in &reference.tensors {
            let difference = self.tensors[name].iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(f64::from(difference) <= DRIFT, "{what}: {name} drifted by {difference}");
        }
    }
}

/// Experts that tokens choose, with every option at work.
pub(crate) const TOKEN: &str =
    "model.moe.router={ kind = \"token\", top_k = 2, normalize = true, balance_loss = 0.02, z_loss = 0.001 }";
/// For [`TOKEN`]: with seed 1 a token stands between two experts so evenly at step 26 that rounding decides, and all that follows differs.
pub(crate) const UNTIED_SEED: &str = "seed=2";

/// The largest difference from one process that rounding may make over 50 steps.
const DRIFT: f64 = 1e-4;
