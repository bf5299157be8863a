//! The same over MPI: processes that `mpirun` starts. Skipped, by name, in a build without the feature `mpi` and where there is no `mpirun`.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::{Fixture, Outcome, TOKEN, UNTIED_SEED};

/// Within this time a wrong launch must have said so.
const IN_TIME: Duration = Duration::from_secs(10);

/// Whether this build and machine can start ranks; says so where not.
fn can_start(test: &str) -> bool {
    let found = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let reason = match (cfg!(feature = "mpi"), found) {
        (false, _) => "built without the feature mpi".to_owned(),
        (true, Err(error)) => format!("mpirun does not start: {error}"),
        (true, Ok(_)) => return true,
    };
    eprintln!("SKIPPED {test}: {reason}");
    false
}

/// `mpirun` with one group of ranks for each of `groups`: how many, and what they run.
fn mpirun(groups: &[(usize, Vec<String>)]) -> Output {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]).env("RAYON_NUM_THREADS", "1");
    for (idx, (n, program)) in groups.iter().enumerate() {
        if idx > 0 {
            command.arg(":");
        }
        command.args(["-n", &n.to_string()]).args(program);
    }
    command.output().unwrap()
}

/// `multicoder train` into the run folder `out`.
fn train(fixture: &Fixture, out: &str, sets: &[&str]) -> Vec<String> {
    let out = fixture.path(out).display().to_string();
    let words = [env!("CARGO_BIN_EXE_multicoder"), "train", "--preset", "smoke", "--resume", "--out", &out];
    let sets = fixture.settings(sets).into_iter().flat_map(|set| ["--set".to_owned(), set]);
    words.iter().map(|word| (*word).to_owned()).chain(sets).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that a launch fails in time and says all of `parts`.
fn assert_refused(groups: &[(usize, Vec<String>)], parts: &[&str]) {
    let start = Instant::now();
    let output = mpirun(groups);
    assert!(!output.status.success() && start.elapsed() < IN_TIME, "{:?}: {}", start.elapsed(), stderr(&output));
    for part in parts {
        assert!(stderr(&output).contains(part), "`{part}`: {}", stderr(&output));
    }
}

#[test]
fn two_ranks_over_mpi_equal_single() {
    if !can_start("two_ranks_over_mpi_equal_single") {
        return;
    }
    let shared = "model.moe.router={ kind = \"pl_shared\" }";
    for (mode, router) in [("data", TOKEN), ("language_owned", shared), ("expert", TOKEN)] {
        let fixture = Fixture::new();
        let reference = fixture.single("single", &[router, UNTIED_SEED]);
        let mode_set = format!("parallel.mode={mode}");
        let sets = [router, UNTIED_SEED, &mode_set, "parallel.world_size=2", "parallel.bucket_mib=0.01"];
        let output = mpirun(&[(2, train(&fixture, "two", &sets))]);
        assert!(output.status.success(), "{mode}: {}", stderr(&output));
        let said = stderr(&output);
        assert_eq!(said.matches("done: ").count(), 1, "only the first rank speaks: {said}");
        Outcome::read(&fixture.path("two"), 50).assert_equals(&reference, &format!("{mode} over MPI"));
    }
}

#[test]
fn wrong_launches_over_mpi_say_so_in_time() {
    if !can_start("wrong_launches_over_mpi_say_so_in_time") {
        return;
    }
    let fixture = Fixture::new();
    let right = train(&fixture, "right", &["parallel.mode=data", "parallel.join_timeout_s=5"]);
    let with = |extra: &[&str]| {
        let mut words = right.clone();
        extra.iter().for_each(|set| words.extend(["--set".to_owned(), (*set).to_owned()]));
        words
    };
    assert_refused(
        &[(2, with(&["parallel.world_size=3"]))],
        &["parallel.world_size = 3: the launcher started 2 (by OMPI_COMM_WORLD_SIZE)"],
    );
    assert_refused(
        &[(1, right.clone()), (1, with(&["schedule.lr=0.5"]))],
        &["rank 1 was started otherwise than rank 0: schedule.lr = 0.5, on rank 0 0.001"],
    );
    assert_refused(
        &[(2, with(&["parallel.mode=single"]))],
        &["parallel.mode = \"single\": the launcher started 2 ranks"],
    );
    // The second rank never calls MPI.
    let absent = vec!["sleep".to_owned(), "60".to_owned()];
    assert_refused(&[(1, right.clone()), (1, absent)], &["the ranks did not meet within 5s: at least one is missing"]);
    assert!(!fixture.path("right/metrics.jsonl").exists());
}
