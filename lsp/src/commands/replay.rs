//! `replay FILE...`: how long this machine makes a typist wait.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use multicoder_lsp::completer::{Completer, Loader};
use multicoder_lsp::model_completer::{Choice, ModelCompleter};
use multicoder_lsp::priority;
use multicoder_lsp::quantile::quantile;
use multicoder_lsp::replay::{self, File, Kind, Measured, Plan, Work};
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Source files to type in, in turn.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Folder that is open in the editor: its files are read to guess from.
    #[arg(long, value_name = "FOLDER")]
    project: Option<PathBuf>,
    /// Requests that are waited for.
    #[arg(long, value_name = "N", default_value_t = 500)]
    requests: usize,
    /// Decides what is typed where.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Compute one token after the other, to see what guesses at the next ones are worth: the answers are the same.
    #[arg(long)]
    no_guesses: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    files: Vec<String>,
    seed: u64,
    /// One row for each kind of request that came up, then all together, then those for which the model wrote something.
    kinds: Vec<Row>,
    work: Work,
    /// Share of prompts that was computed before.
    cached_share: f64,
    /// Of this process, the typist included; absent where the system does not say.
    cpu_s: Option<f64>,
    resident_mib: Option<f64>,
    elapsed_s: f64,
}

/// What requests of one kind took, in milliseconds, and what they came to, each on average.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    kind: &'static str,
    requests: usize,
    /// Those that were not answered by the rest of an earlier answer, or by silence.
    by_model: usize,
    shown: usize,
    right: usize,
    p50_ms: f64,
    p90_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    longest_ms: f64,
    prefilled_tokens: f64,
    written_tokens: f64,
}

/// Replays and prints.
pub(crate) fn run(args: &Args, choice: &Choice) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        files: args.files.iter().map(|path| read(path)).collect::<anyhow::Result<Vec<File>>>()?,
        folders: args.project.iter().map(|path| folder(path)).collect::<anyhow::Result<Vec<PathBuf>>>()?,
        n_requests: args.requests,
        seed: args.seed,
    };
    let (start, cpu_before) = (std::time::Instant::now(), cpu_s());
    let mut all = Vec::new();
    // Before anything is typed: a server without a model would be silent.
    let loaded = load(choice)?;
    let loaded = if args.no_guesses { loaded.without_guesses() } else { loaded };
    let load: Loader = Box::new(move || Ok(Box::new(loaded) as Box<dyn Completer>));
    let work = replay::replay(&plan, load, &mut |measured| all.push(measured))?;
    let of_kind = |kind: Kind| -> Vec<&Measured> { all.iter().filter(|measured| measured.kind == kind).collect() };
    let mut kinds: Vec<Row> = Kind::ALL.iter().filter_map(|&kind| row(kind.name(), &of_kind(kind))).collect();
    kinds.extend(row("all", &all.iter().collect::<Vec<_>>()));
    kinds.extend(row("by the model", &all.iter().filter(|measured| measured.work.runs > 0).collect::<Vec<_>>()));
    let report = Report {
        files: args.files.iter().map(|path| path.display().to_string()).collect(),
        seed: args.seed,
        kinds,
        work,
        cached_share: 1.0 - work.prefilled_tokens as f64 / work.prompt_tokens.max(1) as f64,
        cpu_s: cpu_s().zip(cpu_before).map(|(now, then)| now - then),
        resident_mib: resident_mib(),
        elapsed_s: start.elapsed().as_secs_f64(),
    };
    super::print(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { text(&report) })?;
    Ok(ExitCode::SUCCESS)
}

/// On a thread as the server's, whose priority the model's helpers inherit.
fn load(choice: &Choice) -> anyhow::Result<ModelCompleter> {
    let load = || {
        priority::raise();
        ModelCompleter::load(choice)
    };
    let loaded = std::thread::scope(|scope| scope.spawn(load).join());
    loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(anyhow::Error::msg)
}

fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let path = std::path::absolute(path)?;
    Ok(File { uri: multicoder_lsp::uri::of_path(&path), text })
}

fn folder(path: &Path) -> anyhow::Result<PathBuf> {
    anyhow::ensure!(path.is_dir(), "--project {}: expected a folder", path.display());
    Ok(std::path::absolute(path)?)
}

fn row(kind: &'static str, all: &[&Measured]) -> Option<Row> {
    let mut times_ms: Vec<f64> = all.iter().map(|measured| measured.elapsed.as_secs_f64() * 1e3).collect();
    times_ms.sort_by(f64::total_cmp);
    let at = |share: f64| quantile(&times_ms, share);
    let count = |is: fn(&Measured) -> bool| all.iter().filter(|measured| is(measured)).count();
    let mean = |of: fn(&Work) -> usize| {
        all.iter().map(|measured| of(&measured.work)).sum::<usize>() as f64 / all.len().max(1) as f64
    };
    Some(Row {
        kind,
        requests: all.len(),
        by_model: count(|measured| measured.work.runs > 0),
        shown: count(|measured| measured.is_shown),
        right: count(|measured| measured.is_right),
        p50_ms: at(0.5)?,
        p90_ms: at(0.9)?,
        p95_ms: at(0.95)?,
        p99_ms: at(0.99)?,
        longest_ms: at(1.0)?,
        prefilled_tokens: mean(|work| work.prefilled_tokens),
        written_tokens: mean(|work| work.written_tokens),
    })
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{:14} {:>8} {:>8} {:>6} {:>6}  {:>7} {:>7} {:>7} {:>7} {:>8}  {:>6} {:>7}\n",
        "after", "requests", "by model", "shown", "right", "p50 ms", "p90", "p95", "p99", "longest", "read", "written"
    );
    for row in &report.kinds {
        text += &format!(
            "{:14} {:>8} {:>8} {:>6} {:>6}  {:>7.1} {:>7.1} {:>7.1} {:>7.1} {:>8.1}  {:>6.1} {:>7.1}\n",
            row.kind,
            row.requests,
            row.by_model,
            row.shown,
            row.right,
            row.p50_ms,
            row.p90_ms,
            row.p95_ms,
            row.p99_ms,
            row.longest_ms,
            row.prefilled_tokens,
            row.written_tokens
        );
    }
    let work = &report.work;
    text += &format!(
        "\n{} answers written, {} given up; {} prompt tokens, {} of them read ({:.1} % were in the cache); {} tokens written, {} of them guessed ({} guesses); other files read {} times\n",
        work.runs,
        work.cancelled,
        work.prompt_tokens,
        work.prefilled_tokens,
        100.0 * report.cached_share,
        work.written_tokens,
        work.accepted_tokens,
        work.guessed_tokens,
        work.readings
    );
    text += &format!("{:.1} s", report.elapsed_s);
    if let Some(cpu_s) = report.cpu_s {
        text += &format!(", {cpu_s:.1} s of processor time");
    }
    if let Some(mib) = report.resident_mib {
        text += &format!(", {mib:.0} MiB resident");
    }
    text + "\n"
}

/// Processor time of this process so far, in all threads.
#[cfg(unix)]
fn cpu_s() -> Option<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the structure that it is given, or says that it did not.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Some(seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

#[cfg(not(unix))]
fn cpu_s() -> Option<f64> {
    None
}

/// Memory of this process that is in use now.
fn resident_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
