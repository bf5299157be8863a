//! The table of modes: loss curve, gradient norm, validation, weights, moments and step counts over 50 steps are those of one process.

use multicoder_training::checkpoint;
use multicoder_training::run::Start;

use crate::fixture::{Fixture, Outcome, TOKEN, UNTIED_SEED};

const PL_HARD: &str = "model.moe.router={ kind = \"pl_hard\" }";
const PL_SHARED: &str = "model.moe.router={ kind = \"pl_shared\", combine = \"sigmoid\" }";
/// Small buckets: several of them in a tiny model.
const BUCKETS: &str = "parallel.bucket_mib=0.01";

/// Compares `mode` on 1, 2 and 4 ranks with one process, with the settings `sets`.
fn assert_mode_equals_single(mode: &str, sets: &[&str]) {
    let fixture = Fixture::new();
    let reference = fixture.single("single", sets);
    let curve = reference.curve("loss");
    assert!(curve[49] < curve[0] - 0.3, "the reference learns: {curve:?}");
    let mode = format!("parallel.mode={mode}");
    let sets: Vec<&str> = sets.iter().copied().chain([mode.as_str(), BUCKETS]).collect();
    for world in [1, 2, 4] {
        let outcome = fixture.parallel(&format!("ranks{world}"), world, &sets);
        outcome.assert_equals(&reference, &format!("{sets:?} on {world} ranks"));
        // A row of the table in docs/scaling.md.
        let (loss, tensors) = outcome.drift(&reference);
        println!("| {} | {world} | {loss:.1e} | {tensors:.1e} |", sets[..sets.len() - 1].join(", "));
        let sent: f64 = outcome.curve("comm_bytes").iter().sum();
        assert_eq!(sent > 0.0, world > 1, "{sent} bytes sent by one of {world} ranks");
        let shares = outcome.curve("comm_share");
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{world} ranks: {shares:?}");
    }
}

#[test]
fn data_parallel_with_experts_by_language_equals_single() {
    assert_mode_equals_single("data", &[PL_SHARED]);
}

#[test]
fn data_parallel_with_experts_by_token_equals_single() {
    assert_mode_equals_single("data", &[TOKEN, UNTIED_SEED]);
}

#[test]
fn data_parallel_with_muon_equals_single() {
    assert_mode_equals_single("data", &[PL_HARD, "optimizer.kind=muon"]);
}

#[test]
fn language_owned_experts_equal_single() {
    assert_mode_equals_single("language_owned", &[PL_SHARED]);
    assert_mode_equals_single("language_owned", &[PL_HARD]);
}

#[test]
fn experts_to_which_tokens_travel_equal_single() {
    assert_mode_equals_single("expert", &[TOKEN, UNTIED_SEED]);
    assert_mode_equals_single("expert", &[PL_SHARED]);
}

#[test]
fn the_clip_norm_counts_each_expert_once() {
    // So low a limit that every step is clipped: a norm that counted experts twice, or not at all, would change every weight.
    for (mode, router) in [("language_owned", PL_HARD), ("expert", TOKEN), ("data", PL_HARD)] {
        let fixture = Fixture::new();
        let sets = [router, "optimizer.clip_norm=0.05", "n_steps=12", "eval.every_steps=0", "schedule.warmup_steps=0"];
        let reference = fixture.single("single", &sets);
        assert!(reference.curve("grad_norm").iter().all(|norm| *norm > 0.05), "{mode}: every step is clipped");
        let mode_set = format!("parallel.mode={mode}");
        let sets: Vec<&str> = sets.into_iter().chain([mode_set.as_str()]).collect();
        fixture.parallel("ranks", 2, &sets).assert_equals(&reference, &format!("{mode}, clipped"));
    }
}

#[test]
fn language_owned_ranks_send_less_than_data_parallel_ones() {
    let fixture = Fixture::new();
    let bytes = |mode: &str| {
        let sets = [PL_HARD, "n_steps=3", "eval.every_steps=0", &format!("parallel.mode={mode}")];
        fixture.parallel(mode, 2, &sets).curve("comm_bytes")[1]
    };
    let (data, owned) = (bytes("data"), bytes("language_owned"));
    let config = fixture.config(&[PL_HARD]);
    let experts = config.model.moe.as_ref().map_or(0, |moe| 2 * 4 * 3 * 32 * moe.d_ff_expert) as f64;
    // Half of each sum goes to the other rank, twice: the bytes of the values themselves, and one number a parameter.
    assert!((data - owned - 4.0 * experts).abs() < 400.0, "{data} and {owned} bytes, experts have {experts} values");
}

#[test]
fn a_run_resumes_under_another_number_of_ranks() {
    for (mode, router) in [("language_owned", PL_SHARED), ("expert", TOKEN)] {
        let fixture = Fixture::new();
        let sets = [router, "n_steps=20", "checkpoint.every_steps=10", "eval.every_steps=0"];
        let reference = fixture.single("single", &sets);
        let mode_set = format!("parallel.mode={mode}");
        let sets: Vec<&str> = sets.into_iter().chain([mode_set.as_str()]).collect();
        fixture.parallel("two", 2, &sets);
        let owned: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let half = checkpoint::path_of(&fixture.out("two", 0), 10);
        let load = |_: usize| Start::Checkpoint(Box::new(checkpoint::load(&half, &candle_core::Device::Cpu).unwrap()));
        for world in [4, 1] {
            let name = format!("resumed{world}");
            fixture.ranks(&name, world, |_| owned.clone(), load).into_iter().for_each(|result| drop(result.unwrap()));
            let mut resumed = Outcome::read(&fixture.out(&name, 0), 20);
            let before = reference.steps[..10].to_vec();
            resumed.steps.splice(0..0, before);
            resumed.assert_equals(&reference, &format!("{mode}: 2 ranks, then {world}"));
        }
    }
}
