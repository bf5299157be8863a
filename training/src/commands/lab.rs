//! `multicoder lab`: a study's trials, one after the other, and its table.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::device::DeviceKind;
use crate::interrupt;
use crate::lab::record::{self, TrialRow};
use crate::lab::scaling::{self, Point};
use crate::lab::study::{STUDIES, Study, Variant};
use crate::lab::summary::{self, Spread, VariantSummary};
use crate::lab::trial::{Lab, Pictured};
use crate::report::table::{self, Cells};
use crate::report::{rows, study_page};

/// Arguments of `multicoder lab`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of a study or a TOML file that describes one; `list` names those that come with the program.
    study: String,
    /// Runs of each variant, with seeds 1, 2, ... [default: what the study says].
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// How much is trained and measured.
    #[arg(long, value_name = "NAME", default_value = "small")]
    budget: String,
    /// Only these variants.
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Corpus with train/ and valid/ shards (multicoder corpus build).
    #[arg(long, value_name = "DIR")]
    shards: Option<PathBuf>,
    /// tokenizer.json (multicoder tokenizer train).
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Where models are trained; they are measured on the CPU.
    #[arg(long)]
    device: Option<DeviceKind>,
    /// Folder of the trials; what is there is not done again.
    #[arg(long, value_name = "DIR", default_value = "lab")]
    out: PathBuf,
    /// CSV file of all results; a trial that stands in it, for the same data and configuration, is not run [default: OUT/trials.csv].
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Run nothing: make the table of what is recorded.
    #[arg(long)]
    report: bool,
    /// Write the table as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page: the table, curves of the first seed, and the experts' loads by language and layer [default: OUT/STUDY.html].
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the table as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Runs `multicoder lab`.
///
/// # Errors
/// What the user has to know, in one line.
pub fn run(args: Args) -> Result<()> {
    if args.study == "list" {
        return list();
    }
    let study = Study::open(&args.study)?;
    study.budget(&args.budget)?;
    let name = Path::new(&args.study).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let unknown = args.only.iter().find(|only| !study.variant.iter().any(|variant| variant.name == **only));
    ensure!(unknown.is_none(), "--only: the study has no variant `{}`", unknown.map_or("", |name| name));
    let record = args.record.clone().unwrap_or_else(|| args.out.join("trials.csv"));
    let mut done = Done::default();
    if !args.report {
        interrupt::install();
        done = trials(&args, &name, &study, &record)?;
    }
    // Rows of another corpus or configuration are no seeds of this one.
    let is_ours = |row: &TrialRow| {
        row.study == name && row.budget == args.budget && (args.report || done.identities.contains(&row.identity))
    };
    let rows: Vec<TrialRow> = rows::read(&record)?.into_iter().filter(is_ours).collect();
    let mut corpora: Vec<&str> = rows.iter().map(|row| row.data.as_str()).collect();
    corpora.sort_unstable();
    corpora.dedup();
    ensure!(
        corpora.len() < 2,
        "{}: trials of {} corpora or tokenizers, which cannot be compared: remove those of all but one",
        record.display(),
        corpora.len()
    );
    ensure!(!rows.is_empty(), "{}: no trial of {name} with budget {}", record.display(), args.budget);
    report(&args, (&name, &study), &rows, &done.pictured)
}

/// What a command ran or found recorded.
#[derive(Default)]
struct Done {
    identities: Vec<String>,
    pictured: Vec<Pictured>,
}

fn list() -> Result<()> {
    for (name, _) in STUDIES {
        let study = Study::open(name)?;
        println!("{name}: {}", study.about);
        study.variant.iter().for_each(|variant| println!("    {}: {}", variant.name, variant.about));
    }
    Ok(())
}

/// Seed by seed, so that a study that is stopped early has compared all variants.
fn trials(args: &Args, name: &str, study: &Study, record: &Path) -> Result<Done> {
    let (Some(shards), Some(tokenizer)) = (&args.shards, &args.tokenizer) else {
        anyhow::bail!("--shards DIR and --tokenizer FILE: expected both");
    };
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let mut lab = Lab::open((name, study), &args.budget, (shards, tokenizer), &args.out)?;
    lab.device = args.device;
    let wanted = |variant: &&Variant| args.only.is_empty() || args.only.contains(&variant.name);
    let variants: Vec<&Variant> = study.variant.iter().filter(wanted).collect();
    let n_seeds = args.seeds.unwrap_or(study.seeds);
    let n_trials = n_seeds as usize * variants.len();
    let mut done = Done::default();
    for (at, (seed, variant)) in (1..=n_seeds).flat_map(|seed| variants.iter().map(move |v| (seed, *v))).enumerate() {
        let trial = lab.trial(variant, seed)?;
        done.identities.push(trial.identity.clone());
        let known: Vec<TrialRow> = rows::read(record)?;
        let is_same =
            |row: &TrialRow| row.is_of(name, &args.budget, &variant.name, seed) && row.identity == trial.identity;
        eprint!("trial {} of {n_trials}: {}, seed {seed}", at + 1, variant.name);
        if known.iter().any(is_same) {
            eprintln!(", recorded");
            continue;
        }
        let mut rows = record::same_trial(&known, &trial.identity);
        match rows.first() {
            Some(row) => eprintln!(", recorded as {} of {}", row.variant, row.study),
            None => {
                eprintln!();
                rows = lab.run(&trial)?;
            }
        }
        for row in &mut rows {
            (row.study, row.budget) = (name.to_owned(), args.budget.clone());
            row.variant.clone_from(&variant.name);
        }
        record::add(record, &rows)?;
    }
    let of_first_seed = |variant: &&Variant| lab.pictured(&lab.trial(variant, 1)?);
    let pictured: Vec<Option<Pictured>> = variants.iter().map(of_first_seed).collect::<Result<_>>()?;
    done.pictured.extend(pictured.into_iter().flatten());
    Ok(done)
}

fn report(args: &Args, (name, study): (&str, &Study), rows: &[TrialRow], pictured: &[Pictured]) -> Result<()> {
    let flops = |name: &str| {
        let variant = study.variant.iter().find(|variant| variant.name == name);
        variant.and_then(|variant| study.flops_per_token(variant, &args.budget).ok()).unwrap_or(f64::NAN)
    };
    let summaries = summary::summarise(study, rows, flops);
    let cells = cells(study, &summaries);
    println!("{}\n", study.about);
    print!("{}", table::plain(&cells));
    println!(
        "\nbits per byte: mean (standard deviation over seeds). Bits and infill EM against {}: differences of macro averages under two standard deviations are none.",
        study.baseline
    );
    let points: Vec<Point> = summaries.iter().filter(|_| study.is_scaling).map(Point::of).collect();
    let best = scaling::frontier(&points);
    match (scaling::laws(&best), best.last()) {
        (Some(laws), Some(last)) => println!("{}", scaling::forecast(&laws, last)),
        (None, Some(_)) => println!("{} variants that no cheaper one beats: too few for a law", best.len()),
        _ => {}
    }
    if let Some(path) = &args.markdown {
        fs::write(path, table::markdown(&cells)).with_context(|| path.display().to_string())?;
    }
    let default_page = (!args.report).then(|| args.out.join(format!("{name}.html")));
    if let Some(path) = args.html.clone().or(default_page) {
        fs::write(&path, study_page::render(name, study, &cells, pictured, &points))
            .with_context(|| path.display().to_string())?;
        eprintln!("{} shows it with curves and loads", path.display());
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&summaries)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn cells(study: &Study, summaries: &[VariantSummary]) -> Cells {
    let figure = |spread: Spread| format!("{:.3} ({:.3})", spread.mean, spread.deviation);
    let mut heading = vec!["variant".to_owned()];
    heading.extend(study.languages.iter().cloned());
    let rest = [
        "average",
        "low-resource",
        "worst",
        "line EM",
        "infill EM",
        "bits",
        "infill",
        "M parameters",
        "MFLOPs/token",
        "M tokens",
        "seconds",
        "seeds",
    ];
    heading.extend(rest.map(str::to_owned));
    let mut cells = vec![heading];
    for of in summaries {
        let mut row = vec![of.name.clone()];
        row.extend(of.languages.iter().map(|spread| figure(*spread)));
        row.push(figure(of.macro_average));
        row.push(of.low_resource.map_or("-".to_owned(), figure));
        row.push(figure(of.worst));
        let percent = |spread: Spread| format!("{:.1} ({:.1})", spread.mean, spread.deviation);
        row.extend([of.line_exact_match, of.infill_exact_match].map(|em| em.map_or("-".to_owned(), percent)));
        row.extend([of.verdict, of.infill_verdict].map(|verdict| verdict.name().to_owned()));
        row.push(format!("{:.2}", of.n_parameters as f64 / 1e6));
        row.push(format!("{:.2}", of.flops_per_token / 1e6));
        row.push(format!("{:.1}", of.n_train_tokens as f64 / 1e6));
        row.push(format!("{:.0}", of.train_s));
        row.push(of.macro_average.n.to_string());
        cells.push(row);
    }
    cells
}
