//! `multicoder train`: a preset or a file, changed by `--set`, becomes a run in a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use multicoder_grammars::LanguageId;
use multicoder_model::{ModelConfig, Tokenizer};
use toml::{Table, Value};

use crate::checkpoint::{self, Checkpoint};
use crate::config;
use crate::data::shard;
use crate::device::{self, DeviceKind};
use crate::lock::Lock;
use crate::parallel::{Launch, Mesh, Mode};
use crate::run::{Start, StepsOn};
use crate::weights::Source;
use crate::{curriculum, dry_run, interrupt, memory};

/// Arguments of `multicoder train`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A run that comes with the program: smoke, llama, starter, h200.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub preset: Option<String>,
    /// A run described by a TOML file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Changes one value, such as model.d_model=256 (repeatable).
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Continues the newest intact checkpoint in the run folder, with its configuration; starts afresh where there is none.
    #[arg(long)]
    pub resume: bool,
    /// Prints the resolved configuration, sizes, FLOPs and memory, and ends.
    #[arg(long)]
    pub dry_run: bool,
    /// Run folder: checkpoints, metrics.jsonl, TensorBoard events, run.toml.
    #[arg(long, value_name = "DIR", default_value = "run")]
    pub out: PathBuf,
    /// Corpus with train/ and valid/ shards (data.shards).
    #[arg(long, value_name = "DIR")]
    pub shards: Option<PathBuf>,
    /// tokenizer.json (data.tokenizer).
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Takes the weights that fit, and without --tokenizer the tokenizer, from a model: a GGUF file or a folder, also that of a run. Experts
    /// as wide as its dense network begin as copies of that.
    #[arg(long, value_name = "PATH", conflicts_with = "resume")]
    pub init_from: Option<PathBuf>,
    /// Where steps are computed [default: cpu; cuda in a program built for candle's GPU code].
    #[arg(long, value_enum)]
    pub device: Option<DeviceKind>,
}

/// Runs the command.
///
/// # Errors
/// A configuration that makes no run, before anything is written; then those of the run.
pub fn run(args: Args) -> Result<()> {
    // A dry run needs no GPU, even of a program that trains on one.
    let (device, steps_on) =
        if args.dry_run { (Device::Cpu, StepsOn::Tensors) } else { device::for_steps(args.device)? };
    let checkpoint = find_checkpoint(&args, &device)?;
    let (mut table, mut origin) = base_config(&args, checkpoint.as_ref())?;
    if !args.set.is_empty() {
        origin += &format!(" with --set {}", args.set.join(" --set "));
    }
    apply_arguments(&mut table, &args)?;
    if checkpoint.is_none() {
        set_curriculum(&mut table)?;
    }
    // The keys are checked before the files that they name are opened.
    config::resolve(&with_placeholders(&table), &origin)?;
    let source = args.init_from.as_deref().map(Source::open).transpose()?;
    let spawns = table.get("spawn_mask").and_then(Value::as_float).unwrap_or(0.0) > 0.0;
    ensure!(!spawns || source.is_some() || checkpoint.is_some(), "spawn_mask: expected --init-from with a dense model");
    let tokenizer = load_tokenizer(&table, checkpoint.as_ref(), source.as_ref())?;
    complete(&mut table, tokenizer.as_ref(), source.as_ref().map(|source| source.lm.config()))?;
    let config = config::resolve(&table, &origin)?;
    if args.dry_run {
        println!("{}\n{}", config.to_toml()?, dry_run::report(&config));
        return Ok(());
    }
    if config.parallel.mode == Mode::Expert {
        memory::keep_pages();
    }
    let tokenizer = Arc::new(tokenizer.context("data.tokenizer is empty: give --tokenizer FILE")?);
    ensure!(!config.data.shards.is_empty(), "data.shards is empty: give --shards DIR");
    let mesh = Mesh::join(&config.parallel)?;
    let is_first = mesh.is_first();
    let _lock = is_first.then(|| Lock::of(&args.out)).transpose()?;
    interrupt::install();
    let start = match (checkpoint, source) {
        (Some(checkpoint), _) => Start::Checkpoint(Box::new(checkpoint)),
        (None, Some(source)) => Start::Weights(Box::new(source)),
        (None, None) => Start::Scratch,
    };
    // On a thread of the pool: from any other, each parallel loop would hand its work over and sleep until it is done.
    let last = rayon::scope(|_| crate::run::run_on(steps_on, &config, &tokenizer, start, &device, &args.out, mesh))?;
    if !is_first {
        return Ok(());
    }
    let peak_mib = memory::peak_rss_bytes() >> 20;
    match interrupt::requested() {
        true => eprintln!("interrupted: saved {}; continue with --resume", last.display()),
        false => eprintln!("done: {} (peak memory {peak_mib} MiB)", last.display()),
    }
    Ok(())
}

fn find_checkpoint(args: &Args, device: &Device) -> Result<Option<Checkpoint>> {
    if args.resume {
        return checkpoint::load_newest(&args.out, device, &mut |message| say(message));
    }
    let exists = !args.dry_run && !checkpoint::list(&args.out)?.is_empty();
    ensure!(!exists, "{}: it holds a run; continue it with --resume or choose another --out", args.out.display());
    Ok(None)
}

/// Prints a message that all ranks have, once.
fn say(message: &str) {
    if Launch::from_environment().rank == 0 {
        eprintln!("{message}");
    }
}

/// The configuration that `--set` changes, and its name in errors.
fn base_config(args: &Args, checkpoint: Option<&Checkpoint>) -> Result<(Table, String)> {
    if let Some(checkpoint) = checkpoint {
        say(&format!("resuming {} at step {}", checkpoint.path.display(), checkpoint.state.step));
        return Ok((checkpoint.config.clone(), checkpoint.path.join("run.toml").display().to_string()));
    }
    match (&args.preset, &args.config) {
        (Some(name), _) => {
            let origin = format!("preset {name}");
            Ok((config::parse(config::preset(name)?, &origin)?, origin))
        }
        (None, Some(path)) => Ok((config::read(path)?, path.display().to_string())),
        (None, None) => {
            let known = config::PRESETS.map(|(name, _)| name).join(", ");
            let nothing =
                if args.resume { format!("{}: no run to resume; ", args.out.display()) } else { String::new() };
            bail!("{nothing}expected --preset NAME ({known}) or --config FILE")
        }
    }
}

fn apply_arguments(table: &mut Table, args: &Args) -> Result<()> {
    for (path, key) in [(&args.shards, "shards"), (&args.tokenizer, "tokenizer")] {
        if let Some(path) = path {
            section(table, "data")?.insert(key.to_owned(), Value::String(path.display().to_string()));
        }
    }
    args.set.iter().try_for_each(|assignment| config::set(table, assignment))
}

/// Fills in `data.curriculum` where a run is to say what it is.
fn set_curriculum(table: &mut Table) -> Result<()> {
    let Some(run) = data_path(table, "curriculum_from") else { return Ok(()) };
    let n_steps = table.get("n_steps").and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok());
    let n_steps = n_steps.context("data.curriculum_from: expected n_steps in the configuration")?;
    let max_hours = table.get("max_hours").and_then(|hours| hours.as_float().or(hours.as_integer().map(|n| n as f64)));
    ensure!(
        max_hours.unwrap_or(0.0) == 0.0,
        "data.curriculum_from: expected max_hours = 0: it counts from the end, in steps"
    );
    let is_explicit =
        section(table, "data")?.get("curriculum").and_then(Value::as_table).is_some_and(|own| !own.is_empty());
    ensure!(!is_explicit, "data.curriculum_from: expected no data.curriculum beside it");
    let starts = curriculum::from_run(Path::new(&run), n_steps).context("data.curriculum_from")?;
    let named: Vec<String> = starts.iter().map(|(language, step)| format!("{language} from step {step}")).collect();
    let named = if named.is_empty() { "all languages from the start".to_owned() } else { named.join(", ") };
    say(&format!("curriculum by {run}: {named}"));
    let starts = starts.into_iter().map(|(language, step)| (language, Value::Integer(step as i64))).collect();
    section(table, "data")?.insert("curriculum".to_owned(), Value::Table(starts));
    Ok(())
}

fn load_tokenizer(
    table: &Table,
    checkpoint: Option<&Checkpoint>,
    source: Option<&Source>,
) -> Result<Option<Tokenizer>> {
    if let Some(checkpoint) = checkpoint {
        return Ok(Some(Tokenizer::from_file(&checkpoint.path.join("tokenizer.json"))?));
    }
    let Some(path) = data_path(table, "tokenizer") else {
        let theirs = source.map(|source| source.tokenizer.to_json().and_then(|json| Tokenizer::from_json(&json)));
        return Ok(theirs.transpose()?);
    };
    let tokenizer = Tokenizer::from_file(Path::new(&path)).context("data.tokenizer")?;
    source.map_or(Ok(()), |source| source.check_tokenizer(&tokenizer, &path))?;
    Ok(Some(tokenizer))
}

/// Fills in what follows from the tokenizer and the shards: `model.vocab_size`, `model.languages`, `data.languages`.
/// A model that starts from `source` keeps its languages and their experts, if that has all of the data.
fn complete(table: &mut Table, tokenizer: Option<&Tokenizer>, source: Option<&ModelConfig>) -> Result<()> {
    if let Some(tokenizer) = tokenizer {
        section(table, "model")?.insert("vocab_size".to_owned(), Value::Integer(tokenizer.vocab_size() as i64));
    }
    let in_shards = match data_path(table, "shards") {
        Some(shards) => shard_languages(Path::new(&shards))?,
        None => LanguageId::all().map(|id| id.name().to_owned()).collect(),
    };
    let names = |list: &[String]| Value::Array(list.iter().cloned().map(Value::String).collect());
    let data = section(table, "data")?;
    if is_empty_list(data.get("languages")) {
        data.insert("languages".to_owned(), names(&in_shards));
    }
    let data_languages = data.get("languages").cloned().unwrap_or_else(|| names(&in_shards));
    let model = section(table, "model")?;
    if let Some(source) = source {
        adopt_languages(model, source, &data_languages);
    }
    if is_empty_list(model.get("languages")) {
        model.insert("languages".to_owned(), data_languages);
    }
    drop_absent_experts(model);
    Ok(())
}

/// Takes the languages of `source`, and which expert each has, where nothing else is said and none of the data is missing there.
fn adopt_languages(model: &mut Table, source: &ModelConfig, data_languages: &Value) {
    let known = |name: &Value| name.as_str().is_some_and(|name| source.languages.iter().any(|known| known == name));
    let covered = data_languages.as_array().is_some_and(|names| names.iter().all(known));
    let moe = model.get("moe").and_then(Value::as_table);
    let experts = moe.and_then(|moe| moe.get("expert_of_language")).and_then(Value::as_table);
    let is_explicit = !is_empty_list(model.get("languages")) || experts.is_some_and(|experts| !experts.is_empty());
    if is_explicit || !covered || source.languages.is_empty() {
        return;
    }
    let names = source.languages.iter().cloned().map(Value::String).collect();
    model.insert("languages".to_owned(), Value::Array(names));
    let theirs = source.moe.as_ref();
    let moe = model.get_mut("moe").and_then(Value::as_table_mut);
    let (Some(moe), Some(theirs)) = (moe, theirs) else { return };
    if moe.get("n_experts").and_then(Value::as_integer) == i64::try_from(theirs.n_experts).ok() {
        let experts = theirs.expert_of_language.iter().map(|(name, &e)| (name.clone(), Value::Integer(e as i64)));
        moe.insert("expert_of_language".to_owned(), Value::Table(experts.collect()));
    }
}

/// A preset may name the expert of languages that this corpus does not have.
fn drop_absent_experts(model: &mut Table) {
    let languages = model.get("languages").and_then(Value::as_array).cloned().unwrap_or_default();
    let moe = model.get_mut("moe").and_then(Value::as_table_mut);
    if let Some(experts) = moe.and_then(|moe| moe.get_mut("expert_of_language")).and_then(Value::as_table_mut) {
        experts.retain(|name, _| languages.iter().any(|language| language.as_str() == Some(name)));
    }
}

/// Languages of the training shards, sorted, from the file names.
fn shard_languages(shards: &Path) -> Result<Vec<String>> {
    let paths = shard::shard_paths(shards, "train").context("data.shards")?;
    let mut names: Vec<String> = paths.iter().map(|path| shard::language_of(path).to_owned()).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The table with something valid where [`complete`] fills in later.
fn with_placeholders(table: &Table) -> Table {
    let mut table = table.clone();
    if let Some(model) = table.get_mut("model").and_then(Value::as_table_mut) {
        model.entry("vocab_size").or_insert(Value::Integer(1024));
        if is_empty_list(model.get("languages")) {
            drop_absent_experts(model);
        }
    }
    table
}

fn is_empty_list(value: Option<&Value>) -> bool {
    value.is_none_or(|value| value.as_array().is_some_and(|list| list.is_empty()))
}

fn data_path(table: &Table, key: &str) -> Option<String> {
    let path = table.get("data")?.get(key)?.as_str()?;
    (!path.is_empty()).then(|| path.to_owned())
}

fn section<'a>(table: &'a mut Table, name: &str) -> Result<&'a mut Table> {
    let value = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
    value.as_table_mut().with_context(|| format!("{name}: expected a section"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_start_keeps_the_languages_and_experts_of_its_source() {
        let source: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 300, "d_model": 16, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_head": 16, "d_ff": 16,
            "context_tokens": 32, "languages": ["c", "lua", "python"],
            "moe": {"layers": {"every_n": 1}, "n_experts": 4, "d_ff_expert": 8, "router": {"kind": "pl_hard"},
                    "expert_of_language": {"c": 3}},
        }))
        .unwrap();
        let names = |names: &[&str]| Value::Array(names.iter().map(|name| Value::from(*name)).collect());
        let adopted = |text: &str, data: &[&str]| {
            let mut model: Table = text.parse().unwrap();
            adopt_languages(&mut model, &source, &names(data));
            model
        };
        let model = adopted("moe = { n_experts = 4 }", &["lua", "python"]);
        assert_eq!(model["languages"], names(&["c", "lua", "python"]));
        assert_eq!(model["moe"]["expert_of_language"]["c"].as_integer(), Some(3));
        // A language that the source lacks, and languages or experts that were asked for.
        assert!(!adopted("moe = { n_experts = 4 }", &["go", "lua"]).contains_key("languages"));
        assert_eq!(adopted("languages = [\"lua\"]", &["lua"])["languages"], names(&["lua"]));
        let explicit = adopted("moe = { n_experts = 4, expert_of_language = { lua = 0 } }", &["lua"]);
        assert!(!explicit.contains_key("languages"));
    }
}
