//! The program as it is run from a shell: what it prints, and what it says to wrong input.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use multicoder_model::tokenizer::TokenizerOptions;
use multicoder_model::{CodeLm, ModelConfig, Tokenizer, checkpoint};
use serde_json::{Value, json};

/// Writes a tiny model with seeded random weights into `dir`.
fn tiny_model(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let languages = ["lua".to_string(), "python".to_string()];
    let options = TokenizerOptions {
        vocab_size: 300,
        languages: languages.to_vec(),
        min_frequency: 2,
        ..TokenizerOptions::default()
    };
    let tokenizer = Tokenizer::train(std::iter::repeat_n("def f(x):\n    return x\n", 20), &options).unwrap();
    let config: ModelConfig = serde_json::from_value(json!({
        "vocab_size": tokenizer.vocab_size(), "d_model": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_ff": 48,
        "context_tokens": 128, "languages": languages,
    }))
    .unwrap();
    let lm = CodeLm::init(&config, 7, &candle_core::Device::Cpu).unwrap();
    checkpoint::save_folder(&lm, &tokenizer, dir).unwrap();
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_multicoder-lsp")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// What it says on standard error when it refuses.
fn refusal(args: &[&str]) -> String {
    let out = run(args);
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(out.stdout.is_empty(), "{out:?}");
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn wrong_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("a.py"), "x = 1\ny\n").unwrap();
    std::fs::write(path("b.bin"), b"ab\0").unwrap();
    std::fs::write(path("bad.gguf"), b"GGUF\x03\0\0\0nonsense").unwrap();
    let complete = |place: String| refusal(&["complete", &place, "--model", &path("bad.gguf")]);
    assert!(complete(path("a.py:9:1")).contains("line 9 is past the end of the file, which has 3 lines"));
    assert!(complete(path("a.py:1:9")).contains("expected a column from 1 to 6, got 9"));
    assert!(complete(path("none.py:1:1")).contains("none.py"));
    assert!(complete(path("b.bin:1:1")).contains("binary"));
    assert!(complete(path("a.py")).contains("FILE:LINE:COL"));
    assert!(complete(path("a.py:1:1")).contains("bad.gguf"));
    assert!(refusal(&["doctor", "--model", &path("none")]).contains("none"));
    assert!(refusal(&["serve-me"]).contains("serve-me"));
}

#[test]
fn a_file_of_five_megabytes_is_completed_without_reading_it_all() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(&dir.path().join("model"));
    let file = dir.path().join("big.py");
    std::fs::write(&file, "value = compute(1, 2, 3)\n".repeat(200_000)).unwrap();
    let place = format!("{}:150000:9", file.display());
    let model = dir.path().join("model").display().to_string();
    let start = Instant::now();
    let out = run(&["complete", &place, "--json", "--model", &model]);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    assert_eq!(answer["line"], 150_000);
    assert!(answer["text"].is_string() || answer["reason"].is_string(), "{answer}");
}

#[test]
fn secrets_are_not_completed_from_the_shell_either() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(".env");
    std::fs::write(&file, "KEY=").unwrap();
    let out = run(&["complete", &format!("{}:1:5", file.display()), "--json"]);
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&answer["reason"], &answer["text"]), (&json!("excluded_file"), &Value::Null));
}

#[test]
fn doctor_describes_the_model() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(dir.path());
    let out = run(&["doctor", "--json", "--model", &dir.path().display().to_string()]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    assert_eq!((&report["model"]["device"], &report["goldensCheck"]), (&json!("cpu"), &json!("ok")));
    assert_eq!(report["model"]["languages"], json!(["lua", "python"]));
    assert!(report["decodeTokensPerS"].as_f64().unwrap() > 0.0 && report["prefillTokensPerS"].as_f64().unwrap() > 0.0);
}

#[test]
fn replay_types_in_files_and_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(&dir.path().join("model"));
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("a.py"), "value = compute(1, 2, 3)\n".repeat(60)).unwrap();
    std::fs::write(path("b.lua"), "local größe = f(x)\n".repeat(60)).unwrap();
    std::fs::write(path("short.py"), "x = 1\n").unwrap();
    let out = run(&["replay", &path("a.py"), &path("b.lua"), "--requests", "120", "--json", "--model", &path("model")]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    let kinds = report["kinds"].as_array().unwrap();
    let requests = |row: &Value| row["requests"].as_u64().unwrap();
    let ([each @ .., all, by_model], by_model_of) = (&kinds[..], |row: &Value| row["byModel"].as_u64().unwrap()) else {
        panic!("{report}")
    };
    assert_eq!((&all["kind"], &each[0]["kind"], requests(&each[0])), (&json!("all"), &json!("opening"), 2));
    assert_eq!((&by_model["kind"], by_model_of(all)), (&json!("by the model"), requests(by_model)));
    assert!(by_model_of(&each[0]) == 2 && by_model_of(all) == each.iter().map(by_model_of).sum::<u64>(), "{report}");
    // The step that reaches the number is done to its end.
    assert!((120..130).contains(&requests(all)) && requests(all) == each.iter().map(requests).sum::<u64>(), "{report}");
    let work = |key: &str| report["work"][key].as_u64().unwrap();
    assert!(work("runs") > 0 && work("prefilledTokens") < work("promptTokens"), "{report}");
    assert!(refusal(&["replay", &path("short.py"), "--model", &path("model")]).contains("6 characters"));
    assert!(refusal(&["replay", &path("a.py"), "--model", &path("none")]).contains("none"));
}

#[test]
fn completion_scripts_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let out = run(&["completions", shell]);
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("multicoder-lsp"));
    }
}

#[test]
fn the_process_ends_with_its_input() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_multicoder-lsp"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"capabilities":{}}}"#;
    write!(child.stdin.as_mut().unwrap(), "Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    drop(child.stdin.take());
    let start = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
