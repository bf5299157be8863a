//! The `multicoder` binary trains, stops, is killed, resumes: same weights, bit for bit.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use multicoder_model::Tokenizer;
use multicoder_model::ops::set_bf16_products;
use multicoder_training::config;
use multicoder_training::data::shard::{Document, ShardWriter};
use multicoder_training::parallel::Mesh;
use multicoder_training::run::{Start, run};
use tempfile::TempDir;

/// Longest time that any single run below may take, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(300);

/// A corpus of two made-up languages' files and a tokenizer, in a folder that goes with it.
struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        for (split, n_files) in [("train", 40), ("valid", 4)] {
            for language in ["python", "lua"] {
                let mut writer = ShardWriter::create(&dir.path().join("shards"), split, language).unwrap();
                for n in 0..n_files {
                    writer.push(document(language, split, n)).unwrap();
                }
                writer.finish().unwrap();
            }
        }
        let fixture = Fixture { dir };
        let shards = fixture.path("shards");
        let tokenizer = fixture.path("tokenizer.json");
        let output = multicoder(&["tokenizer", "train", "--vocab-size", "512", "--shards"])
            .arg(shards)
            .arg("--out")
            .arg(tokenizer)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `multicoder train` on this corpus into the run folder `out`, with a model that trains in milliseconds a step.
    fn train(&self, out: &str, extra: &[&str]) -> Command {
        let mut command = multicoder(&["train", "--preset", "smoke", "--set", "eval.every_steps=0"]);
        for set in ["model.d_model=32", "model.d_ff=64", "model.n_heads=2", "model.n_kv_heads=1", "model.d_head=16"] {
            command.args(["--set", set]);
        }
        for set in ["data.sequence_tokens=64", "data.window_tokens=60", "data.batch_tokens=512"] {
            command.args(["--set", set]);
        }
        command.args(["--set", "data.micro_batch_tokens=256", "--set", "metrics.log_every_steps=1"]);
        command.arg("--shards").arg(self.path("shards")).arg("--tokenizer").arg(self.path("tokenizer.json"));
        command.arg("--out").arg(self.path(out)).args(extra);
        command
    }

    fn checkpoint(&self, out: &str, step: u64) -> PathBuf {
        self.path(out).join(format!("checkpoints/step-{step:08}"))
    }

    /// Weights and moments, as written.
    fn weights(&self, out: &str, step: u64) -> [Vec<u8>; 2] {
        let folder = self.checkpoint(out, step);
        ["model.safetensors", "optimizer.safetensors"].map(|name| fs::read(folder.join(name)).unwrap())
    }
}

fn document(language: &str, split: &str, n: usize) -> Document {
    let function = |k: usize| match language {
        "python" => {
            format!("def f_{n}_{k}(a, b):\n    if a > {k}:\n        return a + b\n    return f_{n}_{k}(b, a)\n\n")
        }
        _ => format!("local function g{n}{k}(a, b)\n  if a > {k} then\n    return a .. b\n  end\nend\n\n"),
    };
    Document {
        text: (0..12 + n % 7).map(function).collect(),
        language: language.to_owned(),
        path: format!("src/{n}"),
        package: format!("demo-{split}"),
        source: "folder".to_owned(),
        licence: "MIT".to_owned(),
        split: split.to_owned(),
    }
}

fn multicoder(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_multicoder"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits for `done`, which looks at the file system; false when the child ended first.
fn wait_until(child: &mut Child, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(start.elapsed() < DEADLINE, "nothing happened in {DEADLINE:?}");
        std::thread::yield_now();
    }
    true
}

#[test]
fn the_smoke_preset_lowers_the_loss_in_20_steps() {
    let fixture = Fixture::new();
    let mut command =
        multicoder(&["train", "--preset", "smoke", "--set", "n_steps=20", "--set", "data.batch_tokens=1024"]);
    command.args(["--set", "eval.sequences_per_language=2"]);
    command.arg("--shards").arg(fixture.path("shards")).arg("--tokenizer").arg(fixture.path("tokenizer.json"));
    succeed(command.arg("--out").arg(fixture.path("run")));
    let metrics = fs::read_to_string(fixture.path("run/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<f64> =
        lines.iter().filter(|line| line["kind"] == "train").map(|line| line["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 20);
    assert!(losses[19] < losses[0] - 1.0, "{losses:?}");
    let valid = lines.iter().find(|line| line["kind"] == "valid").unwrap();
    assert!(valid["bits_per_byte/lua"].as_f64().unwrap() > 0.0 && valid["loss/python"].as_f64().unwrap() > 0.0);
    assert!(fixture.path("run/tensorboard").read_dir().unwrap().next().is_some());
    assert!(fixture.path("run/run.toml").exists());
}

/// The numbers of an object by name.
fn numbers(value: &serde_json::Value) -> Vec<(&str, f64)> {
    value.as_object().unwrap().iter().filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?))).collect()
}

#[test]
fn a_step_reports_its_speed_and_the_loss_of_its_languages() {
    let fixture = Fixture::new();
    let sets = ["--set", "n_steps=6", "--set", "eval.every_steps=6", "--set", "eval.sequences_per_language=2"];
    let said = succeed(&mut fixture.train("run", &sets));
    let metrics = fs::read_to_string(fixture.path("run/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let steps: Vec<serde_json::Value> = lines.filter(|line| line["kind"] == "train").collect();
    assert_eq!(steps.len(), 6);
    for step in &steps {
        let counted = &step["counted_by_language"];
        let losses = numbers(&step["loss_by_language"]);
        let nll_sum: f64 = losses.iter().map(|(name, loss)| loss * counted[name].as_f64().unwrap()).sum();
        let n_counted: f64 = numbers(counted).iter().map(|(_, n)| n).sum();
        assert_eq!(n_counted, step["n_counted"].as_f64().unwrap());
        assert!((nll_sum / n_counted - step["loss"].as_f64().unwrap()).abs() < 1e-6, "{step}");
        let number = |name: &str| step[name].as_f64().unwrap();
        assert!(number("mfu") > 0.0 && number("mfu") < 1.5, "{step}");
        let mfu = number("flops_per_s") / number("peak_flops");
        assert!((number("mfu") - mfu).abs() < 1e-9 && step["peak_source"] == "products_peak", "{step}");
        assert!((0.0..=1.0).contains(&number("loader_wait_share")) && number("comm_share") == 0.0, "{step}");
    }
    let both = steps.iter().flat_map(|step| numbers(&step["loss_by_language"])).map(|(name, _)| name);
    assert_eq!(both.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>(), ["lua", "python"]);
    let file = fixture.path("run/tensorboard").read_dir().unwrap().next().unwrap().unwrap().path();
    let events = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
    for tag in ["loss/python", "mfu", "flops_per_s", "loader_wait_share", "comm_share", "load_max/1", "load_entropy/3"]
    {
        assert!(events.contains(&format!("train/{tag}")), "{tag}");
    }
    let progress: Vec<&str> = said.lines().filter(|line| line.starts_with("step ") && line.contains(" left")).collect();
    assert!(progress.len() == 6 && progress.iter().all(|line| line.len() <= 100 && line.contains("MFU")), "{said}");
    for part in ["tokens/s, MFU", "waiting for the loader", "last validation:", "  python       loss "] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
}

#[test]
fn stop_and_resume_equals_an_unbroken_run() {
    let fixture = Fixture::new();
    succeed(&mut fixture.train("unbroken", &["--set", "n_steps=10"]));
    succeed(&mut fixture.train("broken", &["--set", "n_steps=10", "--set", "checkpoint.every_steps=5"]));
    // As if it had been stopped after step 5.
    fs::remove_dir_all(fixture.checkpoint("broken", 10)).unwrap();
    let said = succeed(multicoder(&["train", "--resume", "--out"]).arg(fixture.path("broken")));
    assert!(said.contains("at step 5"), "{said}");
    assert!(fixture.weights("unbroken", 10) == fixture.weights("broken", 10), "weights or moments differ");
    let metrics = fs::read_to_string(fixture.path("broken/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 10, "each step has one line");
}

#[test]
fn a_run_killed_while_it_saves_loses_only_the_steps_since_the_last_checkpoint() {
    let fixture = Fixture::new();
    let n_steps = 12;
    let sets = ["--set", "n_steps=12", "--set", "checkpoint.every_steps=1"];
    succeed(&mut fixture.train("unbroken", &sets));
    let mut n_kills = 0;
    for attempt in 0..40 {
        let mut command = fixture.train("killed", &sets);
        let mut child = command.arg("--resume").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // A little further into the writing at each attempt.
        let folder = fixture.path("killed/checkpoints");
        let mut wanted_files = attempt % 7;
        let writing = wait_until(&mut child, || {
            let parts = fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut parts = parts.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part"));
            let n_files = parts.next().and_then(|part| fs::read_dir(part.path()).ok()).map(|files| files.count());
            wanted_files = wanted_files.min(6);
            n_files.is_some_and(|n_files| n_files >= wanted_files)
        });
        if !writing {
            assert!(child.wait().unwrap().success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        n_kills += 1;
    }
    assert!(n_kills >= 3, "only {n_kills} kills hit the writing of a checkpoint");
    succeed(fixture.train("killed", &sets).arg("--resume"));
    assert!(fixture.weights("unbroken", n_steps) == fixture.weights("killed", n_steps), "weights or moments differ");
}

#[test]
fn sigterm_saves_and_leaves_with_success() {
    let fixture = Fixture::new();
    let sets = ["--set", "n_steps=100000", "--set", "checkpoint.every_steps=0"];
    let mut child = fixture.train("run", &sets).spawn().unwrap();
    let metrics = fixture.path("run/metrics.jsonl");
    assert!(wait_until(&mut child, || fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() >= 3)));
    // SAFETY: signals a child of this test that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) }, 0);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted: saved"), "{}", stderr(&output));
    let resume = ["--resume", "--set", "n_steps=1"];
    let said = succeed(multicoder(&["train", "--out"]).arg(fixture.path("run")).args(resume));
    assert!(said.contains("resuming") && said.contains("done:"), "{said}");
}

#[test]
fn a_truncated_checkpoint_is_named_and_the_one_before_is_taken() {
    let fixture = Fixture::new();
    succeed(&mut fixture.train("run", &["--set", "n_steps=4", "--set", "checkpoint.every_steps=2"]));
    let whole = fixture.weights("run", 4);
    truncate(&fixture.checkpoint("run", 4).join("model.safetensors"));
    let said = succeed(multicoder(&["train", "--resume", "--out"]).arg(fixture.path("run")));
    assert!(said.contains("warning") && said.contains("step-00000004/model.safetensors"), "{said}");
    assert!(said.contains("at step 2"), "{said}");
    assert!(fixture.weights("run", 4) == whole, "the repeated steps differ");

    // Stopped again before the damaged one is reached: what was saved is named, and the damaged one is gone.
    truncate(&fixture.checkpoint("run", 4).join("model.safetensors"));
    let resume = ["train", "--resume", "--set", "n_steps=3", "--out"];
    let said = succeed(multicoder(&resume).arg(fixture.path("run")));
    assert!(said.contains("done: ") && said.contains("step-00000003"), "{said}");
    assert!(fixture.checkpoint("run", 3).exists() && !fixture.checkpoint("run", 4).exists());

    truncate(&fixture.checkpoint("run", 3).join("state.json"));
    truncate(&fixture.checkpoint("run", 2).join("optimizer.safetensors"));
    let output = multicoder(&["train", "--resume", "--out"]).arg(fixture.path("run")).output().unwrap();
    assert!(!output.status.success() && stderr(&output).contains("no intact checkpoint"), "{}", stderr(&output));
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn more_steps_on_resume_take_effect() {
    let fixture = Fixture::new();
    succeed(&mut fixture.train("run", &["--set", "n_steps=2", "--set", "schedule.kind=wsd"]));
    // No time: the clock ends the run after one step.
    let resume = |sets: &[&str]| {
        let mut command = multicoder(&["train", "--resume", "--out"]);
        succeed(command.arg(fixture.path("run")).args(sets))
    };
    let said = resume(&["--set", "n_steps=9", "--set", "max_hours=1e-9"]);
    assert!(said.contains("step-00000003"), "{said}");
    let said = resume(&["--set", "max_hours=1.0"]);
    assert!(said.contains("step-00000009"), "{said}");
}

#[test]
fn a_warm_start_takes_the_weights_and_the_tokenizer() {
    let fixture = Fixture::new();
    succeed(&mut fixture.train("first", &["--set", "n_steps=30"]));
    let folder = fixture.checkpoint("first", 30);
    let mut command = fixture.train("second", &["--set", "n_steps=1", "--init-from"]);
    let said = succeed(command.arg(&folder));
    assert!(said.contains("weights taken from"), "{said}");
    let first_loss = |out: &str| {
        let text = fs::read_to_string(fixture.path(out).join("metrics.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        line["loss"].as_f64().unwrap()
    };
    assert!(first_loss("second") < first_loss("first") - 1.0, "{} {}", first_loss("second"), first_loss("first"));
}

#[test]
fn a_float32_run_after_a_bfloat16_run_in_one_process_is_a_float32_run() {
    let fixture = Fixture::new();
    let tokenizer = Arc::new(Tokenizer::from_file(&fixture.path("tokenizer.json")).unwrap());
    let weights = |compute: &str, out: &str| {
        let mut table = config::parse(config::preset("smoke").unwrap(), "smoke").unwrap();
        let shards = format!("data.shards={:?}", fixture.path("shards").display().to_string());
        let languages = "languages=[\"lua\", \"python\"]";
        for set in ["n_steps=2", "eval.every_steps=0", "data.batch_tokens=512", &shards, &format!("compute={compute}")]
        {
            config::set(&mut table, set).unwrap();
        }
        for section in ["data", "model"] {
            config::set(&mut table, &format!("{section}.{languages}")).unwrap();
        }
        config::set(&mut table, &format!("model.vocab_size={}", tokenizer.vocab_size())).unwrap();
        let config = config::resolve(&table, "smoke").unwrap();
        let out = fixture.path(out);
        fs::create_dir(&out).unwrap();
        let saved = run(&config, &tokenizer, Start::Scratch, &Device::Cpu, &out, Mesh::single()).unwrap();
        fs::read(saved.join("model.safetensors")).unwrap()
    };
    let first = weights("f32", "first");
    let rounded = weights("bf16", "bf16");
    let can = set_bf16_products(true);
    assert_eq!(rounded != first, can, "bfloat16 products are seen in the weights where there are any");
    assert!(weights("f32", "second") == first, "the switch stayed on");
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let fixture = Fixture::new();
    for (extra, expected) in [
        (vec!["--set", "model.d_modle=3"], "did you mean `d_model`?"),
        (vec!["--set", "schedule.lr=fast"], "schedule.lr: invalid type"),
        (vec!["--init-from", "no/such/model.gguf"], "no/such/model.gguf"),
    ] {
        let output = fixture.train("run", &extra).output().unwrap();
        assert!(!output.status.success());
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert!(!fixture.path("run/checkpoints").exists());
    }
    let output = multicoder(&["train", "--preset", "smok"]).output().unwrap();
    assert!(stderr(&output).contains("did you mean `smoke`?"), "{}", stderr(&output));
    succeed(&mut fixture.train("run", &["--set", "n_steps=1"]));
    let again = fixture.train("run", &["--set", "n_steps=1"]).output().unwrap();
    assert!(!again.status.success() && stderr(&again).contains("--resume"), "{}", stderr(&again));
}

#[test]
fn a_dry_run_prints_sizes_and_writes_nothing() {
    let fixture = Fixture::new();
    for sets in [&["--dry-run"][..], &["--dry-run", "--set", "model.moe.router={ kind = \"token\" }"]] {
        let output = fixture.train("run", sets).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for part in ["[model.moe]", "parameters", "active parameters", "FLOPs a step", "memory, together"] {
            assert!(text.contains(part), "{text}{}", stderr(&output));
        }
        assert!(text.contains("MiB (one micro-step on the CPU)"), "{text}");
        assert!(!fixture.path("run").exists());
    }
}
