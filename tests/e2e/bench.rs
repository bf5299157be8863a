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
    command.args(["--dense-twin", "--checkpointing", "--json"]);
    let finished = run(&mut command, DEADLINE)?;
    ensure!(finished.code == Some(0), "{finished:?}");
    let comparison: serde_json::Value = serde_json::from_str(&finished.stdout)?;
    let rows = comparison["rows"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    ensure!(names == ["multicoder", "multicoder, checkpointing", "multicoder, dense twin"], "{names:?}");
    for row in &rows {
        let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        ensure!(number("tokens_per_s") > 0.0 && number("peak_bytes") > 1e6, "{row}");
        ensure!(number("last_loss") < number("first_loss"), "the same batch again and again must be learnt: {row}");
    }
    ensure!(rows[0]["first_loss"] == rows[1]["first_loss"], "checkpointing changes nothing that is computed");
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
