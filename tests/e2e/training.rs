//! From a folder of code to a model that completes, and what a run survives: the `multicoder` binary end to end, on a corpus small
//! enough for a test: this repository's own sources.

use anyhow::{Context, Result, bail, ensure};
use multicoder_tests::program::{Finished, binary, interrupt, kill, run};
use multicoder_tests::repository_root;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(300);

/// A model so small that twenty steps take seconds: the `smoke` preset, cut down.
pub(super) const TINY: &[&str] = &[
    "n_steps=20",
    "data.sequence_tokens=64",
    "data.batch_tokens=512",
    "data.micro_batch_tokens=256",
    "data.window_tokens=60",
    "eval.every_steps=0",
    "checkpoint.keep=100",
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.d_head=16",
    "model.d_ff=64",
    "model.moe.d_ff_expert=32",
    "model.moe.d_ff_shared=32",
];

pub(super) fn multicoder(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary("multicoder")?);
    command.args(arguments);
    Ok(command)
}

pub(super) fn succeed(command: &mut Command) -> Result<Finished> {
    let finished = run(command, DEADLINE)?;
    ensure!(finished.code == Some(0), "{command:?}: {:?}\n{}{}", finished.code, finished.stdout, finished.stderr);
    Ok(finished)
}

/// A folder with `shards/` and `tokenizer.json` made by the binary.
pub(super) struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    pub(super) fn new() -> Result<Self> {
        let workshop = Self { folder: tempfile::tempdir()? };
        let root = repository_root();
        let folder = |name: &str, path: &str| format!("{name}={}", root.join(path).display());
        let shards = workshop.path("shards");
        let mut build = multicoder(&["corpus", "build", "--languages", "rust,python,lua"])?;
        build.arg("--out").arg(&shards);
        for (name, path) in
            [("model", "model/src@train"), ("training", "training/src@train"), ("samples", "grammars/samples@train")]
        {
            build.arg("--folder").arg(folder(name, path));
        }
        build.arg("--folder").arg(folder("grammars", "grammars/src@valid"));
        build.arg("--folder").arg(folder("server", "lsp/src@test"));
        succeed(&mut build)?;
        let mut tokenizer = multicoder(&["tokenizer", "train", "--vocab-size", "700"])?;
        succeed(tokenizer.arg("--shards").arg(&shards).arg("--out").arg(workshop.path("tokenizer.json")))?;
        Ok(workshop)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `multicoder train` into the run folder `name`.
    fn train(&self, name: &str, settings: &[&str]) -> Result<Command> {
        let mut command = multicoder(&["train", "--preset", "smoke"])?;
        command.arg("--shards").arg(self.path("shards")).arg("--tokenizer").arg(self.path("tokenizer.json"));
        command.arg("--out").arg(self.path(name));
        for setting in TINY.iter().chain(settings) {
            command.args(["--set", setting]);
        }
        Ok(command)
    }

    fn resume(&self, name: &str) -> Result<Command> {
        let mut command = multicoder(&["train", "--resume"])?;
        command.arg("--out").arg(self.path(name));
        Ok(command)
    }

    fn checkpoint(&self, name: &str, step: u64) -> PathBuf {
        self.path(name).join(format!("checkpoints/step-{step:08}"))
    }

    /// The run `name` ended where the unbroken run `reference` did, to the last bit of weights and moments.
    fn check_same_end(&self, reference: &str, name: &str) -> Result<()> {
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let read =
                |run: &str| std::fs::read(self.checkpoint(run, 20).join(file)).with_context(|| format!("{run}/{file}"));
            ensure!(read(reference)? == read(name)?, "{file} of {name} differs from that of {reference}");
        }
        Ok(())
    }
}

/// Starts training and kills it (SIGKILL) as soon as `reached` holds.
pub(super) fn kill_when(command: &mut Command, mut reached: impl FnMut() -> bool) -> Result<()> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_until(&mut child, &mut reached)?;
    kill(&mut child)
}

fn wait_until(child: &mut Child, reached: &mut impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !reached() {
        if let Some(status) = child.try_wait()? {
            bail!("the run ended ({status}) before it was to be stopped");
        }
        if started.elapsed() > DEADLINE {
            kill(child)?;
            bail!("the run did not come to where it was to be stopped");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Is a checkpoint being written at this moment?
fn is_writing(run_folder: &Path) -> bool {
    let entries = std::fs::read_dir(run_folder.join("checkpoints")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".part"))
}

#[test]
fn four_commands_make_a_model_that_completes() -> Result<()> {
    let workshop = Workshop::new()?;
    succeed(&mut workshop.train("run", &[])?)?;
    ensure!(workshop.path("run/run.toml").is_file(), "the resolved configuration is in the run folder");
    let metrics = std::fs::read_to_string(workshop.path("run/metrics.jsonl"))?;
    let losses = losses(&metrics)?;
    ensure!(losses.len() == 20, "one line a step in metrics.jsonl: {metrics}");
    ensure!(losses[19] < losses[0] - 0.3, "twenty steps lower the loss: {losses:?}");
    evaluate_and_pack(&workshop)?;
    complete_with(&workshop.path("packed.gguf"))
}

fn losses(metrics: &str) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    for line in metrics.lines() {
        let record: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        losses.extend(record["loss"].as_f64());
    }
    Ok(losses)
}

fn evaluate_and_pack(workshop: &Workshop) -> Result<()> {
    let table = workshop.path("eval.json");
    let mut eval = multicoder(&["eval", "--model"])?;
    eval.arg(workshop.checkpoint("run", 20)).arg("--shards").arg(workshop.path("shards")).arg("--json").arg(&table);
    let printed = succeed(&mut eval)?.stdout;
    ensure!(printed.contains("rust"), "the table has a row for rust:\n{printed}");
    let _: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&table)?)?;
    let mut pack = multicoder(&["pack", "--checkpoint"])?;
    pack.arg(workshop.checkpoint("run", 20)).arg("--out").arg(workshop.path("packed.gguf"));
    // Of the model's three languages the valid split has one.
    let shards = workshop.path("shards");
    succeed(pack.arg("--fit-copy").arg(&shards).arg("--filter-vocabulary").arg(&shards))?;
    serve_with_others(workshop)
}

/// Text of one of the model's languages, read with the experts of each; and a file that has this one's alone.
fn serve_with_others(workshop: &Workshop) -> Result<()> {
    let (csv, page) = (workshop.path("unseen.csv"), workshop.path("unseen.html"));
    let mut unseen = multicoder(&["eval", "unseen", "--max-bytes-per-language", "2000", "--model"])?;
    unseen.arg(workshop.checkpoint("run", 20)).arg("--shards").arg(workshop.path("shards"));
    let printed = succeed(unseen.arg("--csv").arg(&csv).arg("--html").arg(&page))?.stdout;
    let rows = std::fs::read_to_string(&csv)?;
    ensure!(printed.contains("likeliest") && rows.lines().count() == 2 && rows.contains(",rust,"), "{printed}\n{rows}");
    ensure!(std::fs::read_to_string(&page)?.matches("title=\"as ").count() == 4, "no language and three");
    let mut pack = multicoder(&["pack", "--languages", "rust", "--checkpoint"])?;
    let part = workshop.path("rust.gguf");
    succeed(pack.arg(workshop.checkpoint("run", 20)).arg("--out").arg(&part))?;
    let n_bytes = |path: &Path| std::fs::metadata(path).map(|of| of.len());
    ensure!(n_bytes(&part)? < n_bytes(&workshop.path("packed.gguf"))?, "experts were dropped");
    Ok(())
}

/// Twenty steps teach a model little, so that it may well say nothing; but it is this model that is asked.
fn complete_with(model: &Path) -> Result<()> {
    let server = |arguments: &[&str]| -> Result<serde_json::Value> {
        let mut command = Command::new(binary("multicoder-lsp")?);
        let printed = succeed(command.args(arguments).args(["--json", "--model"]).arg(model))?.stdout;
        serde_json::from_str(&printed).context(printed)
    };
    let doctor = server(&["doctor"])?;
    ensure!(doctor["model"]["name"] == "packed" && doctor["model"]["languages"][2] == "rust", "{doctor}");
    let sample = repository_root().join("grammars/samples/rust.rs");
    let answer = server(&["complete", &format!("{}:3:1", sample.display())])?;
    ensure!(answer["line"] == 3 && (answer["text"].is_string() || answer["reason"].is_string()), "{answer}");
    Ok(())
}

#[test]
fn a_killed_run_ends_where_an_unbroken_one_does() -> Result<()> {
    let workshop = Workshop::new()?;
    succeed(&mut workshop.train("unbroken", &["checkpoint.every_steps=7"])?)?;
    // Killed between two checkpoints.
    let folder = workshop.checkpoint("killed", 7);
    kill_when(&mut workshop.train("killed", &["checkpoint.every_steps=7"])?, || folder.is_dir())?;
    ensure!(!workshop.checkpoint("killed", 20).exists(), "the run was killed before its end");
    succeed(&mut workshop.resume("killed")?)?;
    workshop.check_same_end("unbroken", "killed")?;
    // Killed while a checkpoint is written, again and again.
    let folder = workshop.path("torn");
    kill_when(&mut workshop.train("torn", &["checkpoint.every_steps=1"])?, || is_writing(&folder))?;
    // Killed at its first checkpoint a run has nothing to resume: the preset is named again and it starts afresh.
    let resume = || -> Result<Command> {
        let mut command = workshop.train("torn", &["checkpoint.every_steps=1"])?;
        command.arg("--resume");
        Ok(command)
    };
    for _ in 0..3 {
        let newest = newest_step(&folder);
        if newest > 10 {
            break;
        }
        kill_when(&mut resume()?, || newest_step(&folder) > newest + 1 && is_writing(&folder))?;
    }
    succeed(&mut resume()?)?;
    ensure!(!is_writing(&folder), "what a killed run left half written is swept away");
    workshop.check_same_end("unbroken", "torn")
}

/// The newest whole checkpoint, 0 for none.
fn newest_step(run_folder: &Path) -> u64 {
    let entries = std::fs::read_dir(run_folder.join("checkpoints")).into_iter().flatten().flatten();
    let steps = entries.into_iter().filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok());
    steps.max().unwrap_or(0)
}

#[test]
fn an_interrupted_run_saves_and_continues() -> Result<()> {
    let workshop = Workshop::new()?;
    succeed(&mut workshop.train("unbroken", &[])?)?;
    let mut child = workshop.train("interrupted", &[])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let metrics = workshop.path("interrupted/metrics.jsonl");
    wait_until(&mut child, &mut || std::fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() >= 3))?;
    interrupt(&child)?;
    let status = child.wait()?;
    ensure!(status.code().is_some(), "the run ends by itself: {status}");
    let saved = newest_step(&workshop.path("interrupted"));
    ensure!((1..20).contains(&saved), "a checkpoint of the step it had come to, not {saved}");
    succeed(&mut workshop.resume("interrupted")?)?;
    workshop.check_same_end("unbroken", "interrupted")
}

#[test]
fn damaged_checkpoints_are_passed_over_and_named() -> Result<()> {
    let workshop = Workshop::new()?;
    succeed(&mut workshop.train("run", &["checkpoint.every_steps=10"])?)?;
    let truncate = |step: u64| -> Result<()> {
        let file = workshop.checkpoint("run", step).join("model.safetensors");
        let whole = std::fs::read(&file)?;
        Ok(std::fs::write(&file, &whole[..whole.len() / 2])?)
    };
    let expected = std::fs::read(workshop.checkpoint("run", 20).join("optimizer.safetensors"))?;
    truncate(20)?;
    let resumed = succeed(&mut workshop.resume("run")?)?;
    ensure!(
        resumed.stderr.contains("step-00000020") && resumed.stderr.contains("model.safetensors"),
        "{}",
        resumed.stderr
    );
    let again = std::fs::read(workshop.checkpoint("run", 20).join("optimizer.safetensors"))?;
    ensure!(again == expected, "continued from step 10, it ends where it ended before");
    truncate(10)?;
    truncate(20)?;
    let refused = run(&mut workshop.resume("run")?, DEADLINE)?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("truncated"), "{:?}: {}", refused.code, refused.stderr);
    let mut eval = multicoder(&["eval", "--model"])?;
    eval.arg(workshop.checkpoint("run", 20)).arg("--shards").arg(workshop.path("shards"));
    let refused = run(&mut eval, DEADLINE)?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("model.safetensors"),
        "{:?}: {}",
        refused.code,
        refused.stderr
    );
    Ok(())
}

#[test]
fn a_run_folder_in_use_is_not_overwritten() -> Result<()> {
    let workshop = Workshop::new()?;
    succeed(&mut workshop.train("run", &["n_steps=2"])?)?;
    let refused = run(&mut workshop.train("run", &["n_steps=2"])?, DEADLINE)?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("--resume"), "{:?}: {}", refused.code, refused.stderr);
    let nothing = run(&mut workshop.resume("absent")?, DEADLINE)?;
    ensure!(nothing.code == Some(1), "nothing to resume and no preset: {:?} {}", nothing.code, nothing.stderr);
    Ok(())
}

#[test]
fn a_missing_gpu_is_an_error_and_no_run_on_the_cpu() -> Result<()> {
    let workshop = Workshop::new()?;
    let widths = ["model.d_model=64", "model.d_head=32", "n_steps=2"];
    let mut command = workshop.train("run", &widths)?;
    let finished = run(command.args(["--device", "cuda"]), DEADLINE)?;
    let says_why = finished.stderr.contains("CUDA");
    // Where there is a GPU, and the build can use one, it trains.
    ensure!(
        finished.code == Some(0) || finished.code == Some(1) && says_why,
        "{:?}: {}",
        finished.code,
        finished.stderr
    );
    Ok(())
}
