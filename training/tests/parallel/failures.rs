//! What goes wrong between ranks: an error that says what, on all of them, in time.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use multicoder_training::parallel::Mesh;
use multicoder_training::run::{Start, run};

use crate::fixture::Fixture;

/// Within this time a wrong launch must have said so.
const IN_TIME: Duration = Duration::from_secs(10);

fn sets(extra: &[&str]) -> Vec<String> {
    let common = ["parallel.mode=data", "n_steps=3", "eval.every_steps=0", "parallel.join_timeout_s=2"];
    common.iter().chain(extra).map(|set| (*set).to_owned()).collect()
}

#[test]
fn one_rank_whose_loss_is_not_finite_stops_all_before_any_weight_changes() {
    let fixture = Fixture::new();
    // The first expert of the second layer answers with NaN; the language of that expert is on one rank alone.
    let poisoned = fixture.path("poisoned");
    fs::create_dir(&poisoned).unwrap();
    let config = fixture.config(&[]);
    let lm = multicoder_model::CodeLm::init(&config.model, config.seed, &candle_core::Device::Cpu).unwrap();
    let name = |name: &str| name.contains("layers.1.mlp.experts.2.down_proj");
    for (_, var) in lm.parameters().iter().filter(|(n, _)| name(n)) {
        var.set(&(var.as_tensor() * f64::NAN).unwrap()).unwrap();
    }
    multicoder_model::checkpoint::save_folder(&lm, &fixture.tokenizer, &poisoned).unwrap();
    let source = |_: usize| Start::Weights(Box::new(multicoder_training::weights::Source::open(&poisoned).unwrap()));
    let all = sets(&["parallel.mode=language_owned", "checkpoint.every_steps=1"]);
    for result in fixture.ranks("nan", 2, |_| all.clone(), source) {
        let message = format!("{:#}", result.unwrap_err());
        assert!(message.contains("expected finite numbers; no weight was changed"), "{message}");
    }
    assert!(!fixture.path("nan-0/checkpoints").exists());
}

#[test]
fn unequal_configurations_are_named_by_all_ranks() {
    let fixture = Fixture::new();
    let start = Instant::now();
    let by_rank = |rank: usize| sets(if rank == 1 { &["schedule.lr=0.5", "optimizer.beta1=0.8"] } else { &[] });
    for result in fixture.ranks("unequal", 3, by_rank, |_| Start::Scratch) {
        let message = format!("{:#}", result.unwrap_err());
        for part in ["rank 1 was started otherwise than rank 0", "schedule.lr = 0.5, on rank 0 0.001", "beta1 = 0.8"] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    assert!(!fixture.path("unequal-0/metrics.jsonl").exists());
}

#[test]
fn ranks_that_start_from_other_weights_are_named_by_all() {
    let fixture = Fixture::new();
    let config = fixture.config(&[]);
    let folders: Vec<_> = (0..2u64)
        .map(|seed| {
            let folder = fixture.path(&format!("weights-{seed}"));
            fs::create_dir(&folder).unwrap();
            let lm = multicoder_model::CodeLm::init(&config.model, seed, &candle_core::Device::Cpu).unwrap();
            multicoder_model::checkpoint::save_folder(&lm, &fixture.tokenizer, &folder).unwrap();
            folder
        })
        .collect();
    let source = |rank: usize| {
        Start::Weights(Box::new(multicoder_training::weights::Source::open(&folders[rank.min(1)]).unwrap()))
    };
    for result in fixture.ranks("weights", 2, |_| sets(&[]), source) {
        let message = format!("{:#}", result.unwrap_err());
        assert!(message.contains("rank 1 was started otherwise than rank 0: weights_fingerprint"), "{message}");
    }
}

#[test]
fn what_one_rank_cannot_open_stops_all_in_time() {
    let fixture = Fixture::new();
    let start = Instant::now();
    fixture.single("first", &["n_steps=1", "checkpoint.every_steps=1"]);
    let saved = multicoder_training::checkpoint::path_of(&fixture.out("first", 0), 1);
    let load = |rank: usize| {
        let mut checkpoint = multicoder_training::checkpoint::load(&saved, &candle_core::Device::Cpu).unwrap();
        // On the machine of rank 1 alone a weight is missing.
        if rank == 1 {
            checkpoint.weights.remove("model.norm.weight").unwrap();
        }
        Start::Checkpoint(Box::new(checkpoint))
    };
    for (rank, result) in fixture.ranks("open", 3, |_| sets(&[]), load).into_iter().enumerate() {
        let message = format!("{:#}", result.unwrap_err());
        let by = if rank == 1 { "" } else { "rank 1 of 3: " };
        assert!(
            message.starts_with(by) && message.contains("weight model.norm.weight is missing"),
            "rank {rank}: {message}"
        );
    }
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
}

#[test]
fn a_missing_rank_is_named_in_time() {
    let fixture = Fixture::new();
    let all = sets(&[]);
    let config = fixture.config(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let mut meshes = Mesh::threads(3, &config.parallel).unwrap();
    // Rank 2 is there, but never comes to the meeting.
    let _absent = meshes.pop().unwrap();
    let start = Instant::now();
    let train = |mesh: Mesh| {
        let out = fixture.out("missing", mesh.rank());
        let device = candle_core::Device::Cpu;
        format!("{:#}", run(&config, &fixture.tokenizer, Start::Scratch, &device, &out, mesh).unwrap_err())
    };
    let train = &train;
    let messages: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = meshes.into_iter().map(|mesh| scope.spawn(move || train(mesh))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    assert!(messages.iter().all(|message| message.contains("rank 2 is missing")), "{messages:?}");
}

#[test]
fn a_launch_that_does_not_fit_the_configuration_is_refused() {
    let fixture = Fixture::new();
    for (world, set, expected) in [
        (
            "2",
            "parallel.mode=single",
            "parallel.mode = \"single\": the launcher started 2 ranks (by OMPI_COMM_WORLD_SIZE)",
        ),
        ("2", "parallel.world_size=3", "parallel.world_size = 3: the launcher started 2"),
        ("1", "parallel.world_size=3", "parallel.world_size = 3: the launcher started 1"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_multicoder"));
        command.env("OMPI_COMM_WORLD_SIZE", world).env("OMPI_COMM_WORLD_RANK", "0");
        command.args(["train", "--preset", "smoke", "--out"]).arg(fixture.path("run"));
        for set in fixture.settings(&["parallel.mode=data", set]) {
            command.args(["--set", &set]);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{said}");
        assert!(!fixture.path("run").exists());
    }
}

#[test]
fn ranks_of_a_build_without_mpi_are_told_so() {
    if cfg!(feature = "mpi") {
        eprintln!("SKIPPED ranks_of_a_build_without_mpi_are_told_so: built with the feature mpi");
        return;
    }
    let fixture = Fixture::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_multicoder"));
    command.env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", "0");
    command.args(["train", "--preset", "smoke", "--out"]).arg(fixture.path("run"));
    for set in fixture.settings(&["parallel.mode=data"]) {
        command.args(["--set", &set]);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("built without the feature `mpi`"), "{said}");
}
