//! `multicoder eval SUITE`: the starter model through a benchmark of two questions, its record, and what is wrong with bad data.

use crate::training::{multicoder, succeed};
use anyhow::{Context, Result, ensure};
use multicoder_tests::program::run;
use multicoder_tests::repository_root;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const SUITE: &str = "santacoder-fim";

/// Two questions; the answer to the second one stands in its prompt several times.
fn write_bench(dir: &Path, last_field: &str) -> Result<()> {
    let folder = dir.join(SUITE);
    fs::create_dir_all(&folder)?;
    let line = "    total += values[index] * weights[index]";
    let prompt = format!("def f(values, weights):\n    total = 0\n{}", format!("{line}\n").repeat(6));
    let record = |name: &str, prompt: &str, truth: &str| json!({"name": name, "language": "py", "prompt": prompt, "suffix": "    return total\n", last_field: truth});
    let records = [record("a", "import os\n", "qqq = 123456789"), record("b", &prompt, line)];
    let path = folder.join("santacoder-fim-task.jsonl");
    fs::write(&path, records.map(|record| format!("{record}\n")).concat())?;
    ensure!(Command::new("gzip").arg("-f").arg(&path).status()?.success(), "gzip");
    Ok(())
}

fn eval(dir: &Path, more: &[&str]) -> Result<Command> {
    let mut eval = multicoder(&["eval", SUITE, "--model", "starter", "--bench"])?;
    eval.current_dir(repository_root()).arg(dir).args(more);
    Ok(eval)
}

#[test]
fn a_suite_is_answered_scored_and_recorded() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write_bench(dir.path(), "canonical_solution")?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (csv, answers, results) = (path("record.csv"), path("answers.jsonl"), path("results.json"));
    let printed = succeed(&mut eval(dir.path(), &["--csv", &csv, "--answers", &answers, "--json", &results])?)?.stdout;
    ensure!(printed.contains("single line") && printed.contains("2 questions"), "{printed}");
    let results: Value = serde_json::from_str(&fs::read_to_string(&results)?)?;
    let row = &results["rows"][0];
    ensure!(row["language"] == "python" && row["n"] == 2 && row["exact_match"] == 50.0, "{results}");
    let kept = fs::read_to_string(&answers)?;
    let kept: Vec<Value> = kept.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let probability = |at: usize| kept[at]["probability"].as_f64().context("a number");
    ensure!(kept.len() == 2 && probability(1)? > 10.0 * probability(0)?, "{kept:?}");
    let again = succeed(&mut eval(dir.path(), &["--against", &csv, "--answers", &answers])?)?.stdout;
    ensure!(again.contains("nothing otherwise than in"), "{again}");
    ensure!(fs::read_to_string(&answers)?.lines().count() == 2, "nothing is asked twice");
    fs::write(&csv, fs::read_to_string(&csv)?.replace(",50.0,", ",75.0,"))?;
    let changed = succeed(&mut eval(dir.path(), &["--against", &csv, "--answers", &answers])?)?.stdout;
    ensure!(changed.contains("50.00  75.00"), "{changed}");
    Ok(())
}

#[test]
fn a_suite_without_its_data_says_what_it_wants() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let refused = |more: &[&str], words: &[&str]| -> Result<()> {
        let finished = run(&mut eval(dir.path(), more)?, Duration::from_secs(60))?;
        ensure!(finished.code == Some(1) && !finished.stderr.contains("panicked"), "{finished:?}");
        for word in words {
            ensure!(finished.stderr.contains(word), "the message has {word:?}: {}", finished.stderr);
        }
        Ok(())
    };
    refused(&[], &[SUITE, "--bench DIR"])?;
    write_bench(dir.path(), "canonical_solutoin")?;
    refused(&[], &["santacoder-fim-task.jsonl.gz: line 1", "missing field `canonical_solution`"])?;
    write_bench(dir.path(), "canonical_solution")?;
    refused(&["--languages", "cobol"], &["--languages", "`cobol`"])?;
    refused(&["--limit", "0"], &["--limit 0"])?;
    Ok(())
}
