//! The suite `unseen`: languages that the model was never trained on, and, as a probe, those that it was, read with the experts of others.

use std::path::Path;

use anyhow::{Result, ensure};
use multicoder_model::Bundle;
use serde::{Deserialize, Serialize};

use super::{Common, print_model};
use crate::evaluate::ModelInfo;
use crate::evaluate::sample::{self, LanguageSample, SampleOptions};
use crate::evaluate::unseen::{self, Served};
use crate::report::table::{self, Cells};
use crate::report::{rows, unseen_page};
use crate::suites::mceval;

/// Text of a language, in bytes: it is read as often as the model has languages.
const BYTES_PER_LANGUAGE: usize = 20_000;
/// Stands in place of a language in a mean over languages.
const MEAN: &str = "mean";

/// What is measured on, and where results go.
pub(super) struct Options<'a> {
    pub(super) bench: &'a Path,
    pub(super) max_bytes_per_language: Option<usize>,
    /// Whether the network is told the language by its token, too.
    pub(super) tag: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Results<'a> {
    model: &'a ModelInfo,
    tag: bool,
    seed: u64,
    languages: &'a [String],
    served: &'a [Served],
}

/// A row of the CSV file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    model: String,
    checksum: String,
    tag: bool,
    language: String,
    n_bytes: u64,
    own: Option<f64>,
    nearest: Option<f64>,
    nearest_is: String,
    likeliest: f64,
    likeliest_is: String,
    none: f64,
    worst: f64,
    worst_is: String,
}

/// Measures `bundle`.
///
/// # Errors
/// What the user has to know, in one line.
pub(super) fn run(options: &Options<'_>, common: &Common, info: &ModelInfo, bundle: &Bundle) -> Result<()> {
    let samples = samples(options, common, &info.languages)?;
    let served = unseen::evaluate(&bundle.lm, &bundle.tokenizer, &samples, options.tag)?;
    let records: Vec<Record> = served.iter().map(|of| record(info, options.tag, of)).collect();
    print_model(info);
    println!("bits per byte of the second halves of files; seed {}\n", common.seed);
    print!("{}", table::plain(&cells(&records)));
    println!(
        "\nown: with the language's own expert; nearest: with that of the language that the server takes for it; likeliest: of each file, \
         with that of the language that\nits first half is likeliest of, itself apart; none: as of no language; worst: with the expert that \
         knows least of it."
    );
    if let Some(path) = &common.csv {
        rows::replace(path, &records, |old: &Record| old.model == info.name && old.tag == options.tag)?;
    }
    common.write_page(|| unseen_page::render(info, &served))?;
    let (languages, served) = (&info.languages, &served);
    common.write_json(&Results { model: info, tag: options.tag, seed: common.seed, languages, served })
}

/// Of languages that the model has, held-out packages; of those that it has not, McEval's programs.
fn samples(options: &Options<'_>, common: &Common, known: &[String]) -> Result<Vec<LanguageSample>> {
    let max_bytes_per_language = options.max_bytes_per_language.unwrap_or(BYTES_PER_LANGUAGE);
    let is_wanted = |name: &str| common.languages.is_empty() || common.languages.iter().any(|wanted| wanted == name);
    let mut samples = Vec::new();
    let programs = options.bench.join(mceval::NAME);
    if programs.is_dir() {
        samples = mceval::texts(&programs, max_bytes_per_language)?;
        samples.retain(|sample| !known.contains(&sample.language) && is_wanted(&sample.language));
    }
    if let Some(shards) = &common.shards {
        let draw = SampleOptions { languages: &[], max_bytes_per_language, n_lines: 0, seed: common.seed };
        let mut packages = sample::draw(shards, &common.split, &draw)?;
        packages.retain(|sample| is_wanted(&sample.language));
        samples.retain(|sample| packages.iter().all(|of| of.language != sample.language));
        samples.extend(packages);
    }
    ensure!(
        !samples.is_empty(),
        "expected text: --bench DIR with a folder `{}` that has languages beyond the model's, or --shards DIR",
        mceval::NAME
    );
    Ok(samples)
}

fn record(info: &ModelInfo, tag: bool, of: &Served) -> Record {
    let rounded = |bits: f64| (1e4 * bits).round() / 1e4;
    let (worst_idx, worst) = of.worst(&info.languages);
    Record {
        model: info.name.clone(),
        checksum: info.checksum.clone(),
        tag,
        language: of.language.clone(),
        n_bytes: of.n_bytes,
        own: of.own.map(rounded),
        nearest: of.nearest.as_ref().map(|(_, bits)| rounded(*bits)),
        nearest_is: of.nearest.as_ref().map_or_else(String::new, |(name, _)| name.clone()),
        likeliest: rounded(of.likeliest),
        likeliest_is: of.chosen.clone(),
        none: rounded(of.none),
        worst: rounded(worst),
        worst_is: info.languages[worst_idx].clone(),
    }
}

fn cells(records: &[Record]) -> Cells {
    let heading = ["language", "kB", "own", "nearest", "", "likeliest", "", "none", "worst", ""];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    let figure = |value: Option<f64>| table::figure(value, 3);
    for of in records {
        let mut row = vec![of.language.clone(), format!("{:.0}", of.n_bytes as f64 / 1e3), figure(of.own)];
        row.extend([figure(of.nearest), of.nearest_is.clone(), figure(Some(of.likeliest)), of.likeliest_is.clone()]);
        row.extend([figure(Some(of.none)), figure(Some(of.worst)), of.worst_is.clone()]);
        cells.push(row);
    }
    // Those that the model has not and those that it has are not to be added up.
    for (name, has) in [("not in the model", false), ("in the model", true)] {
        let of: Vec<&Record> = records.iter().filter(|record| record.own.is_some() == has).collect();
        if of.len() > 1 {
            let mean = |value: fn(&Record) -> f64| of.iter().map(|record| value(record)).sum::<f64>() / of.len() as f64;
            let own = has.then(|| mean(|of| of.own.unwrap_or(f64::NAN)));
            let mut row = vec![format!("{MEAN}, {name}"), String::new(), figure(own), String::new(), String::new()];
            row.extend([figure(Some(mean(|of| of.likeliest))), String::new(), figure(Some(mean(|of| of.none)))]);
            row.extend([figure(Some(mean(|of| of.worst))), String::new()]);
            cells.push(row);
        }
    }
    cells
}
