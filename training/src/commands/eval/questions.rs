//! The suites of questions: a model's answers, scored by setting and language, beside what was measured before.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use multicoder_model::Bundle;
use serde::Serialize;

use super::{Common, Switch, print_model};
use crate::evaluate::ModelInfo;
use crate::report::table::{self, Cells};
use crate::report::{rows, suite_page};
use crate::suites::answer::{Answer, Answerers};
use crate::suites::calibrate::{self, COVERAGES, Calibration};
use crate::suites::check::Checker;
use crate::suites::codexglue::TokenAccuracy;
use crate::suites::question::Question;
use crate::suites::record::{self, Record};
use crate::suites::run::{Run, run as ask, run_together as ask_together};
use crate::suites::score::{self, Row, Score, TextScores};
use crate::suites::{Draw, Suite};

/// Arguments of these suites alone.
#[derive(clap::Args)]
#[command(next_help_heading = "Suites of questions")]
pub(super) struct Args {
    /// Folder of the benchmarks, each in a folder of its name.
    #[arg(long, value_name = "DIR", env = "MULTICODER_BENCH", default_value = "bench")]
    pub(super) bench: PathBuf,
    /// At most this many questions of each language in each setting, drawn by the seed [default: all].
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Longest answer, in tokens [default: the suite's, 64 for lines].
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Whether answers are run with the tests of their programs, in a sandbox, where the suite has tests.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    execute: Switch,
    /// Keep every answer here, a line of JSON each; a run that was stopped goes on from there.
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Say what is otherwise than in this CSV file, and leave it as it is.
    #[arg(long, value_name = "FILE", conflicts_with = "csv")]
    against: Option<PathBuf>,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Results<'a> {
    suite: &'static str,
    model: &'a ModelInfo,
    seed: u64,
    limit: Option<usize>,
    max_new_tokens: usize,
    elapsed_s: f64,
    rows: &'a [Row],
    calibrations: &'a [Calibration],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    token_accuracies: &'a [TokenAccuracy],
}

impl Args {
    /// # Errors
    /// An argument that would do nothing in `suite`, which has no questions.
    pub(super) fn refuse_any(&self, suite: &str) -> Result<()> {
        let given = [
            ("--limit", self.limit.is_some()),
            ("--answers", self.answers.is_some()),
            ("--against", self.against.is_some()),
        ];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => {
                anyhow::bail!("{name}: the suite {suite} has none; expected a suite of questions (docs/suites.md)")
            }
            None => Ok(()),
        }
    }
}

pub(super) fn run(
    suite: &Suite,
    args: &Args,
    common: &Common,
    info: &ModelInfo,
    (answerers, bundle): (Answerers<'_>, Option<&Bundle>),
) -> Result<()> {
    let started = Instant::now();
    ensure!(args.limit != Some(0), "--limit 0: expected at least one question of each language");
    let questions = suite.draw(&Draw {
        bench: &args.bench,
        shards: common.shards.as_deref(),
        split: &common.split,
        languages: &common.languages,
        limit: args.limit,
        seed: common.seed,
    })?;
    let without_copy = info.n_parameters > 0 && !info.copy;
    let identity = format!("{}{}", info.checksum, if without_copy { " without copy" } else { "" });
    let max_new_tokens = args.max_new_tokens.unwrap_or(suite.max_new_tokens);
    let asking = Run { suite, model: &identity, max_new_tokens, answers: args.answers.as_deref() };
    let mut checker = checker(args, &questions);
    let questions = without_unanswerable(questions, checker.as_mut())?;
    let token_accuracies = bundle.map_or(Ok(Vec::new()), |bundle| tokens(suite, args, common, bundle))?;
    let answers = ask_all(&asking, &questions, answerers, checker.as_mut())?;
    let (rows, calibrations) = (score::rows(&questions, &answers), calibrate::calibrations(&questions, &answers));
    print_model(info);
    println!("{}: {} questions, {}\n", suite.name, questions.len(), suite.about);
    print!("{}", table::plain(&cells(&rows)));
    println!();
    checker.iter().for_each(print_not_run);
    calibrations.iter().for_each(print_calibration);
    token_accuracies.iter().for_each(print_tokens);
    println!("{:.0} s", started.elapsed().as_secs_f64());
    let records: Vec<Record> = rows.iter().map(|row| Record::of(&info.name, &identity, row)).collect();
    if let Some(path) = common.csv.as_ref().or(args.against.as_ref()) {
        print_differences(path, &records)?;
    }
    if let Some(path) = &common.csv {
        record::replace(path, &records)?;
    }
    common.write_page(|| suite_page::render(suite, info, &rows, &calibrations))?;
    common.write_json(&Results {
        suite: suite.name,
        model: info,
        seed: common.seed,
        limit: args.limit,
        max_new_tokens,
        elapsed_s: started.elapsed().as_secs_f64(),
        rows: &rows,
        calibrations: &calibrations,
        token_accuracies: &token_accuracies,
    })
}

fn ask_all(
    asking: &Run<'_>,
    questions: &[Question],
    answerers: Answerers<'_>,
    checker: Option<&mut Checker>,
) -> Result<Vec<(Answer, Score)>> {
    // Who is timed is asked alone.
    let is_timed = questions.iter().any(|question| question.truth.is_empty() && question.tests.is_none());
    match answerers {
        Answerers::One(answerer) => ask(asking, questions, answerer, checker),
        Answerers::Many(mut clients) if is_timed => {
            clients.truncate(1);
            let only = clients.first_mut().context("nobody who answers")?;
            ask(asking, questions, only, checker)
        }
        Answerers::Many(clients) => ask_together(asking, questions, clients, checker),
    }
}

/// The share of tokens that a model of ours says right, in a suite that has text too.
fn tokens(suite: &Suite, args: &Args, common: &Common, bundle: &Bundle) -> Result<Vec<TokenAccuracy>> {
    let Some(tokens) = suite.tokens else { return Ok(Vec::new()) };
    tokens(&bundle.lm, &bundle.tokenizer, &args.bench.join(suite.name), (&common.languages, args.limit))
}

fn print_tokens(of: &TokenAccuracy) {
    let TokenAccuracy { language, n_files, n_tokens, accuracy } = of;
    println!("{language}: {accuracy:.2} % of {n_tokens} tokens in {n_files} files are right");
}

/// The questions that something can be said about: those with a right text, those whose answers can be run here, and those of which only the
/// time counts.
fn without_unanswerable(questions: Vec<Question>, mut checker: Option<&mut Checker>) -> Result<Vec<Question>> {
    let mut kept = Vec::with_capacity(questions.len());
    for question in questions {
        let is_judged = question.truth.is_empty() && question.tests.is_some();
        let toolchain = match &mut checker {
            Some(checker) if is_judged => checker.toolchain(question.language)?,
            _ => None,
        };
        if !is_judged || toolchain.is_some() {
            kept.push(question);
        }
    }
    Ok(kept)
}

/// None where nothing is to be run, or nothing can be; then standard error says why.
fn checker(args: &Args, questions: &[Question]) -> Option<Checker> {
    if args.execute == Switch::Off || questions.iter().all(|question| question.tests.is_none()) {
        return None;
    }
    Checker::open().map_err(|error| eprintln!("warning: no answer is run: {error:#}")).ok()
}

fn cells(rows: &[Row]) -> Cells {
    let is_run = rows.iter().any(|row| row.n_run > 0);
    let mut heading = vec!["setting", "language", "questions", "EM", "±", "ES", "id EM", "id F1"];
    heading.extend(is_run.then_some(["pass@1", "run"]).into_iter().flatten());
    heading.extend(["ms", "p95"]);
    let mut cells = vec![heading.into_iter().map(str::to_owned).collect()];
    for row in rows {
        let mut line = vec![row.setting.clone(), row.language.clone(), row.n.to_string()];
        let figure = |value: Option<f64>| table::figure(value, 1);
        let text = |value: fn(&TextScores) -> f64| figure(row.text.as_ref().map(value));
        line.extend([text(|of| of.exact_match), text(|of| of.exact_match_margin), text(|of| of.edit_similarity)]);
        line.extend([text(|of| of.identifier_exact_match), text(|of| of.identifier_f1)]);
        if is_run {
            line.push(figure(row.pass_at_1));
            line.push(row.n_run.to_string());
        }
        line.extend([row.median_ms, row.p95_ms].map(|value| format!("{value:.1}")));
        cells.push(line);
    }
    cells
}

fn print_not_run(checker: &Checker) {
    let missing = checker.missing();
    if !missing.is_empty() {
        println!("not run, for want of a toolchain: {}", missing.join(", "));
    }
    let unfit: Vec<String> = checker.unfit().iter().map(|(language, n)| format!("{language} {n}")).collect();
    if !unfit.is_empty() {
        println!(
            "not counted, because their tests fail with the right answer here, need what is not here, or pass without any: {}",
            unfit.join(", ")
        );
    }
}

fn print_calibration(of: &Calibration) {
    let shares = COVERAGES.map(|coverage| format!("{:.0}", 100.0 * coverage)).join(", ");
    let precisions = of.precision_at.map(|precision| format!("{precision:.1}")).join(", ");
    println!(
        "{}: calibration error {:.3} of {} answers with a probability; of the likeliest {shares} % {precisions} % are exact",
        of.setting, of.expected_error, of.n
    );
}

fn print_differences(path: &Path, records: &[Record]) -> Result<()> {
    let before: Vec<Record> = rows::read(path)?;
    let differences = record::differences(&before, records);
    if !before.iter().any(|old| records.iter().any(|new| old.model == new.model)) {
        println!("{}: nothing was recorded of this model", path.display());
    } else if differences.len() == 1 {
        println!("nothing otherwise than in {}", path.display());
    } else {
        println!("otherwise than in {}:\n{}", path.display(), table::plain(&differences));
    }
    Ok(())
}
