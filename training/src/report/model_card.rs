//! The model card: what a packed model is, what it was trained on and under which licences, and how good it is. Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use multicoder_model::{BundleInfo, ModelConfig};

use super::loss_curve::RunCurves;
use super::table;
use crate::corpus::manifest::Split;
use crate::corpus::report::{PackageLine, Report};
use crate::evaluate::Evaluation;

/// What is known of the model; a section is left out when its source is absent.
#[derive(Debug)]
pub struct CardInputs<'a> {
    /// From the packed file.
    pub info: &'a BundleInfo,
    /// From the packed file.
    pub config: &'a ModelConfig,
    /// Name of the packed file.
    pub file_name: String,
    /// Its size, in bytes.
    pub file_bytes: u64,
    /// Text of a person, placed first.
    pub notes: Option<String>,
    /// Link to the loss curves, relative to the card.
    pub picture: Option<String>,
    /// Of the run.
    pub curves: Option<RunCurves>,
    /// Of `multicoder eval`.
    pub evaluation: Option<Evaluation>,
    /// Of `multicoder corpus build`.
    pub corpus: Option<Report>,
}

/// The card.
pub fn render(inputs: &CardInputs<'_>) -> String {
    let mut card = format!("# {}\n\n", inputs.info.name);
    if let Some(notes) = &inputs.notes {
        card += &format!("{}\n\n", notes.trim());
    }
    model_section(inputs, &mut card);
    if let Some(curves) = &inputs.curves {
        training_section(inputs, curves, &mut card);
    }
    if let Some(evaluation) = &inputs.evaluation {
        evaluation_section(inputs, evaluation, &mut card);
    }
    if let Some(report) = &inputs.corpus {
        data_section(report, &mut card);
    }
    card
}

fn model_section(inputs: &CardInputs<'_>, card: &mut String) {
    let (info, config) = (inputs.info, inputs.config);
    let experts = config.moe.as_ref().map_or("no experts".to_owned(), |moe| {
        let (n_layers, name) = (config.n_moe_layers(), moe.router.name());
        let shared =
            if moe.d_ff_shared > 0 { format!(" and a shared one of width {}", moe.d_ff_shared) } else { String::new() };
        format!("{} experts of width {}{shared} in {n_layers} layers, router `{name}`", moe.n_experts, moe.d_ff_expert)
    });
    let rows = [
        ("file", format!("`{}`, {} bytes, XXH3 `{}`", inputs.file_name, inputs.file_bytes, info.checksum)),
        (
            "parameters",
            format!(
                "{} ({} active per token), stored as {}",
                info.n_parameters, info.n_active_parameters, info.quantization
            ),
        ),
        (
            "shape",
            format!(
                "{} layers, width {}, {} heads ({} key/value), feed-forward {}",
                config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.d_ff
            ),
        ),
        ("experts", experts),
        ("tokens", format!("byte-level BPE, {} entries; context {}", config.vocab_size, config.context_tokens)),
        ("languages", config.languages.join(", ")),
        ("golden pairs", format!("{}, checked when the file was packed", info.goldens.len())),
    ];
    *card += "| | |\n|---|---|\n";
    for (name, value) in rows {
        let _ = writeln!(card, "| {name} | {value} |");
    }
    card.push('\n');
}

fn training_section(inputs: &CardInputs<'_>, curves: &RunCurves, card: &mut String) {
    let (n_tokens, n_steps, hours) = (curves.n_tokens as f64 / 1e6, curves.n_steps, curves.elapsed_s / 3600.0);
    let rate = curves.n_tokens as f64 / curves.elapsed_s.max(1e-9);
    let _ = writeln!(
        card,
        "## Training\n\n{n_tokens:.1} million tokens in {n_steps} steps; {hours:.2} hours of training time, {rate:.0} tokens per second."
    );
    if let Some(last) = curves.valid.get("loss").and_then(|points| points.last()) {
        let _ = writeln!(card, "Last validation loss, macro average over languages: {:.4} nats per token.", last.1);
    }
    if let Some(picture) = &inputs.picture {
        let _ = writeln!(card, "\n![loss over tokens seen]({picture})");
    }
    card.push('\n');
}

fn evaluation_section(inputs: &CardInputs<'_>, evaluation: &Evaluation, card: &mut String) {
    let options = &evaluation.options;
    let _ = writeln!(
        card,
        "## Evaluation\n\nSplit `{}`: whole packages that training never saw, near-duplicates across the split removed. Up to {} bytes and \
         {} lines a language, seed {}; the same bytes and carets for both systems. Less is better in bits per byte; the others are percent \
         or 0 to 100. Line completion is greedy from before a random token of a line to the line's end; exact match and edit similarity \
         follow CodeXGLUE.\n",
        options.split, options.max_bytes_per_language, options.n_lines, options.seed
    );
    if let Some(ngram) = &evaluation.ngram {
        let (order, n_tokens) = (ngram.order, ngram.n_train_tokens as f64 / 1e6);
        let _ = writeln!(card, "n-gram: order {order}, {n_tokens:.1} million training tokens; {}.\n", ngram.method);
    }
    if evaluation.model.as_ref().is_some_and(|model| !model.copy && inputs.config.copy.is_some()) {
        card.push_str("Measured without the copy component that this file has.\n\n");
    }
    if let Some(measured) = evaluation.model.as_ref().filter(|model| model.checksum != inputs.info.checksum) {
        let _ =
            writeln!(card, "Measured on `{}` (checksum `{}`), not on this file.\n", measured.name, measured.checksum);
    }
    *card += &table::markdown(&table::evaluation_cells(evaluation));
    card.push('\n');
    for note in table::evaluation_notes(evaluation) {
        let _ = writeln!(card, "- {note}");
    }
    card.push('\n');
}

fn data_section(report: &Report, card: &mut String) {
    let _ =
        writeln!(card, "## Data\n\nPackages of public registries, by language, in megabytes of source text kept.\n");
    let mb = |bytes: u64| format!("{:.2}", bytes as f64 / 1e6);
    let mut cells = vec![["language", "train", "valid", "test", "packages trained on"].map(str::to_owned).to_vec()];
    let mut totals = [0u64; 3];
    for (language, splits) in &report.kept {
        let bytes =
            [Split::Train, Split::Valid, Split::Test].map(|split| splits.get(&split).map_or(0, |count| count.bytes));
        totals.iter_mut().zip(bytes).for_each(|(total, bytes)| *total += bytes);
        let n_packages = report.packages.values().filter(|line| trained_bytes(line, language) > 0).count();
        let mut row = vec![language.clone()];
        row.extend(bytes.map(mb));
        row.push(n_packages.to_string());
        cells.push(row);
    }
    let mut total = vec!["all".to_owned()];
    total.extend(totals.map(mb));
    total.push(report.packages.values().filter(|line| line.kept.contains_key(&Split::Train)).count().to_string());
    cells.push(total);
    *card += &table::markdown(&cells);
    *card += "\n### Licences of the training text\n\n";
    *card += &licences(report);
    *card += "\n### Packages\n\nKilobytes trained on; packages with none are the valid and test splits.\n\n";
    packages(report, card);
}

fn trained_bytes(line: &PackageLine, language: &str) -> u64 {
    line.kept.get(&Split::Train).and_then(|languages| languages.get(language)).map_or(0, |count| count.bytes)
}

fn licences(report: &Report) -> String {
    let mut by_licence: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for line in report.packages.values() {
        let bytes: u64 = line.kept.get(&Split::Train).into_iter().flatten().map(|(_, count)| count.bytes).sum();
        let entry = by_licence.entry(&line.licence).or_default();
        entry.0 += usize::from(bytes > 0);
        entry.1 += bytes;
    }
    let mut rows: Vec<_> = by_licence.into_iter().filter(|(_, (n_packages, _))| *n_packages > 0).collect();
    rows.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    let mut cells = vec![["licence", "packages", "MB"].map(str::to_owned).to_vec()];
    for (licence, (n_packages, bytes)) in rows {
        cells.push(vec![licence.to_owned(), n_packages.to_string(), format!("{:.2}", bytes as f64 / 1e6)]);
    }
    table::markdown(&cells)
}

fn packages(report: &Report, card: &mut String) {
    let kb = |languages: Option<&BTreeMap<String, crate::corpus::stage::Count>>| {
        let bytes: u64 = languages.into_iter().flatten().map(|(_, count)| count.bytes).sum();
        bytes.div_ceil(1000)
    };
    let _ = writeln!(card, "| package | from | licence | languages | train kB | valid kB | test kB |");
    let _ = writeln!(card, "|---|---|---|---|---:|---:|---:|");
    for line in report.packages.values() {
        let mut languages: Vec<&str> = line.kept.values().flatten().map(|(language, _)| language.as_str()).collect();
        languages.sort_unstable();
        languages.dedup();
        let [train, valid, test] = [Split::Train, Split::Valid, Split::Test].map(|split| kb(line.kept.get(&split)));
        let (package, source, licence, languages) = (&line.package, &line.source, &line.licence, languages.join(" "));
        let _ = writeln!(card, "| {package} | {source} | {licence} | {languages} | {train} | {valid} | {test} |");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::stage::Count;

    fn report() -> Report {
        let count = |bytes| Count { files: 1, bytes };
        let line = |package: &str, licence: &str, split, bytes| PackageLine {
            package: package.to_owned(),
            source: "pypi".to_owned(),
            licence: licence.to_owned(),
            kept: BTreeMap::from([(split, BTreeMap::from([("python".to_owned(), count(bytes))]))]),
        };
        let mut report = Report::default();
        report.kept.insert(
            "python".to_owned(),
            BTreeMap::from([(Split::Train, count(3_000_000)), (Split::Test, count(500_000))]),
        );
        report.packages.insert("flask".to_owned(), line("flask-3.1", "BSD-3-Clause", Split::Train, 3_000_000));
        report.packages.insert("attrs".to_owned(), line("attrs-25.1", "MIT", Split::Test, 500_000));
        report
    }

    #[test]
    fn data_section_counts_by_language_licence_and_package() {
        let mut card = String::new();
        data_section(&report(), &mut card);
        assert!(card.contains("| python   |  3.00 |  0.00 | 0.50 |"), "{card}");
        assert!(card.contains("| BSD-3-Clause |") && !card.contains("| MIT          |"), "{card}");
        assert!(card.contains("| attrs-25.1 | pypi | MIT | python | 0 | 0 | 500 |"), "{card}");
    }
}
