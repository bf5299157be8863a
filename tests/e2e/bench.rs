//! `multicoder bench train` and `multicoder-lsp bench` as a user starts them: all that they measure, and peers that are not there.

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

fn measured(arguments: &[&str]) -> Result<serde_json::Value> {
    let mut command = Command::new(binary("multicoder-lsp")?);
    command.arg("bench").args(arguments).args(["--rounds", "1", "--keys", "2", "--json"]);
    let finished = run(&mut command, DEADLINE)?;
    ensure!(finished.code == Some(0), "{finished:?}");
    Ok(serde_json::from_str(&finished.stdout)?)
}

fn check_speeds(rows: &[serde_json::Value]) -> Result<()> {
    let names = ["read_per_s", "written_per_s", "late_per_s", "memory_share", "cold_ms", "key_p50_ms", "key_p95_ms"];
    for row in rows {
        ensure!(names.iter().all(|name| row[name].as_f64().is_some_and(|value| value > 0.0)), "{row}");
        let [cold, key] = ["cold_ms", "key_p50_ms"].map(|name| row[name].as_f64().unwrap_or(0.0));
        ensure!(row["program"] != "multicoder" || key < cold, "a key goes on from what was read: {row}");
    }
    Ok(())
}

#[test]
fn the_server_measures_its_own_model_at_rest_and_beside_a_busy_core() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let picture = dir.path().join("roofline.svg").display().to_string();
    let of_rust = ["--language", "rust", "--quantize", "q8_0", "--threads", "1,2", "--busy", "--roofline", &picture];
    let report = measured(&of_rust)?;
    let rows = report["rows"].as_array().cloned().unwrap_or_default();
    let settings: Vec<_> = rows.iter().map(|row| (row["threads"].as_u64(), row["is_busy"].as_bool())).collect();
    let expected = [(1, false), (2, false), (1, true), (2, true)].map(|(n, busy)| (Some(n), Some(busy)));
    ensure!(settings == expected, "{settings:?}");
    let points = report["roofline"]["points"].as_array().map_or(0, Vec::len);
    let circles = std::fs::read_to_string(&picture)?.matches("<circle").count();
    ensure!(points == 8 && circles == 8, "{points} points, {circles} of them drawn");
    check_speeds(&rows)
}

/// In place of a Python with llama.cpp: it checks the file that it is given, writes what it was asked for, and answers that all took a second.
const PEER: &str = r#"#!/usr/bin/env python3
import json, sys
if sys.argv[1:3] == ["-c", "import xllamacpp"]:
    sys.exit(0)
assert sys.argv[3] == "--model" and open(sys.argv[4], "rb").read(4) == b"GGUF"
print(json.dumps({"version": "of a test"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    n = 1 if asked["is_cached"] else len(asked["ids"])
    answer = {"ids": [0] * asked["n_new"], "prompt_tokens": n, "prompt_s": 1, "written_tokens": asked["n_new"], "written_s": 1, "elapsed_s": 1}
    print(json.dumps(answer), flush=True)
"#;

#[test]
fn llama_cpp_gets_the_same_weights_and_the_same_work() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir()?;
    let python = dir.path().join("python");
    std::fs::write(&python, PEER)?;
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755))?;
    let python = python.display().to_string();
    let report = measured(&["--against", "llama.cpp", "--python", &python, "--threads", "1", "--quantize", "q4_0"])?;
    let rows = report["rows"].as_array().cloned().unwrap_or_default();
    check_speeds(&rows)?;
    let names: Vec<_> = rows.iter().filter_map(|row| row["program"].as_str()).collect();
    ensure!(names == ["multicoder", "llama.cpp"] && report["llama_cpp"] == "of a test", "{report}");
    // Of 512 tokens in a second, 65 of which one comes out of the prompt, and 24.
    let speeds = ["read_per_s", "written_per_s", "late_per_s", "cold_ms"].map(|name| rows[1][name].as_f64());
    ensure!(speeds == [Some(512.0), Some(64.0), Some(23.0), Some(1000.0)], "{speeds:?}");
    ensure!(report["agreed"][0][2] == 24, "{}", report["agreed"]);
    Ok(())
}

#[test]
fn a_model_that_llama_cpp_cannot_run_and_a_peer_that_is_silent_are_clear_errors() -> Result<()> {
    let bench = |arguments: &[&str]| -> Result<_> {
        let mut command = Command::new(binary("multicoder-lsp")?);
        run(command.args(["bench", "--against", "llama.cpp", "--rounds", "1", "--keys", "1"]).args(arguments), DEADLINE)
    };
    let starter = multicoder_tests::repository_root().join("lsp/model/starter.gguf").display().to_string();
    let refused = bench(&["--python", "true", "--model", &starter, "--language", "rust"])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("activation = relu2: expected swiglu"), "{refused:?}");
    let silent = bench(&["--python", "true", "--threads", "1", "--quantize", "q8_0"])?;
    ensure!(silent.code == Some(2) && silent.stderr.contains("llama.cpp ended without an answer"), "{silent:?}");
    let missing = bench(&["--python", "no-such-python"])?;
    ensure!(missing.code == Some(2) && missing.stderr.contains("expected a Python with llama.cpp"), "{missing:?}");
    Ok(())
}
