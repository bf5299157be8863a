//! `multicoder lab`: a study is run, killed, goes on, is not run twice, and is told as a table.

use crate::training::{TINY, Workshop, kill_when, multicoder, succeed};
use anyhow::{Context, Result, ensure};
use multicoder_tests::program::{Finished, run};
use std::fs;
use std::process::Command;
use std::time::Duration;

fn write_study(workshop: &Workshop) -> Result<()> {
    let settings: Vec<String> = TINY.iter().map(|setting| format!("{setting:?}")).collect();
    let text = format!(
        "about = \"Whether experts help.\"\npreset = \"smoke\"\nbaseline = \"dense\"\nlanguages = [\"rust\"]\nset = [{}]\n\
         [budget.small]\nset = [\"n_steps=6\", \"checkpoint.every_steps=2\"]\neval_bytes = 4000\neval_lines = 3\n\
         [[variant]]\nname = \"dense\"\nabout = \"One network.\"\nwithout = [\"model.moe\"]\n\
         [[variant]]\nname = \"pl_shared\"\nabout = \"Half shared.\"\nunequal = \"the test does not compare\"\n",
        settings.join(", ")
    );
    Ok(fs::write(workshop.path("tiny.toml"), text)?)
}

fn lab(workshop: &Workshop, more: &[&str]) -> Result<Command> {
    let mut lab = multicoder(&["lab"])?;
    lab.arg(workshop.path("tiny.toml")).arg("--shards").arg(workshop.path("shards"));
    lab.arg("--tokenizer").arg(workshop.path("tokenizer.json")).arg("--out").arg(workshop.path("lab")).args(more);
    Ok(lab)
}

#[test]
fn a_study_that_was_killed_goes_on_and_runs_nothing_twice() -> Result<()> {
    let workshop = Workshop::new()?;
    write_study(&workshop)?;
    let record = workshop.path("lab/trials.csv");
    kill_when(&mut lab(&workshop, &["--seeds", "2"])?, || record.exists())?;
    let first = fs::read_to_string(&record)?;
    ensure!(first.lines().count() == 2, "one language of one trial:\n{first}");
    let json = workshop.path("summary.json").display().to_string();
    let Finished { stdout, stderr, .. } = succeed(&mut lab(&workshop, &["--seeds", "2", "--json", &json])?)?;
    let _: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
    ensure!(
        stderr.matches(", recorded").count() == 1 && stderr.contains("trial 4 of 4: pl_shared, seed 2"),
        "{stderr}"
    );
    let all = fs::read_to_string(&record)?;
    ensure!(all.starts_with(&first) && all.lines().count() == 5, "{all}");
    for trial in fs::read_dir(workshop.path("lab"))?.filter_map(|entry| Some(entry.ok()?.path().join("run"))) {
        let n_kept = trial.is_dir().then(|| fs::read_dir(trial.join("checkpoints"))).transpose()?.map(Iterator::count);
        ensure!(
            n_kept.is_none_or(|n| n == 1),
            "{}: {n_kept:?} checkpoints of a trial that is measured",
            trial.display()
        );
    }
    let row =
        |name: &str| stdout.lines().find(|line| line.starts_with(name)).map(str::to_owned).context(stdout.clone());
    ensure!(row("dense")?.contains("baseline") && row("pl_shared")?.trim_end().ends_with('2'), "{stdout}");
    let again = succeed(&mut lab(&workshop, &["--seeds", "2"])?)?;
    ensure!(again.stderr.matches(", recorded").count() == 4 && again.stdout == stdout, "{}", again.stderr);
    let told = succeed(multicoder(&["lab", "--report"])?.arg(workshop.path("tiny.toml")).arg("--record").arg(&record))?;
    ensure!(told.stdout == stdout, "{}", told.stdout);
    Ok(())
}

#[test]
fn a_study_that_cannot_be_run_says_why_before_it_trains() -> Result<()> {
    let workshop = Workshop::new()?;
    write_study(&workshop)?;
    let refused = |lab: &mut Command, words: &[&str]| -> Result<()> {
        let finished = run(lab, Duration::from_secs(60))?;
        ensure!(finished.code == Some(1) && !finished.stderr.contains("panicked"), "{finished:?}");
        for word in words {
            ensure!(finished.stderr.contains(word), "{word:?}: {}", finished.stderr);
        }
        Ok(())
    };
    refused(&mut lab(&workshop, &["--budget", "huge"])?, &["--budget huge", "small"])?;
    refused(&mut lab(&workshop, &["--only", "sparse"])?, &["--only", "sparse"])?;
    let text = fs::read_to_string(workshop.path("tiny.toml"))?;
    fs::write(workshop.path("tiny.toml"), text.replace("languages = [\"rust\"]", "languages = [\"cobol\"]"))?;
    refused(&mut lab(&workshop, &[])?, &["cobol"])?;
    fs::write(workshop.path("tiny.toml"), text.replace("n_steps=6", "n_stepz=6"))?;
    refused(&mut lab(&workshop, &[])?, &["n_stepz"])?;
    ensure!(!workshop.path("lab/trials.csv").exists(), "nothing was run");
    Ok(())
}

#[test]
fn a_variant_whose_router_looks_ahead_is_measured_without_lines() -> Result<()> {
    let workshop = Workshop::new()?;
    write_study(&workshop)?;
    let more = "[[variant]]\nname = \"expert-choice\"\nabout = \"Sees what it predicts.\"\nunequal = \"the test does not compare\"\n\
                set = ['model.moe.router={ kind = \"expert_choice\" }']\n";
    let study = workshop.path("tiny.toml");
    fs::write(&study, fs::read_to_string(&study)? + more)?;
    let Finished { stderr, .. } = succeed(&mut lab(&workshop, &["--seeds", "1"])?)?;
    ensure!(stderr.contains("expert_choice looks at later tokens: its model writes no lines"), "{stderr}");
    let record = fs::read_to_string(workshop.path("lab/trials.csv"))?;
    let row = record.lines().find(|line| line.contains(",expert-choice,")).context(record.clone())?;
    let cells: Vec<&str> = row.split(',').collect();
    ensure!(cells[7].parse::<f64>()? > 0.0 && cells[9].is_empty() && cells[11].is_empty(), "{row}");
    Ok(())
}

#[test]
fn a_list_whose_reader_has_seen_enough_ends_without_a_word() -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let output = multicoder(&["lab", "list"])?.stdout(writer).output()?;
    // As of a program that a closed pipe ends: what it had still to do is not done.
    ensure!(output.status.code() == Some(141) && output.stderr.is_empty(), "{output:?}");
    Ok(())
}
