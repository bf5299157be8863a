//! `multicoder bench train` as a user starts it: every variant in a process of its own, and peers that are not there.

use anyhow::{Result, ensure};
use multicoder_tests::program::{binary, run};
use std::process::Command;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(300);

#[test]
fn the_training_step_is_measured_in_every_variant() -> Result<()> {
    let mut command = Command::new(binary("multicoder")?);
    command.args(["bench", "train", "--preset", "smoke", "--rounds", "1", "--steps", "2", "--compute", "f32"]);
    command.args(["--set", "data.batch_tokens=512", "--set", "data.micro_batch_tokens=512"]);
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("bench.json");
    command.args(["--dense-twin", "--checkpointing", "--json", "--out"]).arg(&out);
    let finished = run(&mut command, DEADLINE)?;
    ensure!(finished.code == Some(0), "{finished:?}");
    let comparison: serde_json::Value = serde_json::from_str(&finished.stdout)?;
    let rows = comparison["rows"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    ensure!(names == ["multicoder", "multicoder, dense twin", "multicoder, checkpointing"], "{names:?}");
    for row in &rows {
        let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        ensure!(number("tokens_per_s") > 0.0 && number("peak_bytes") > 1e6, "{row}");
        ensure!(number("last_loss") < number("first_loss"), "a batch that comes again must have been learnt: {row}");
    }
    ensure!(rows[0]["first_loss"] == rows[2]["first_loss"], "checkpointing changes nothing that is computed");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&out)?)?;
    ensure!(written == comparison, "{written}");
    Ok(())
}

#[test]
fn rounds_go_on_where_a_file_has_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("bench.json");
    let bench = |rounds: &str, steps: &str| -> Result<_> {
        let mut command = Command::new(binary("multicoder")?);
        command.args(["bench", "train", "--preset", "smoke", "--compute", "f32", "--rounds", rounds, "--steps", steps]);
        command.args(["--set", "data.batch_tokens=256", "--set", "data.micro_batch_tokens=256", "--out"]).arg(&out);
        run(&mut command, DEADLINE)
    };
    let rounds = |stderr: &str| stderr.lines().filter_map(|line| line.split(':').next().map(str::to_owned)).collect();
    let first: Vec<String> = rounds(&bench("1", "2")?.stderr);
    let second: Vec<String> = rounds(&bench("3", "2")?.stderr);
    ensure!(first == ["round 1/1"] && second == ["round 2/3", "round 3/3"], "{first:?}, {second:?}");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&out)?)?;
    let seconds = written["rows"][0]["round_seconds"].as_array().map(Vec::len);
    ensure!(written["rounds"] == 3 && seconds == Some(3), "{written}");
    let other = bench("3", "3")?;
    ensure!(other.code == Some(1) && other.stderr.contains("it holds other models, steps or threads"), "{other:?}");
    Ok(())
}

#[test]
fn a_peer_that_is_not_there_is_a_clear_error() -> Result<()> {
    let mut command = Command::new(binary("multicoder")?);
    command.args(["bench", "train", "--against", "torch", "--python", "no-such-python"]);
    let finished = run(&mut command, DEADLINE)?;
    let expected = "--python no-such-python: expected a Python with PyTorch";
    ensure!(finished.code == Some(1) && finished.stderr.contains(expected), "{finished:?}");
    Ok(())
}
