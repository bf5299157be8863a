//! `RunConfig`: everything that decides what a run computes. A preset or a file, then `--set path=value`, validated once.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use multicoder_model::ModelConfig;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::curriculum;
use crate::parallel::{Mode, ParallelConfig};
use crate::schedule::{ScheduleConfig, ScheduleKind};

/// Presets by name, smallest first.
pub const PRESETS: [(&str, &str); 4] = [
    ("smoke", include_str!("../presets/smoke.toml")),
    ("llama", include_str!("../presets/llama.toml")),
    ("starter", include_str!("../presets/starter.toml")),
    ("h200", include_str!("../presets/h200.toml")),
];

/// A complete training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Seed of the initial weights and of the order of the data.
    pub seed: u64,
    /// Optimizer steps.
    pub n_steps: u64,
    /// Wall-clock budget in hours, 0 for none: the decay then begins early enough for the run to end in time.
    pub max_hours: f64,
    /// Numbers that the layers' matrix products multiply.
    pub compute: Compute,
    /// Compute each layer's activations a second time in the backward pass instead of keeping them: less memory, about a third more time.
    #[serde(default)]
    pub checkpoint_activations: bool,
    /// Share of the values of an expert that begin at zero where it begins as the dense network of the model that weights are taken from
    /// (`--init-from`), so that experts differ.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spawn_mask: f64,
    /// What the loader reads and how it packs it.
    pub data: DataConfig,
    /// AdamW and clipping.
    pub optimizer: OptimizerConfig,
    /// Learning rate over the run.
    pub schedule: ScheduleConfig,
    /// Validation during the run.
    pub eval: EvalConfig,
    /// When to save and how much to keep.
    pub checkpoint: CheckpointConfig,
    /// What is reported.
    pub metrics: MetricsConfig,
    /// The ranks of the run and what they divide.
    #[serde(default)]
    pub parallel: ParallelConfig,
    /// The network. `vocab_size` and `languages` may be left out: they follow from the tokenizer and the shards.
    pub model: ModelConfig,
}

/// What the loader reads and how it packs sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder with `train/` and `valid/` shards.
    pub shards: String,
    /// `tokenizer.json`.
    pub tokenizer: String,
    /// Folder for the tokenized text, made when it is first needed; empty for `tokens/` in that of the shards.
    #[serde(default)]
    pub tokens: String,
    /// Languages to train on; empty for all that the shards and the tokenizer have.
    pub languages: Vec<String>,
    /// Predicted tokens a sequence (L).
    pub sequence_tokens: usize,
    /// Tokens an optimizer step, over all micro-steps.
    pub batch_tokens: usize,
    /// Tokens of one forward and backward pass: bounds memory, not results (up to rounding).
    pub micro_batch_tokens: usize,
    /// Languages are drawn with probability ~ bytes^(1/T): 1 is proportional, large is uniform.
    pub language_temperature: f64,
    /// Text is cut into pieces of about this many tokens before it is shuffled.
    pub window_tokens: usize,
    /// Fraction of pieces trained as fill in the middle, of which one in ten ends where its text does and so has the plain layout.
    pub fim_frac: f64,
    /// Largest share of a piece that a suffix may take, in bytes.
    pub fim_suffix_max_frac: f64,
    /// Fraction of pieces for which documents of their package are searched for snippets to begin with. Three of four have any that
    /// are alike, in the corpus of the project; the others begin without.
    #[serde(default)]
    pub snippet_frac: f64,
    /// Fraction of pieces without their language token.
    pub tag_dropout_frac: f64,
    /// Fraction of pieces whose tokens are to the routers of no language: they meet the shared expert alone in `pl_shared`, all experts
    /// in `pl_hard`. Expert dropout by language (after Elbayad et al. 2023, arXiv 2212.07571, expert output masking).
    #[serde(default)]
    pub expert_dropout_frac: f64,
    /// Languages that have it; empty for all.
    #[serde(default)]
    pub expert_dropout_languages: Vec<String>,
    /// Languages that are drawn from a later step on, and that step: those that would be learnt by heart come last (Elbayad et al. 2023,
    /// arXiv 2212.07571, curriculum). The others share out their part until then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub curriculum: BTreeMap<String, u64>,
    /// The folder of a run that trained on all languages from the start and says what the curriculum is to be: those that were learnt by
    /// heart there begin later.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub curriculum_from: String,
    /// Whether suffix tokens count in the loss.
    pub count_suffix: bool,
    /// Whether attention stays within each of the pieces that a sequence is packed of.
    #[serde(default)]
    pub document_mask: bool,
}

impl DataConfig {
    /// Whether pieces of a language are now and then those of no language.
    pub fn drops_experts_of(&self, language: &str) -> bool {
        let languages = &self.expert_dropout_languages;
        self.expert_dropout_frac > 0.0 && (languages.is_empty() || languages.iter().any(|name| name == language))
    }
}

/// Numbers that the layers' matrix products multiply; weights, sums, moments and routers are float32 always.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    F32,
    /// bfloat16 where the processor has instructions for it, float32 elsewhere.
    Bf16,
}

impl Compute {
    /// As in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        }
    }
}

/// The rule of the hidden matrices.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    Adamw,
    Muon,
}

/// AdamW (Loshchilov and Hutter 2019) and gradient clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Which rule moves the hidden matrices; everything else moves by AdamW.
    pub kind: OptimizerKind,
    /// Muon's momentum.
    pub momentum: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices (norms and biases have none).
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no clipping.
    pub clip_norm: f64,
}

/// Validation during the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps between evaluations; 0 for none.
    pub every_steps: u64,
    /// Validation sequences a language.
    pub sequences_per_language: usize,
}

/// When to save.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 for one at the end only.
    pub every_steps: u64,
    /// Checkpoints kept, the newest ones.
    pub keep: usize,
}

/// What is reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Steps between lines on standard error when it is not a terminal.
    pub log_every_steps: u64,
    /// Floating-point operations a second that one rank's machine can do at most, of which MFU is a share; 0 to know or measure them.
    #[serde(default)]
    pub peak_flops: f64,
}

/// The text of a preset.
///
/// # Errors
/// An unknown name; the message lists the known ones.
pub fn preset(name: &str) -> Result<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text).ok_or_else(|| {
        let known = PRESETS.map(|(known, _)| known);
        anyhow!("--preset {name}: unknown preset{}; expected one of {}", did_you_mean(name, &known), known.join(", "))
    })
}

/// Parses TOML into a table that [`set`] and [`resolve`] work on. `origin` names it in errors.
///
/// # Errors
/// Text that is no TOML.
pub fn parse(text: &str, origin: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|e| anyhow!("{origin}: {e}"))
}

/// Applies one `path=value`, where the value is TOML or, failing that, a string.
///
/// # Errors
/// No `=`, or a path through something that is no table. Unknown keys are found by [`resolve`].
pub fn set(table: &mut Table, assignment: &str) -> Result<()> {
    let (path, text) = assignment
        .split_once('=')
        .ok_or_else(|| anyhow!("--set {assignment}: expected path=value, such as model.d_model=256"))?;
    let value = format!("value = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let (parents, key) = path.rsplit_once('.').map_or((None, path), |(parents, key)| (Some(parents), key));
    let mut at = table;
    for part in parents.iter().flat_map(|parents| parents.split('.')) {
        let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = next.as_table_mut().ok_or_else(|| anyhow!("--set {assignment}: {part} is a value, not a section"))?;
    }
    at.insert(key.to_owned(), value);
    Ok(())
}

/// Turns the table into a validated configuration. `origin` names it in errors.
///
/// # Errors
/// A key that is unknown (the message lists the valid ones at that level), missing, of the wrong type, or a value that makes no run.
pub fn resolve(table: &Table, origin: &str) -> Result<RunConfig> {
    let config: RunConfig = RunConfig::deserialize(Value::Table(table.clone()))
        .map_err(|e| anyhow!("{origin}: {}", explain(&e.to_string())))?;
    config.validate().with_context(|| origin.to_owned())?;
    Ok(config)
}

/// Reads a configuration file.
///
/// # Errors
/// Unreadable file or no TOML.
pub fn read(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    parse(&text, &path.display().to_string())
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl RunConfig {
    /// Sequences of one optimizer step.
    pub fn batch_sequences(&self) -> usize {
        self.data.batch_tokens / self.data.sequence_tokens
    }

    /// Sequences of one micro-step.
    pub fn micro_batch_sequences(&self) -> usize {
        (self.data.micro_batch_tokens / self.data.sequence_tokens).clamp(1, self.batch_sequences())
    }

    /// The configuration as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("configuration cannot be written as TOML")
    }

    fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.parallel.validate(self)?;
        self.validate_checkpointing()?;
        let d = &self.data;
        ensure!(self.n_steps > 0, "n_steps = 0: expected at least 1");
        ensure!(d.sequence_tokens >= 16, "data.sequence_tokens = {}: expected at least 16", d.sequence_tokens);
        if d.sequence_tokens > self.model.context_tokens {
            let context = self.model.context_tokens;
            bail!("data.sequence_tokens = {}: expected at most model.context_tokens = {context}", d.sequence_tokens);
        }
        if d.batch_tokens < d.sequence_tokens || !d.batch_tokens.is_multiple_of(d.sequence_tokens) {
            let unit = d.sequence_tokens;
            bail!("data.batch_tokens = {}: expected a multiple of data.sequence_tokens = {unit}", d.batch_tokens);
        }
        let temperature = d.language_temperature;
        ensure!(temperature > 0.0, "data.language_temperature = {temperature}: expected a number above 0");
        let known = |name: &&String| d.languages.is_empty() || d.languages.contains(name);
        if let Some(name) = d.expert_dropout_languages.iter().find(|name| !known(name)) {
            bail!("data.expert_dropout_languages: {name}: expected names of data.languages");
        }
        curriculum::validate(&d.curriculum, &d.languages, self.n_steps)?;
        let params = self.model.moe.as_ref().map(|moe| &moe.expert_param).filter(|params| !params.is_plain());
        if let Some(params) = params.filter(|_| self.spawn_mask > 0.0) {
            let (mask, name) = (self.spawn_mask, params.name());
            bail!(
                "spawn_mask = {mask} with model.moe.expert_param = {name}: expected 0, for experts share what would be masked"
            );
        }
        ensure!(d.window_tokens >= 16, "data.window_tokens = {}: expected at least 16", d.window_tokens);
        let o = &self.optimizer;
        ensure!(o.eps > 0.0, "optimizer.eps = {}: expected a number above 0", o.eps);
        ensure!(o.clip_norm >= 0.0, "optimizer.clip_norm = {}: expected 0 (no clipping) or more", o.clip_norm);
        ensure!(o.weight_decay >= 0.0, "optimizer.weight_decay = {}: expected 0 or more", o.weight_decay);
        let s = &self.schedule;
        ensure!(s.lr > 0.0, "schedule.lr = {}: expected a number above 0", s.lr);
        let peak = self.metrics.peak_flops;
        ensure!(peak >= 0.0, "metrics.peak_flops = {peak}: expected 0 (to be measured) or more");
        ensure!(self.checkpoint.keep > 0, "checkpoint.keep = 0: expected at least 1");
        for (name, value) in [
            ("data.fim_frac", d.fim_frac),
            ("data.fim_suffix_max_frac", d.fim_suffix_max_frac),
            ("data.snippet_frac", d.snippet_frac),
            ("data.tag_dropout_frac", d.tag_dropout_frac),
            ("data.expert_dropout_frac", d.expert_dropout_frac),
            ("schedule.decay_frac", s.decay_frac),
            ("schedule.final_lr_frac", s.final_lr_frac),
        ] {
            ensure!((0.0..=1.0).contains(&value), "{name} = {value}: expected 0 to 1");
        }
        for (name, value) in [
            ("optimizer.momentum", o.momentum),
            ("optimizer.beta1", o.beta1),
            ("optimizer.beta2", o.beta2),
            ("spawn_mask", self.spawn_mask),
        ] {
            ensure!((0.0..1.0).contains(&value), "{name} = {value}: expected 0 or more and below 1");
        }
        ensure!(self.max_hours >= 0.0, "max_hours = {}: expected 0 (no limit) or more", self.max_hours);
        if self.max_hours > 0.0 && s.kind != ScheduleKind::Wsd {
            bail!("max_hours = {}: expected schedule.kind = \"wsd\", whose end can be moved", self.max_hours);
        }
        Ok(())
    }
}

impl RunConfig {
    /// Activations are computed again by the tape alone.
    fn validate_checkpointing(&self) -> Result<()> {
        ensure!(
            !self.checkpoint_activations || self.parallel.mode != Mode::Expert,
            "checkpoint_activations = true: expected another parallel.mode than \"expert\", whose layers are not on the tape"
        );
        Ok(())
    }
}

/// Puts the path first in the message of the TOML reader, and adds a suggestion where a key or variant is unknown.
fn explain(message: &str) -> String {
    let (message, path) = message.trim_end().split_once("\nin `").unwrap_or((message.trim_end(), ""));
    let path = path.trim_end_matches('`');
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = message.contains("unknown field") || message.contains("unknown variant");
    let hint = match names.split_first() {
        Some((got, valid)) if unknown => did_you_mean(got, valid),
        _ => String::new(),
    };
    if path.is_empty() { format!("{message}{hint}") } else { format!("{path}: {message}{hint}") }
}

fn did_you_mean(got: &str, valid: &[&str]) -> String {
    let nearest = valid.iter().map(|name| (edit_distance(got, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= 1 + got.len() / 3 => format!(" (did you mean `{name}`?)"),
        _ => String::new(),
    }
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
impl OptimizerConfig {
    pub(crate) fn for_tests() -> OptimizerConfig {
        let kind = OptimizerKind::Adamw;
        OptimizerConfig { kind, momentum: 0.95, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip_norm: 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smoke() -> Table {
        let mut table = parse(preset("smoke").unwrap(), "smoke").unwrap();
        set(&mut table, "model.vocab_size=512").unwrap();
        table
    }

    fn error_of(assignment: &str) -> String {
        let mut table = smoke();
        set(&mut table, assignment)
            .map_or_else(|e| format!("{e:#}"), |()| format!("{:#}", resolve(&table, "smoke").unwrap_err()))
    }

    #[test]
    fn every_preset_is_a_complete_run_and_survives_toml() {
        for (name, text) in PRESETS {
            let mut table = parse(text, name).unwrap();
            table["model"].as_table_mut().unwrap().remove("moe");
            let config = resolve(&table, name).unwrap();
            let again = resolve(&parse(&config.to_toml().unwrap(), name).unwrap(), name).unwrap();
            assert_eq!(config, again, "{name}");
            assert_eq!(config.data.batch_tokens % config.data.sequence_tokens, 0);
        }
    }

    #[test]
    fn set_is_typed() {
        let mut table = smoke();
        for assignment in ["schedule.lr=1e-4", "data.shards=some/folder", "data.languages=[\"lua\"]", "n_steps=7"] {
            set(&mut table, assignment).unwrap();
        }
        let config = resolve(&table, "smoke").unwrap();
        assert_eq!((config.schedule.lr, config.n_steps), (1e-4, 7));
        assert_eq!((config.data.shards.as_str(), config.data.languages), ("some/folder", vec!["lua".to_owned()]));
    }

    #[test]
    fn wrong_keys_and_values_are_named_with_what_was_expected() {
        let unknown = error_of("model.d_modle=3");
        for part in ["smoke: model: unknown field `d_modle`", "`n_layers`", "did you mean `d_model`?"] {
            assert!(unknown.contains(part), "{unknown}");
        }
        assert!(error_of("optimiser.beta1=0.5").contains("did you mean `optimizer`?"));
        assert!(error_of("model.d_model=abc").contains("model.d_model: invalid type: string \"abc\", expected usize"));
        assert!(error_of("schedule.kind=wds").contains("did you mean `wsd`?"));
        assert!(error_of("model.n_heads=3").contains("n_kv_heads"));
        assert!(error_of("data.batch_tokens=100").contains("a multiple of data.sequence_tokens"));
        assert!(error_of("data.fim_frac=1.5").contains("expected 0 to 1"));
        assert!(error_of("data.snippet_frac=-0.1").contains("data.snippet_frac = -0.1: expected 0 to 1"));
        assert!(error_of("n_steps").contains("expected path=value"));
        let mut table = smoke();
        for assignment in ["parallel.mode=expert", "checkpoint_activations=true"] {
            set(&mut table, assignment).unwrap();
        }
        let error = format!("{:#}", resolve(&table, "smoke").unwrap_err());
        assert!(error.contains("expected another parallel.mode"), "{error}");
        assert!(error_of("seed.x=1").contains("seed is a value"));
        assert!(preset("smok").unwrap_err().to_string().contains("did you mean `smoke`?"));
    }

    #[test]
    fn optimizer_values_that_make_no_run_are_named() {
        for name in ["momentum", "beta1", "beta2"] {
            let message = error_of(&format!("optimizer.{name}=1.0"));
            assert!(message.contains(&format!("optimizer.{name} = 1: expected 0 or more and below 1")), "{message}");
        }
        for assignment in ["eps=0.0", "clip_norm=-1.0", "weight_decay=-1.0"] {
            let (name, value) = assignment.trim_end_matches(".0").split_once('=').unwrap();
            let message = error_of(&format!("optimizer.{assignment}"));
            assert!(message.contains(&format!("optimizer.{name} = {value}: expected")), "{message}");
        }
        let message = error_of("data.language_temperature=0.0");
        assert!(message.contains("data.language_temperature = 0: expected"), "{message}");
    }

    #[test]
    fn weights_that_experts_share_are_not_masked_for_each() {
        let mut table = smoke();
        let mpo = r#"model.moe.expert_param={ kind = "mpo", width = [8, 8], model = [8, 8] }"#;
        set(&mut table, mpo).unwrap();
        for (path, field) in [("d_model", 64), ("moe.d_ff_expert", 64)] {
            set(&mut table, &format!("model.{path}={field}")).unwrap();
        }
        let run: RunConfig = resolve(&table, "smoke").unwrap();
        assert_eq!(run.model.moe.unwrap().expert_param.name(), "mpo");
        set(&mut table, "spawn_mask=0.5").unwrap();
        let error = format!("{:#}", resolve(&table, "smoke").unwrap_err());
        assert!(error.contains("spawn_mask = 0.5 with model.moe.expert_param = mpo: expected 0"), "{error}");
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        assert_eq!([edit_distance("kitten", "sitting"), edit_distance("", "ab"), edit_distance("a", "a")], [3, 2, 0]);
    }
}
