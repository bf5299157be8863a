//! What a build kept and what it dropped, by language, split, package and reason: for the terminal and as `report.json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::filter::Drop;
use super::input::{Input, Inputs};
use super::manifest::Split;
use super::stage::{Count, Drops, Staged};
use super::{Error, Result, write_whole};

/// Name of the report in the folder of shards.
pub const REPORT_NAME: &str = "report.json";

/// A package that is in the corpus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PackageLine {
    /// Name and version.
    pub package: String,
    /// Its client.
    pub source: String,
    /// SPDX expression.
    pub licence: String,
    /// By split, then language.
    pub kept: BTreeMap<Split, BTreeMap<String, Count>>,
}

/// A whole report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// By language, then split.
    pub kept: BTreeMap<String, BTreeMap<Split, Count>>,
    /// By language, then reason.
    pub dropped: Drops,
    /// By input.
    pub packages: BTreeMap<String, PackageLine>,
    /// Packages of the manifest that were not fetched.
    pub missing: Vec<String>,
    /// Packages left out for their licence, and what it is.
    pub forbidden: Vec<(String, String)>,
    /// Files in which addresses or keys were masked.
    pub n_masked: u64,
    /// Files in no language that is wanted.
    #[serde(default)]
    pub n_other: u64,
}

impl Report {
    /// A report that knows what the stages dropped.
    pub fn new(inputs: &Inputs, staged: &[Staged]) -> Self {
        let mut report =
            Self { missing: inputs.missing.clone(), forbidden: inputs.forbidden.clone(), ..Self::default() };
        for staged in staged {
            report.n_masked += staged.n_masked;
            report.n_other += staged.n_other;
            for (language, reasons) in &staged.drops {
                for (reason, count) in reasons {
                    report.dropped.entry(language.clone()).or_default().entry(*reason).or_default().add_all(*count);
                }
            }
        }
        report
    }

    /// Counts a file that is in the corpus.
    pub fn add_kept(&mut self, input: &Input, split: Split, language: &str, bytes: u64) {
        self.kept.entry(language.to_owned()).or_default().entry(split).or_default().add(bytes);
        let line = self.packages.entry(input.key.clone()).or_insert_with(|| PackageLine {
            package: input.package.clone(),
            source: input.source.clone(),
            licence: input.licence.clone(),
            kept: BTreeMap::new(),
        });
        line.kept.entry(split).or_default().entry(language.to_owned()).or_default().add(bytes);
    }

    /// Counts a file that was dropped after staging.
    pub fn add_drop(&mut self, language: &str, reason: Drop, bytes: u64) {
        self.dropped.entry(language.to_owned()).or_default().entry(reason).or_default().add(bytes);
    }

    /// Writes `dir/report.json`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(REPORT_NAME);
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::format(&path, e.to_string()))?;
        write_whole(&path, &json)
    }

    /// Reads `dir/report.json`.
    ///
    /// # Errors
    /// No such file, or not a report.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(REPORT_NAME);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::format(&path, e.to_string()))
    }

    /// Training bytes over all languages.
    pub fn train_bytes(&self) -> u64 {
        self.kept.values().filter_map(|splits| splits.get(&Split::Train)).map(|count| count.bytes).sum()
    }

    /// Splits without text, which training or evaluation will miss.
    pub fn empty_splits(&self) -> Vec<Split> {
        let has = |split: &Split| self.kept.values().any(|splits| splits.contains_key(split));
        Split::ALL.into_iter().filter(|split| !has(split)).collect()
    }

    /// What became of everything, where nothing is kept.
    pub fn why_nothing_is_left(&self) -> String {
        let reasons = self.by_reason().into_iter().map(|(reason, count)| format!("{} {}", count.files, reason.name()));
        let languages = (self.n_other > 0).then(|| format!("{} in other languages or none", self.n_other));
        let forbidden = self.forbidden.iter().map(|(package, licence)| format!("{package} under {licence:?}"));
        let all: Vec<String> = reasons.chain(languages).chain(forbidden).collect();
        match all.is_empty() {
            true => {
                "no file is left: there were none (of a git repository, the tracked files of a checkout)".to_owned()
            }
            false => format!("no file is left: {}", all.join(", ")),
        }
    }

    /// Everything that was dropped, by reason.
    fn by_reason(&self) -> BTreeMap<Drop, Count> {
        let mut by_reason: BTreeMap<Drop, Count> = BTreeMap::new();
        for (reason, count) in self.dropped.values().flatten() {
            by_reason.entry(*reason).or_default().add_all(*count);
        }
        by_reason
    }

    /// The tables for the terminal.
    pub fn table(&self) -> String {
        let mut out = String::new();
        self.kept_table(&mut out);
        self.dropped_table(&mut out);
        for (package, licence) in &self.forbidden {
            let licence = if licence.is_empty() { "none recognised" } else { licence };
            let _ = writeln!(out, "left out for its licence: {package} ({licence})");
        }
        if !self.missing.is_empty() {
            let _ = writeln!(out, "not fetched: {}", self.missing.join(" "));
        }
        let _ = writeln!(
            out,
            "\nfiles in other languages or none: {}; with masked addresses or keys: {}",
            self.n_other, self.n_masked
        );
        out
    }

    fn kept_table(&self, out: &mut String) {
        let _ = writeln!(out, "{:12} {:>8} {:>9} {:>9} {:>9}", "language", "files", "train MB", "valid MB", "test MB");
        let mut totals: BTreeMap<Split, Count> = BTreeMap::new();
        let mut line = |name: &str, splits: &BTreeMap<Split, Count>| {
            let mb = |split| splits.get(&split).map_or(0.0, |c| c.bytes as f64 / 1e6);
            let files: u64 = splits.values().map(|c| c.files).sum();
            let (train, valid, test) = (mb(Split::Train), mb(Split::Valid), mb(Split::Test));
            let _ = writeln!(out, "{name:12} {files:>8} {train:>9.2} {valid:>9.2} {test:>9.2}");
        };
        for (language, splits) in &self.kept {
            line(language, splits);
            splits.iter().for_each(|(split, count)| totals.entry(*split).or_default().add_all(*count));
        }
        line("all", &totals);
    }

    fn dropped_table(&self, out: &mut String) {
        let _ = writeln!(out, "\n{:20} {:>8} {:>9}", "dropped because", "files", "MB");
        for (reason, count) in self.by_reason() {
            let (name, megabytes) = (reason.name(), count.bytes as f64 / 1e6);
            let _ = writeln!(out, "{name:20} {:>8} {megabytes:>9.2}", count.files);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_corpus_says_why_it_is_empty() {
        let mut report = Report { n_other: 3, ..Report::default() };
        report.add_drop("python", Drop::TooShort, 10);
        report.add_drop("lua", Drop::TooShort, 10);
        report.add_drop("lua", Drop::Licence, 10);
        report.forbidden.push(("npm/x".to_owned(), "GPL-3.0".to_owned()));
        let why = report.why_nothing_is_left();
        for part in ["2 too short", "1 licence", "3 in other languages", "npm/x under \"GPL-3.0\""] {
            assert!(why.contains(part), "{why}");
        }
        assert!(Report::default().why_nothing_is_left().contains("there were none"));
    }
}
