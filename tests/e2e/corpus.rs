//! A corpus through the real binary: ended by force in every stage, it goes on and gives the bytes that it would have given.

use anyhow::{Context, Result, ensure};
use multicoder_tests::program::{binary, run};
use multicoder_tests::repository_root;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(300);

/// A build of this repository's own sources, each package an input.
fn build(out: &Path) -> Result<Command> {
    let mut command = Command::new(binary("multicoder")?);
    command.args(["corpus", "build", "--json", "--languages", "rust,python,lua", "--out"]).arg(out);
    for name in ["model", "training", "grammars", "lsp", "tests"] {
        command.arg("--folder").arg(format!("{name}={}", repository_root().join(name).display()));
    }
    Ok(command)
}

/// All shards, by their path inside `out`.
fn shards(out: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for split in ["train", "valid", "test"] {
        let Ok(entries) = std::fs::read_dir(out.join(split)) else { continue };
        for entry in entries {
            let path = entry?.path();
            all.insert(path.strip_prefix(out)?.to_owned(), std::fs::read(&path)?);
        }
    }
    ensure!(!all.is_empty(), "no shards in {}", out.display());
    Ok(all)
}

/// Starts a build and kills it as soon as `file` is there; whether it was.
fn killed_at(out: &Path, file: &str) -> Result<bool> {
    let mut child = build(out)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let begin = Instant::now();
    loop {
        if out.join(file).exists() {
            child.kill().context("cannot kill the build")?;
            // One that ended in this very moment has an exit code.
            return Ok(child.wait()?.code().is_none());
        }
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        ensure!(begin.elapsed() < DEADLINE, "neither {file} nor an end");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_build_that_is_killed_in_any_stage_goes_on_to_the_same_bytes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let whole = folder.path().join("whole");
    let finished = run(&mut build(&whole)?, DEADLINE)?;
    ensure!(finished.code == Some(0), "{}", finished.stderr);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).context("--json")?;
    ensure!(json["stages"]["stages"].as_array().is_some_and(|stages| stages.len() == 3), "{}", finished.stdout);
    ensure!(json["report"]["kept"]["rust"]["train"]["files"].as_u64() > Some(100), "{}", finished.stdout);
    let expected = shards(&whole)?;
    // Filtering has begun; it has staged an input; duplicates are compared; shards are written; they take their place.
    let marks = ["stage", "stage/folder+model.json", "stage/signatures.part", ".part", "incomplete"];
    for (idx, mark) in marks.into_iter().enumerate() {
        let out = folder.path().join(format!("killed-{idx}"));
        let was_killed = killed_at(&out, mark)?;
        println!("{mark}: {}", if was_killed { "killed" } else { "had ended before" });
        let finished = run(&mut build(&out)?, DEADLINE)?;
        ensure!(finished.code == Some(0), "after a kill at {mark}: {}", finished.stderr);
        ensure!(shards(&out)? == expected, "other bytes after a kill at {mark}");
    }
    Ok(())
}

#[test]
fn one_s_own_shards_are_a_data_set_and_a_split_without_text_is_warned_of() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let finished = run(&mut build(&first)?, DEADLINE)?;
    ensure!(finished.code == Some(0) && !finished.stderr.contains("warning"), "{}", finished.stderr);
    let mut again = Command::new(binary("multicoder")?);
    let set = format!("again={}@test", first.join("train").display());
    again.args(["corpus", "build", "--json", "--test-mb", "100", "--dataset", &set, "--out"]).arg(&second);
    let finished = run(&mut again, DEADLINE)?;
    ensure!(finished.code == Some(0), "{}", finished.stderr);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).context("--json")?;
    ensure!(json["report"]["kept"]["rust"]["test"]["files"].as_u64() > Some(100), "{}", finished.stdout);
    for split in ["train", "valid"] {
        ensure!(finished.stderr.contains(&format!("no text for {split}")), "{}", finished.stderr);
    }
    Ok(())
}
