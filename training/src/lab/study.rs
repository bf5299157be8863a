//! What a study is, and what each of its trials trains.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use toml::{Table, Value};

use crate::config::{self, RunConfig};

/// Studies that come with the program, by name.
pub const STUDIES: [(&str, &str); 8] = [
    ("adapters", include_str!("../../studies/adapters.toml")),
    ("experiment", include_str!("../../studies/experiment.toml")),
    ("experts", include_str!("../../studies/experts.toml")),
    ("modifiers", include_str!("../../studies/modifiers.toml")),
    ("recipe", include_str!("../../studies/recipe.toml")),
    ("routers", include_str!("../../studies/routers.toml")),
    ("scaling", include_str!("../../studies/scaling.toml")),
    ("signals", include_str!("../../studies/signals.toml")),
];

/// How much the FLOPs of a token may differ between variants.
const MAX_FLOPS_RATIO: f64 = 1.03;

/// A comparison.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// The question, in a sentence.
    pub about: String,
    /// What every variant is a change of.
    pub preset: String,
    /// The variant that the others are compared with.
    pub baseline: String,
    /// Languages of the text, of which a corpus must have all.
    pub languages: Vec<String>,
    /// Those among them with little text, averaged apart.
    #[serde(default)]
    pub low_resource: Vec<String>,
    /// Whether the variants are one recipe at several amounts of compute, through which a law is laid.
    #[serde(default)]
    pub is_scaling: bool,
    /// Seeds where `--seeds` says nothing.
    #[serde(default = "default_seeds")]
    pub seeds: u64,
    /// Changes to the preset for all variants, as of `--set`.
    #[serde(default)]
    pub set: Vec<String>,
    /// By name (`small`, `full`): further changes, and what is measured.
    pub budget: BTreeMap<String, Budget>,
    /// In the order of the table.
    pub variant: Vec<Variant>,
}

/// How much is trained and measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// As of `--set`.
    pub set: Vec<String>,
    /// Text scored of a language, in bytes.
    pub eval_bytes: usize,
    /// Lines completed of a language.
    pub eval_lines: usize,
}

/// One of the things compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// In tables, and of folders.
    pub name: String,
    /// What it is, in a sentence.
    pub about: String,
    /// Sections and values of the preset that it does not have, by path.
    #[serde(default)]
    pub without: Vec<String>,
    /// As of `--set`.
    #[serde(default)]
    pub set: Vec<String>,
    /// Further arguments of `multicoder train`, in which `{name}` stands for the run of the variant of that name with the same seed: one
    /// that comes before.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// A model for each language, each on the share of the steps that its language has in the others.
    #[serde(default)]
    pub one_language_each: bool,
    /// Whether it is told the language by a token when it is measured; not where it was trained without.
    #[serde(default = "yes")]
    pub tag: bool,
    /// Why it may have other FLOPs or tokens than the others.
    pub unequal: Option<String>,
}

fn default_seeds() -> u64 {
    3
}

fn yes() -> bool {
    true
}

impl Variant {
    /// The variants whose runs its arguments name.
    pub fn runs_named(&self) -> impl Iterator<Item = &str> {
        self.arguments.iter().filter_map(|argument| Some(run_named(argument)?.1))
    }
}

/// What stands before the variant whose run an argument names, the variant, and the rest.
pub fn run_named(argument: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = argument.split_once('{')?;
    let (name, after) = rest.split_once('}')?;
    // Other braces are those of TOML.
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    is_name.then_some((before, name, after))
}

/// One model of a trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The only language, where the variant has a model for each.
    pub language: Option<String>,
    /// What `multicoder train --config` reads.
    pub config: Table,
}

impl Study {
    /// The study of this name or in this file.
    ///
    /// # Errors
    /// A name that no study has and no file; a file that is no study.
    pub fn open(name: &str) -> Result<Study> {
        let builtin = STUDIES.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        let text = builtin.map_or_else(|| std::fs::read_to_string(name), Ok).with_context(|| {
            let known = STUDIES.map(|(known, _)| known).join(", ");
            format!("{name}: expected the name of a study ({known}) or a file")
        })?;
        Study::parse(&text).with_context(|| format!("study {name}"))
    }

    /// Reads and checks a study.
    ///
    /// # Errors
    /// The first thing in it that makes no comparison.
    pub fn parse(text: &str) -> Result<Study> {
        let mut table: Table = text.parse().map_err(|error| anyhow!("{error}"))?;
        while let Some(like) = table.remove("like") {
            let base =
                STUDIES.iter().find(|(name, _)| like.as_str() == Some(name)).map(|(_, text)| text.parse::<Table>());
            let mut base = base.with_context(|| format!("like = {like}: expected the name of a study"))??;
            base.remove("variant");
            base.into_iter().for_each(|(key, value)| {
                table.entry(key).or_insert(value);
            });
        }
        let study: Study = table.try_into().map_err(|error| anyhow!("{error}"))?;
        let mut names: Vec<&str> = study.variant.iter().map(|variant| variant.name.as_str()).collect();
        ensure!(names.contains(&study.baseline.as_str()), "baseline = {:?}: expected one of {names:?}", study.baseline);
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twice.is_none(), "variant: expected no name twice, got {:?}", twice.map_or("", |pair| pair[0]));
        ensure!(!study.languages.is_empty(), "languages: expected at least one");
        let unknown = study.low_resource.iter().find(|name| !study.languages.contains(name));
        ensure!(
            unknown.is_none(),
            "low_resource: expected some of languages, got {:?}",
            unknown.map_or("", |name| name)
        );
        for budget in study.budget.keys() {
            study.check_compute(budget)?;
        }
        for (at, variant) in study.variant.iter().enumerate() {
            let is_before =
                |name: &&str| study.variant[..at].iter().any(|other| other.name == *name && !other.one_language_each);
            let wrong = variant.runs_named().find(|name| !is_before(name));
            let expected = "a variant of one model that comes before";
            ensure!(wrong.is_none(), "variant {}: {{{}}}: expected {expected}", variant.name, wrong.unwrap_or(""));
        }
        Ok(study)
    }

    /// # Errors
    /// A budget that the study does not have.
    pub fn budget(&self, name: &str) -> Result<&Budget> {
        self.budget.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.budget.keys().map(String::as_str).collect();
            anyhow!("--budget {name}: expected one of {}", known.join(", "))
        })
    }

    /// What the trial of `variant` with `seed` trains. `share` says which part of the tokens a language has when all are trained together.
    ///
    /// # Errors
    /// Changes that do not fit the preset.
    pub fn models(
        &self,
        variant: &Variant,
        seed: u64,
        budget: &str,
        share: &dyn Fn(&str) -> f64,
    ) -> Result<Vec<Model>> {
        let config = self.config(variant, seed, budget)?;
        if !variant.one_language_each {
            return Ok(vec![Model { language: None, config }]);
        }
        let n_steps = config.get("n_steps").and_then(Value::as_integer).context("n_steps: expected a number")?;
        let of_language = |language: &String| {
            let mut config = config.clone();
            let steps = ((n_steps as f64 * share(language)).round() as i64).max(1);
            config.insert("n_steps".to_owned(), Value::Integer(steps));
            shorten_warmup(&mut config, steps as f64 / n_steps as f64);
            set_languages(&mut config, std::slice::from_ref(language));
            Model { language: Some(language.clone()), config }
        };
        Ok(self.languages.iter().map(of_language).collect())
    }

    /// The configuration of a variant that trains on all languages.
    fn config(&self, variant: &Variant, seed: u64, budget: &str) -> Result<Table> {
        let origin = format!("preset {}", self.preset);
        let mut config = config::parse(config::preset(&self.preset)?, &origin)?;
        let mut changes = self.set.iter().chain(&self.budget(budget)?.set);
        changes.try_for_each(|change| config::set(&mut config, change))?;
        for path in &variant.without {
            remove(&mut config, path).with_context(|| format!("variant {}: without {path}", variant.name))?;
        }
        let own = variant.set.iter().try_for_each(|change| config::set(&mut config, change));
        own.with_context(|| format!("variant {}", variant.name))?;
        config.insert("seed".to_owned(), Value::Integer(seed as i64));
        set_languages(&mut config, &self.languages);
        Ok(config)
    }

    /// FLOPs of a token of a variant, forward.
    ///
    /// # Errors
    /// Changes that do not fit the preset.
    pub fn flops_per_token(&self, variant: &Variant, budget: &str) -> Result<f64> {
        Ok(self.cost(variant, budget)?.0)
    }

    /// FLOPs of a token, forward, and tokens of the run.
    fn cost(&self, variant: &Variant, budget: &str) -> Result<(f64, f64)> {
        let config = self.config(variant, 1, budget)?;
        let config: RunConfig = config::resolve(&config, &format!("variant {}", variant.name))?;
        let flops = config.model.flops_per_token(config.data.sequence_tokens / 2) as f64;
        Ok((flops, config.data.batch_tokens as f64 * config.n_steps as f64))
    }

    /// Refuses a comparison of models of unlike cost, and checks every configuration on the way.
    fn check_compute(&self, budget: &str) -> Result<()> {
        let cost = |variant: &Variant| self.cost(variant, budget);
        let baseline = self.variant.iter().find(|variant| variant.name == self.baseline).map(cost).transpose()?;
        let Some(baseline) = baseline else { return Ok(()) };
        for variant in &self.variant {
            let (flops, tokens) = cost(variant)?;
            let (flops, tokens) = (flops / baseline.0, tokens / baseline.1);
            let is_equal = (1.0 / MAX_FLOPS_RATIO..=MAX_FLOPS_RATIO).contains(&flops) && tokens == 1.0;
            ensure!(
                is_equal || variant.unequal.is_some(),
                "variant {}: {flops:.2} times the FLOPs of a token and {tokens:.2} times the tokens of {}; expected as many of both, \
                 or a reason in `unequal`",
                variant.name,
                self.baseline
            );
        }
        Ok(())
    }
}

/// A shorter run warms up in the same part of it.
fn shorten_warmup(config: &mut Table, part: f64) {
    let schedule = config.get_mut("schedule").and_then(Value::as_table_mut);
    if let Some(Value::Integer(steps)) = schedule.and_then(|schedule| schedule.get_mut("warmup_steps")) {
        *steps = (*steps as f64 * part).ceil() as i64;
    }
}

fn set_languages(config: &mut Table, languages: &[String]) {
    let names = Value::Array(languages.iter().cloned().map(Value::String).collect());
    for section in ["data", "model"] {
        if let Some(section) = config.get_mut(section).and_then(Value::as_table_mut) {
            section.insert("languages".to_owned(), names.clone());
        }
    }
}

/// Removes what a path names.
fn remove(config: &mut Table, path: &str) -> Result<()> {
    let (parents, key) = path.rsplit_once('.').map_or((None, path), |(parents, key)| (Some(parents), key));
    let mut at = config;
    for part in parents.iter().flat_map(|parents| parents.split('.')) {
        at = at.get_mut(part).and_then(Value::as_table_mut).with_context(|| format!("{part}: no such section"))?;
    }
    at.remove(key).map(|_| ()).with_context(|| format!("{key}: no such key"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::lab) const TEXT: &str = r#"
about = "Whether experts by language help."
preset = "smoke"
baseline = "dense"
languages = ["lua", "python"]
low_resource = ["lua"]
set = ["model.vocab_size=512"]

[budget.small]
set = ["n_steps=20"]
eval_bytes = 1000
eval_lines = 0

[[variant]]
name = "dense"
about = "One network."
without = ["model.moe"]

[[variant]]
name = "each"
about = "A model a language."
without = ["model.moe"]
one_language_each = true

[[variant]]
name = "pl_shared"
about = "Half of the width shared, half chosen."
"#;

    #[test]
    fn a_study_takes_what_it_does_not_say_from_another() {
        let text = "like = \"routers\"\nabout = \"One.\"\nbaseline = \"token\"\n[[variant]]\nname = \"token\"\nabout = \"It.\"";
        let study = Study::parse(text).unwrap();
        let routers = Study::open("routers").unwrap();
        assert_eq!((study.languages, study.set, study.variant.len()), (routers.languages, routers.set, 1));
        let unknown = Study::parse(&text.replace("routers", "hammers")).unwrap_err().to_string();
        assert!(unknown.contains("like = \"hammers\": expected the name of a study"), "{unknown}");
        let early = format!("{text}\narguments = [\"--init-from\", \"{{dense}}\"]");
        let early = Study::parse(&early).unwrap_err().to_string();
        assert!(early.contains("variant token: {dense}: expected a variant of one model that comes before"), "{early}");
        let toml = format!("{text}\narguments = [\"--set\", \"data.curriculum={{ lua = 9 }}\"]");
        assert_eq!(Study::parse(&toml).unwrap().variant[0].runs_named().count(), 0);
        let nested = Study::parse(&text.replace("routers", "signals")).unwrap();
        assert_eq!(nested.languages, Study::open("routers").unwrap().languages);
    }

    #[test]
    fn trials_are_changes_of_the_preset() {
        let study = Study::parse(TEXT).unwrap();
        let share = |language: &str| if language == "lua" { 0.25 } else { 0.75 };
        let models = |name: &str| {
            let variant = study.variant.iter().find(|variant| variant.name == name).unwrap();
            study.models(variant, 7, "small", &share).unwrap()
        };
        let dense = &models("dense")[0].config;
        assert_eq!((dense["seed"].as_integer(), dense["n_steps"].as_integer()), (Some(7), Some(20)));
        assert!(dense["model"].get("moe").is_none() && models("pl_shared")[0].config["model"].get("moe").is_some());
        let each = models("each");
        let told: Vec<_> = each.iter().map(|of| (of.language.as_deref(), of.config["n_steps"].as_integer())).collect();
        assert_eq!(told, [(Some("lua"), Some(5)), (Some("python"), Some(15))]);
        let warmup = |table: &Table| table["schedule"]["warmup_steps"].as_integer();
        assert_eq!((warmup(&each[0].config), warmup(dense)), (Some(5), Some(20)));
        assert_eq!(each[0].config["data"]["languages"], Value::Array(vec!["lua".into()]));
    }

    #[test]
    fn what_makes_no_comparison_is_refused_with_its_name() {
        let refused = |from: &str, to: &str| format!("{:#}", Study::parse(&TEXT.replace(from, to)).unwrap_err());
        assert!(refused("baseline = \"dense\"", "baseline = \"dens\"").contains("\"dens\""));
        assert!(refused("name = \"each\"", "name = \"dense\"").contains("no name twice"));
        assert!(refused("low_resource = [\"lua\"]", "low_resource = [\"r\"]").contains("low_resource"));
        assert!(
            refused("without = [\"model.moe\"]", "without = [\"model.mo\"]")
                .contains("variant dense: without model.mo")
        );
        assert!(refused("n_steps=20", "n_stepz=20").contains("n_stepz"));
        let wide =
            refused("without = [\"model.moe\"]\none", "without = [\"model.moe\"]\nset = [\"model.d_ff=1024\"]\none");
        assert!(wide.contains("variant each") && wide.contains("times the FLOPs of a token"), "{wide}");
        assert!(Study::open("no-such-study").unwrap_err().to_string().contains("experiment"));
    }

    #[test]
    fn every_study_of_the_program_can_be_read() {
        for (name, _) in STUDIES {
            let study = Study::open(name).unwrap();
            let corpus: Table = include_str!("../../corpora/lab.toml").parse().unwrap();
            let missing = study.languages.iter().find(|language| corpus["language"].get(language.as_str()).is_none());
            assert_eq!(missing, None, "{name}: a language that lab.toml does not have");
            assert!(study.budget.contains_key("small"), "{name}");
        }
    }
}
