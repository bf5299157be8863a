//! One variant with one seed: trained and measured by this program's own commands, in a folder of its own.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use multicoder_model::{Tokenizer, ops};
use toml::Table;
use xxhash_rust::xxh3::xxh3_64;

use super::record::TrialRow;
use super::study::{Budget, Model, Study, Variant, run_named};
use crate::checkpoint;
use crate::corpus::manifest::Split;
use crate::corpus::report::Report;
use crate::data::shard;
use crate::device::DeviceKind;
use crate::evaluate::Evaluation;
use crate::interrupt;
use crate::report::loss_curve::RunCurves;

/// Changed whenever the same trial would give other figures, so that recorded ones are not used again.
const VERSION: u32 = 1;

/// What all trials of a study share.
pub struct Lab<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is compared.
    pub study: &'a Study,
    /// Name of the budget.
    pub budget: &'a str,
    /// Corpus.
    pub shards: &'a Path,
    /// tokenizer.json.
    pub tokenizer: &'a Path,
    /// Folder of the trials.
    pub out: &'a Path,
    /// Where models are trained, where that is not what `train` would choose. It is no part of a trial's identity.
    pub device: Option<DeviceKind>,
    report: Report,
    /// Hash of corpus and tokenizer.
    data: u64,
}

/// A trial that may have been run.
pub struct Trial<'a> {
    /// What is trained.
    pub variant: &'a Variant,
    /// Of weights and data.
    pub seed: u64,
    /// Hash of all that its rows depend on.
    pub identity: String,
    /// Hash of all that its models depend on.
    training: String,
    models: Vec<Model>,
}

/// What a page shows of a trial.
pub struct Pictured {
    /// Name of the variant.
    pub variant: String,
    /// Of its training.
    pub curves: RunCurves,
    /// By language and layer with experts, the share of the tokens that each expert has.
    pub loads: Vec<(String, Vec<Vec<f32>>)>,
}

impl<'a> Lab<'a> {
    /// # Errors
    /// A corpus without a report or without one of the languages; a tokenizer that cannot be read.
    pub fn open(
        (name, study): (&'a str, &'a Study),
        budget: &'a str,
        (shards, tokenizer): (&'a Path, &'a Path),
        out: &'a Path,
    ) -> Result<Lab<'a>> {
        study.budget(budget)?;
        let report = Report::read(shards)?;
        for language in &study.languages {
            for split in [Split::Train, Split::Valid] {
                let there = report.kept.get(language).is_some_and(|kept| kept.contains_key(&split));
                let split = split.name();
                ensure!(there, "{}/{split}: expected text in {language}, a language of the study", shards.display());
            }
        }
        Tokenizer::from_file(tokenizer)?;
        let mut data = fs::read(tokenizer).with_context(|| tokenizer.display().to_string())?;
        for split in ["train", "valid"] {
            data.extend(format!("{:?}", shard::identity(&shard::shard_paths(shards, split)?)?).bytes());
        }
        Ok(Lab { name, study, budget, shards, tokenizer, out, device: None, report, data: xxh3_64(&data) })
    }

    /// The trial of a variant with a seed.
    ///
    /// # Errors
    /// A variant that makes no run.
    pub fn trial(&self, variant: &'a Variant, seed: u64) -> Result<Trial<'a>> {
        let temperature = self.temperature(variant)?;
        let weight = |language: &str| {
            let kept = self.report.kept.get(language).and_then(|kept| kept.get(&Split::Train));
            kept.map_or(0.0, |count| (count.bytes as f64).powf(1.0 / temperature))
        };
        let all: f64 = self.study.languages.iter().map(|language| weight(language)).sum();
        let models = self.study.models(variant, seed, self.budget, &|language| weight(language) / all)?;
        // Where the processor has no bfloat16, products are float32 whatever is asked for. This process makes none.
        let has_bf16 = ops::set_bf16_products(false);
        let mut training = format!("{VERSION} {:016x} {has_bf16}", self.data);
        models.iter().for_each(|model| training += &model.config.to_string());
        for argument in &variant.arguments {
            training += argument;
            training += &self.named(argument, seed)?.map_or_else(String::new, |other| other.training);
        }
        let training = xxh3_64(training.as_bytes());
        let Budget { eval_bytes, eval_lines, .. } = self.study.budget(self.budget)?;
        let measured = format!("{VERSION} {training:016x} {eval_bytes} {eval_lines} {}", variant.tag);
        let identity = format!("{:016x}", xxh3_64(measured.as_bytes()));
        Ok(Trial { variant, seed, identity, training: format!("{training:016x}"), models })
    }

    fn temperature(&self, variant: &Variant) -> Result<f64> {
        let models = self.study.models(variant, 1, self.budget, &|_| 1.0)?;
        let data = models.first().and_then(|model| model.config.get("data")).and_then(toml::Value::as_table);
        let value = data.and_then(|data| data.get("language_temperature"));
        let number = value.and_then(|value| value.as_float().or(value.as_integer().map(|value| value as f64)));
        number.context("data.language_temperature: expected a number")
    }

    /// Trains and measures what of a trial is not there yet.
    ///
    /// # Errors
    /// A command that fails, or that was interrupted.
    pub fn run(&self, trial: &Trial<'_>) -> Result<Vec<TrialRow>> {
        let mut rows: Vec<TrialRow> = Vec::new();
        let (mut n_parameters, mut n_train_tokens, mut train_s) = (0, 0, 0.0);
        for model in &trial.models {
            let dir = self.folder(trial, model);
            let evaluation = self.evaluation(&dir, trial, model)?;
            let curves = RunCurves::read(&dir.join("run/metrics.jsonl"))?;
            n_parameters += evaluation.model.as_ref().map_or(0, |info| info.n_parameters);
            n_train_tokens += curves.n_tokens;
            train_s += curves.elapsed_s;
            rows.extend(evaluation.languages.iter().filter_map(|row| {
                let system = row.model?;
                Some(TrialRow {
                    study: self.name.to_owned(),
                    budget: self.budget.to_owned(),
                    variant: trial.variant.name.clone(),
                    seed: trial.seed,
                    data: format!("{:016x}", self.data),
                    identity: trial.identity.clone(),
                    language: row.language.clone(),
                    bits_per_byte: rounded(system.bits_per_byte),
                    token_accuracy: rounded(system.token_accuracy),
                    line_exact_match: system.line_exact_match.map(rounded),
                    line_edit_similarity: system.line_edit_similarity.map(rounded),
                    infill_exact_match: system.line_exact_match_with_suffix.map(rounded),
                    n_parameters: 0,
                    n_train_tokens: 0,
                    train_s: 0.0,
                })
            }));
        }
        for row in &mut rows {
            (row.n_parameters, row.n_train_tokens, row.train_s) = (n_parameters, n_train_tokens, train_s.round());
        }
        Ok(rows)
    }

    /// What is there of a trial of one model: its curves, and the loads of its experts by language and layer.
    ///
    /// # Errors
    /// Files of the trial that cannot be read.
    pub fn pictured(&self, trial: &Trial<'_>) -> Result<Option<Pictured>> {
        // Of several models no curve is that of the trial.
        let [model] = trial.models.as_slice() else { return Ok(None) };
        let dir = self.folder(trial, model);
        let path = dir.join(eval_name(trial));
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let evaluation: Evaluation = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let loads = evaluation.languages.into_iter().map(|row| (row.language, row.expert_load)).collect();
        let curves = RunCurves::read(&dir.join("run/metrics.jsonl"))?;
        Ok(Some(Pictured { variant: trial.variant.name.clone(), curves, loads }))
    }

    /// The folder of one model of a trial.
    fn folder(&self, trial: &Trial<'_>, model: &Model) -> PathBuf {
        let language = model.language.as_ref().map_or(String::new(), |language| format!("-{language}"));
        self.out.join(format!("{}-{}{language}-{}", trial.variant.name, trial.seed, &trial.training[..8]))
    }

    fn evaluation(&self, dir: &Path, trial: &Trial<'_>, model: &Model) -> Result<Evaluation> {
        let kept = dir.join(eval_name(trial));
        if !kept.exists() {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            self.train(dir, (trial, &model.config))?;
            self.measure(dir, (trial, model), &kept).with_context(|| format!("variant {}", trial.variant.name))?;
            keep_newest(&dir.join("run"))?;
        }
        let text = fs::read_to_string(&kept).with_context(|| kept.display().to_string())?;
        serde_json::from_str(&text).with_context(|| format!("{}: delete it and try again", kept.display()))
    }

    /// The trial with `seed` whose run an argument names.
    fn named(&self, argument: &str, seed: u64) -> Result<Option<Trial<'a>>> {
        let Some((_, name, _)) = run_named(argument) else { return Ok(None) };
        self.study.variant.iter().find(|other| other.name == name).map(|other| self.trial(other, seed)).transpose()
    }

    /// The arguments of a variant, with folders in place of the names of others, which are trained where they are not there.
    fn arguments(&self, trial: &Trial<'_>) -> Result<Vec<OsString>> {
        let argument = |argument: &String| {
            let (Some((before, _, after)), Some(other)) = (run_named(argument), self.named(argument, trial.seed)?)
            else {
                return Ok(OsString::from(argument));
            };
            self.run(&other)?;
            let model = other.models.first().context("a trial without a model")?;
            let mut text = OsString::from(before);
            text.push(self.folder(&other, model).join("run"));
            text.push(after);
            Ok(text)
        };
        trial.variant.arguments.iter().map(argument).collect()
    }

    fn train(&self, dir: &Path, (trial, config): (&Trial<'_>, &Table)) -> Result<()> {
        let path = dir.join("config.toml");
        fs::write(&path, config.to_string()).with_context(|| path.display().to_string())?;
        let mut train = this_program("train")?;
        train.arg("--config").arg(&path).arg("--shards").arg(self.shards).arg("--tokenizer").arg(self.tokenizer);
        let run = dir.join("run");
        train.arg("--out").arg(&run).args(self.device.iter().flat_map(|device| ["--device", device.name()]));
        // What a run begins with is of no more use once it has begun.
        match checkpoint::list(&run)?.is_empty() {
            true => train.args(self.arguments(trial)?),
            false => train.arg("--resume"),
        };
        succeed(&mut train)?;
        let wanted = config.get("n_steps").and_then(toml::Value::as_integer).unwrap_or(0);
        let newest = checkpoint::list(&dir.join("run"))?.pop();
        let is_done = newest.as_ref().is_some_and(|path| path.ends_with(format!("step-{wanted:08}")));
        ensure!(is_done, "{}: training ended before step {wanted}; the same command goes on", dir.display());
        Ok(())
    }

    fn measure(&self, dir: &Path, (trial, model): (&Trial<'_>, &Model), kept: &Path) -> Result<()> {
        let budget = self.study.budget(self.budget)?;
        let languages = model.language.clone().unwrap_or_else(|| self.study.languages.join(","));
        let part = kept.with_extension("part");
        let mut eval = this_program("eval")?;
        // Whatever the program was built for: figures of two devices are no seeds of one trial.
        eval.args(["packages", "--device", "cpu"]).arg("--model").arg(dir.join("run")).arg("--shards").arg(self.shards);
        eval.args(["--split", "valid", "--ngram", "off", "--copy", "off", "--languages", &languages]);
        eval.arg("--max-bytes-per-language").arg(budget.eval_bytes.to_string());
        eval.args(["--tag", if trial.variant.tag { "on" } else { "off" }]);
        eval.arg("--lines").arg(budget.eval_lines.to_string()).arg("--json").arg(&part);
        succeed(eval.stdout(std::process::Stdio::null()))?;
        fs::rename(&part, kept).with_context(|| kept.display().to_string())
    }
}

/// The file of what was measured, in the folder of what was trained.
fn eval_name(trial: &Trial<'_>) -> String {
    format!("eval-{}.json", &trial.identity[..8])
}

/// Of a run that is measured the earlier checkpoints are of no use.
fn keep_newest(run: &Path) -> Result<()> {
    let mut all = checkpoint::list(run)?;
    all.pop();
    all.iter().try_for_each(|old| fs::remove_dir_all(old).with_context(|| old.display().to_string()))
}

fn rounded(value: f64) -> f64 {
    (1e5 * value).round() / 1e5
}

fn this_program(command: &str) -> Result<Command> {
    let mut program = Command::new(std::env::current_exe().context("the path of this program")?);
    program.arg(command);
    end_with_parent(&mut program);
    Ok(program)
}

/// A command whose parent is killed does not go on beside the one that takes the parent's place.
#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let ask = || {
        // SAFETY: `prctl` is async-signal-safe and reads nothing of this process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Ok(())
    };
    // SAFETY: between fork and exec only the call above is made.
    unsafe { command.pre_exec(ask) };
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command) {}

/// Waits for a command; one that saved and left because of Ctrl-C has not done its work.
fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if interrupt::requested() {
        bail!("interrupted: the same command goes on");
    }
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
