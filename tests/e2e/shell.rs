//! `multicoder-lsp complete` and `doctor` from the shell, with good and with bad input.

use crate::session::sample_cuts;
use anyhow::{Context, Result, ensure};
use multicoder_tests::program::{Finished, binary, language_server, run};
use multicoder_tests::repository_root;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

fn complete(place: &str) -> Result<Finished> {
    run(language_server()?.args(["complete", "--json", place]), DEADLINE)
}

fn complete_with_model(model: &Path, place: &str) -> Result<Finished> {
    run(Command::new(binary("multicoder-lsp")?).args(["complete", place, "--model"]).arg(model), DEADLINE)
}

/// Refused with code 2 and one message that has all of `words`; no panic.
fn check_refused(finished: &Finished, words: &[&str]) -> Result<()> {
    ensure!(finished.code == Some(2), "code {:?}: {}{}", finished.code, finished.stdout, finished.stderr);
    ensure!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    for word in words {
        ensure!(finished.stderr.contains(word), "the message has {word:?}: {}", finished.stderr);
    }
    Ok(())
}

fn sample(name: &str) -> PathBuf {
    repository_root().join("grammars/samples").join(name)
}

/// Places tried in a sample until the model has an answer: lines spread over it, the caret behind the first word.
const N_PLACES: usize = 6;

fn places_in(path: &Path) -> Result<Vec<String>> {
    let cuts = sample_cuts(&path.file_name().context("a file name")?.to_string_lossy())?;
    let place = |(before, typed): &(String, String)| {
        format!("{}:{}:{}", path.display(), before.matches('\n').count() + 1, typed.chars().count() + 1)
    };
    let places: Vec<String> = cuts.iter().step_by(cuts.len().div_ceil(N_PLACES).max(1)).map(place).collect();
    ensure!(!places.is_empty(), "{}: no line is long enough", path.display());
    Ok(places)
}

/// A weak model may say nothing in many samples, but what it says is of the sample's language, and it says something somewhere.
#[test]
fn every_sample_is_completed_in_its_language() -> Result<()> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(sample(""))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    let mut n_answered = 0;
    for path in &paths {
        let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        for place in places_in(path)? {
            if is_answered(&place, &name)? {
                n_answered += 1;
                break;
            }
        }
    }
    println!("{n_answered} of {} samples got a line", paths.len());
    ensure!(n_answered > 0, "none of {} samples got a line", paths.len());
    Ok(())
}

/// Is there a completion at the place? If so it is well-formed and of the language; if not there is a reason.
fn is_answered(place: &str, language: &str) -> Result<bool> {
    let finished = complete(place)?;
    ensure!(finished.code == Some(0), "{place}: {}", finished.stderr);
    let answer: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.stdout.clone())?;
    let Some(text) = answer["text"].as_str() else {
        ensure!(answer["reason"].is_string(), "{place}: neither text nor reason: {answer}");
        return Ok(false);
    };
    ensure!(!text.is_empty() && answer["language"] == language, "{place}: {answer}");
    let probability = answer["probability"].as_f64().context("probability")?;
    ensure!((0.0..=1.0).contains(&probability) && answer["milliseconds"].as_f64() > Some(0.0), "{place}: {answer}");
    Ok(true)
}

#[test]
fn wrong_places_are_refused_and_named() -> Result<()> {
    let file = sample("python.py").display().to_string();
    let text = std::fs::read_to_string(&file)?;
    let (n_lines, n_columns) = (text.split('\n').count(), text.lines().next().context("a line")?.chars().count());
    let folder = tempfile::tempdir()?;
    let folder_name = folder.path().display();
    std::fs::write(folder.path().join("program.bin"), [0x7f, b'E', b'L', b'F', 0, 1, 2])?;
    let past_end = n_lines + 100;
    let no_place = |place: &str, reason: &str| {
        let place = format!("{file}{place}");
        let usage = "For more information, try '--help'.";
        let message = format!("error: invalid value '{place}' for '<FILE:LINE:COL>': {reason}\n\n{usage}\n");
        (place, message)
    };
    let no_text = |place: String, message: String| (place, format!("multicoder-lsp: {message}\n"));
    let cases = [
        no_text(
            format!("{file}:{past_end}:1"),
            format!("{file}: line {past_end} is past the end of the file, which has {n_lines} lines"),
        ),
        no_text(
            format!("{file}:1:9999"),
            format!(
                "{file}: line 1 has {n_columns} characters: expected a column from 1 to {}, got 9999",
                n_columns + 1
            ),
        ),
        no_place(":0:1", "line \"0\": expected a whole number from 1"),
        no_place(":x:1", "line \"x\": expected a whole number from 1"),
        no_place("", "expected FILE:LINE:COL, such as src/main.rs:10:5"),
        no_text("absent.py:1:1".to_owned(), "absent.py: No such file or directory (os error 2)".to_owned()),
        no_text(format!("{folder_name}:1:1"), format!("{folder_name}: Is a directory (os error 21)")),
        no_text(
            format!("{folder_name}/program.bin:1:1"),
            format!("{folder_name}/program.bin: a binary file (it has a zero byte); expected text in UTF-8"),
        ),
    ];
    for (place, message) in cases {
        let finished = complete(&place)?;
        ensure!(finished.code == Some(2) && finished.stdout.is_empty(), "{place}: {finished:?}");
        ensure!(finished.stderr == message, "{place}: the message is\n{}\nnot\n{message}", finished.stderr);
    }
    Ok(())
}

#[test]
fn unusual_files_are_completed_or_declined() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let large = format!("def f(x):\n{}", "    y = x + 1  # one more\n".repeat(200_000));
    let files: [(&str, &[u8], &str); 6] = [
        ("empty.py", b"", "1:1"),
        ("latin1.py", b"name = 'caf\xe9'\nprint(", "2:7"),
        ("crlf.py", b"def f(x):\r\n    return x\r\n\r\nprint(", "4:7"),
        ("noextension", b"#!/usr/bin/env -S python3 -u\nimport os\nprint(", "3:7"),
        (".env", b"TOKEN=abc\nKEY=", "2:5"),
        ("large.py", large.as_bytes(), "150000:9"),
    ];
    for (name, bytes, place) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes)?;
        let finished = complete(&format!("{}:{place}", path.display()))?;
        ensure!(finished.code == Some(0), "{name}: {}", finished.stderr);
        let answer: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.stdout.clone())?;
        ensure!(answer["text"].is_string() || answer["reason"].is_string(), "{name}: {answer}");
        if name == ".env" {
            ensure!(answer["reason"] == "excluded_file", "{name}: {answer}");
        }
    }
    Ok(())
}

#[test]
fn both_programs_print_completions_for_every_shell() -> Result<()> {
    for (program, subcommand) in [("multicoder", "corpus"), ("multicoder-lsp", "doctor")] {
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let finished = run(Command::new(binary(program)?).args(["completions", shell]), DEADLINE)?;
            ensure!(
                finished.code == Some(0) && finished.stdout.contains(subcommand),
                "{program} {shell}: {finished:?}"
            );
        }
    }
    Ok(())
}

/// One wrong byte anywhere in a model file, or a missing end: refused with the file's name, never a wrong completion.
#[test]
fn a_damaged_model_is_refused() -> Result<()> {
    let Some(model) = model_file() else {
        multicoder_tests::skipped(
            "a_damaged_model_is_refused",
            "there is no lsp/model/starter.gguf and no MULTICODER_TEST_MODEL",
        );
        return Ok(());
    };
    let whole = std::fs::read(&model)?;
    let folder = tempfile::tempdir()?;
    let place = format!("{}:12:1", sample("python.py").display());
    let damaged = folder.path().join("damaged.gguf");
    for (numerator, denominator) in [(0, 1), (1, 10_000), (1, 100), (1, 2), (9, 10), (1, 1)] {
        let mut bytes = whole.clone();
        let at = ((whole.len() - 1) as u128 * numerator / denominator) as usize;
        bytes[at] ^= 0x20;
        std::fs::write(&damaged, &bytes)?;
        let finished = complete_with_model(&damaged, &place)?;
        check_refused(&finished, &["damaged.gguf"]).with_context(|| format!("byte {at} of {}", whole.len()))?;
    }
    for n_kept in [0, 3, 24, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&damaged, &whole[..n_kept])?;
        let finished = complete_with_model(&damaged, &place)?;
        check_refused(&finished, &["damaged.gguf"]).with_context(|| format!("cut after {n_kept} bytes"))?;
    }
    Ok(())
}

fn model_file() -> Option<PathBuf> {
    let named = std::env::var_os("MULTICODER_TEST_MODEL").map(PathBuf::from);
    named.or_else(|| Some(repository_root().join("lsp/model/starter.gguf"))).filter(|path| path.is_file())
}

#[test]
fn other_models_are_loaded_or_refused_by_name() -> Result<()> {
    let place = format!("{}:12:1", sample("python.py").display());
    for name in ["qwen2", "llama", "qwen3"] {
        let checkpoint = repository_root().join("tests/golden").join(name).join("checkpoint");
        let finished = complete_with_model(&checkpoint, &place)?;
        ensure!(finished.code == Some(0), "{name}: {}", finished.stderr);
    }
    check_refused(&complete_with_model(Path::new("absent.gguf"), &place)?, &["absent.gguf"])?;
    let folder = tempfile::tempdir()?;
    check_refused(&complete_with_model(folder.path(), &place)?, &["config.json"])?;
    check_refused(&complete_with_model(&sample("python.py"), &place)?, &["python.py"])
}

#[test]
fn doctor_says_what_there_is() -> Result<()> {
    let finished = run(language_server()?.arg("doctor"), DEADLINE)?;
    ensure!(finished.code == Some(0), "{}", finished.stderr);
    for word in ["Neovim", "Helix", "Emacs", "tokens"] {
        ensure!(finished.stdout.contains(word), "doctor says {word}:\n{}", finished.stdout);
    }
    let finished = run(language_server()?.args(["doctor", "--json"]), DEADLINE)?;
    let facts: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.stdout.clone())?;
    ensure!(facts["goldensCheck"] == "ok", "the model answers its golden inputs: {facts}");
    Ok(())
}

#[test]
fn help_is_there_and_wrong_arguments_are_refused() -> Result<()> {
    for program in ["multicoder", "multicoder-lsp"] {
        for arguments in [&["--help"][..], &["--version"]] {
            let finished = run(Command::new(binary(program)?).args(arguments), DEADLINE)?;
            ensure!(
                finished.code == Some(0) && !finished.stdout.is_empty(),
                "{program} {arguments:?}: {}",
                finished.stderr
            );
        }
        let finished = run(Command::new(binary(program)?).arg("--no-such-flag"), DEADLINE)?;
        check_refused(&finished, &["--no-such-flag"]).context(program)?;
    }
    Ok(())
}

#[test]
fn a_gpu_that_is_not_there_is_missed_in_one_sentence() -> Result<()> {
    let place = format!("{}:93:17", sample("go.go").display());
    for arguments in [&["complete", place.as_str()][..], &["doctor"], &["bench", "--rounds", "1"]] {
        let finished =
            run(Command::new(binary("multicoder-lsp")?).args(arguments).args(["--device", "cuda"]), DEADLINE)?;
        check_refused(&finished, &["--device cuda: ", "build with --features cuda"])?;
    }
    Ok(())
}
