//! `multicoder-lsp complete` and `doctor` from the shell, with good and with bad input.

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

/// A line of the file to complete: the first after the tenth that is long enough, cut in its middle.
fn place_in(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)?;
    let is_long = |(index, line): &(usize, &str)| *index >= 10 && line.trim().chars().count() >= 12;
    let (index, line) = text.lines().enumerate().find(is_long).context("a long line")?;
    let indentation = line.chars().take_while(|c| c.is_whitespace()).count();
    Ok(format!("{}:{}:{}", path.display(), index + 1, indentation + 7))
}

#[test]
fn every_sample_is_completed_in_its_language() -> Result<()> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(sample(""))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    let mut n_answered = 0;
    for path in &paths {
        let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        let finished = complete(&place_in(path)?)?;
        ensure!(finished.code == Some(0), "{name}: {}", finished.stderr);
        let answer: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.stdout.clone())?;
        let Some(text) = answer["text"].as_str() else {
            ensure!(answer["reason"].is_string(), "{name}: neither text nor reason: {answer}");
            continue;
        };
        n_answered += 1;
        ensure!(!text.is_empty() && answer["language"] == name, "{name}: {answer}");
        let probability = answer["probability"].as_f64().context("probability")?;
        ensure!((0.0..=1.0).contains(&probability) && answer["milliseconds"].as_f64() > Some(0.0), "{name}: {answer}");
    }
    println!("{n_answered} of {} samples got a line", paths.len());
    ensure!(n_answered * 2 >= paths.len(), "only {n_answered} of {} samples got a line", paths.len());
    Ok(())
}

#[test]
fn wrong_places_are_refused_and_named() -> Result<()> {
    let file = sample("python.py").display().to_string();
    let n_lines = std::fs::read_to_string(&file)?.lines().count();
    check_refused(
        &complete(&format!("{file}:{}:1", n_lines + 100))?,
        &["python.py", "past the end", &n_lines.to_string()[..1]],
    )?;
    check_refused(&complete(&format!("{file}:1:9999"))?, &["python.py", "column", "9999"])?;
    check_refused(&complete(&format!("{file}:0:1"))?, &["line", "0"])?;
    check_refused(&complete(&format!("{file}:x:1"))?, &["x"])?;
    check_refused(&complete(&file)?, &["FILE:LINE:COL"])?;
    check_refused(&complete("absent.py:1:1")?, &["absent.py"])?;
    let folder = tempfile::tempdir()?;
    check_refused(&complete(&format!("{}:1:1", folder.path().display()))?, &["directory"])?;
    let binary_file = folder.path().join("program.bin");
    std::fs::write(&binary_file, [0x7f, b'E', b'L', b'F', 0, 1, 2])?;
    check_refused(&complete(&format!("{}:1:1", binary_file.display()))?, &["program.bin", "binary"])
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
