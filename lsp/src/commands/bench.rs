//! `bench`: tokens a second, read and written, beside llama.cpp with the same weights.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use multicoder_lsp::bench::{self, Plan, Report, Row, SHAPES, Subject, Together, Weights};
use multicoder_lsp::model_completer::{Choice, DeviceKind};
use multicoder_peers::Peer;

const LLAMA_CPP: Peer = Peer { name: "llama.cpp", module: "xllamacpp", packages: &["xllamacpp"], size: "some 100 MB" };

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also measure this program with the same weights, in turn with ours.
    #[arg(long, value_name = "PEER")]
    against: Option<Against>,
    /// Random weights of this shape, in place of a model, of which the tokenizer is taken; with --against it is the default, for the starter is none that llama.cpp can run.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(SHAPES.iter().map(|shape| shape.name)))]
    shape: Option<String>,
    /// The language whose experts are used.
    #[arg(long, value_name = "NAME", conflicts_with = "shape")]
    language: Option<String>,
    /// How weights are stored.
    #[arg(long, value_name = "FORMAT", value_delimiter = ',', default_value = "q8_0,q4_0")]
    quantize: Vec<Weights>,
    /// Numbers of threads.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Vec<u16>,
    /// With --device cuda: numbers of clients that are served at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,32,128", value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: Vec<u16>,
    /// Measure all of it a second time beside another process that keeps one core busy.
    #[arg(long)]
    busy: bool,
    /// Rounds: in each one program comes after the other.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Keys that are typed in each round.
    #[arg(long, value_name = "N", default_value_t = 20)]
    keys: usize,
    /// A Python that has llama.cpp (the package xllamacpp); by default one is made, with the package from its index.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Also draw what memory and arithmetic allow, and what one thread makes of it.
    #[arg(long, value_name = "FILE.svg")]
    roofline: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Against {
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

/// Measures and prints.
pub(crate) fn run(args: &Args, choice: &Choice) -> anyhow::Result<ExitCode> {
    let model = choice.model.as_deref();
    let default = args.against.filter(|_| model.is_none()).map(|_| SHAPES[0].name);
    let shape = args.shape.as_deref().or(default);
    let subject = match SHAPES.iter().find(|known| Some(known.name) == shape) {
        Some(shape) => Subject::random(shape, model)?,
        None => Subject::load(model, args.language.as_deref())?,
    };
    if choice.device == DeviceKind::Cuda {
        return run_together(args, &subject);
    }
    let plan = Plan {
        weights: args.quantize.clone(),
        threads: args.threads.iter().map(|threads| usize::from(*threads)).collect(),
        is_busy: args.busy,
        rounds: args.rounds,
        keys: args.keys,
        has_roofline: args.roofline.is_some(),
        llama_cpp: args.against.map(|Against::LlamaCpp| LLAMA_CPP.python(args.python.as_deref())).transpose()?,
    };
    let report = bench::bench(&subject, &plan, &mut |line| eprintln!("{line}"))?;
    if let Some((path, roofline)) = args.roofline.as_ref().zip(report.roofline.as_ref()) {
        std::fs::write(path, roofline.svg()).with_context(|| path.display().to_string())?;
    }
    super::print(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { text(&report) })?;
    Ok(ExitCode::SUCCESS)
}

/// Many clients of a GPU.
fn run_together(args: &Args, subject: &Subject) -> anyhow::Result<ExitCode> {
    let is_alone = args.against.is_none() && !args.busy && args.roofline.is_none();
    ensure!(is_alone, "--against, --busy, --roofline: expected none of them with --device cuda");
    let clients: Vec<usize> = args.clients.iter().map(|&n| usize::from(n)).collect();
    let rows = bench::together(subject, &clients, args.rounds, &mut |line| eprintln!("{line}"))?;
    let mut text = format!("{}, bfloat16, on a GPU; medians of {} rounds\n\n", subject.name, args.rounds);
    text += &format!("{:>7}{:>10}{:>11}{:>14}\n", "clients", "read/s", "written/s", "ms from token");
    for row in &rows {
        let Together { clients, read_per_s, written_per_s, token_ms } = row;
        text += &format!("{clients:>7}{read_per_s:>10.0}{written_per_s:>11.0}{token_ms:>14.3}\n");
    }
    super::print(&if args.json { serde_json::to_string_pretty(&rows)? + "\n" } else { text })?;
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{}; medians of {} rounds; a key: one more token after {}, 24 written\n",
        report.model, report.rounds, report.text_tokens
    );
    if let Some(version) = &report.llama_cpp {
        text += &format!("llama.cpp of xllamacpp {version}\n");
    }
    for (threads, speed) in &report.memory_gb_per_s {
        text += &format!("memory, {threads} {}: {speed:.1} GB/s\n", if *threads == 1 { "thread" } else { "threads" });
    }
    for (weights, same, of) in &report.agreed {
        text += &format!("{}: the first {same} of {of} written tokens are the same\n", weights.name());
    }
    text += &format!(
        "\n{:8}{:>7}{:>5}  {:11}{:>8}{:>9}{:>8}{:>7}{:>9}{:>9}{:>9}\n",
        "weights", "threads", "busy", "", "read/s", "written", "memory", "late", "cold ms", "key p50", "p95"
    );
    for (i, row) in report.rows.iter().enumerate() {
        text += &line(row);
        if let Some(ours) = i.checked_sub(1).map(|i| &report.rows[i]).filter(|ours| ours.setting == row.setting) {
            text += &ratios(ours, row);
        }
    }
    text
}

fn line(row: &Row) -> String {
    let setting = row.setting;
    format!(
        "{:8}{:>7}{:>5}  {:11}{:>8.0}{:>9.0}{:>7.0}%{:>7.0}{:>9.0}{:>9.1}{:>9.1}\n",
        setting.weights.name(),
        setting.threads,
        if setting.is_busy { "yes" } else { "no" },
        row.program,
        row.read_per_s,
        row.written_per_s,
        100.0 * row.memory_share,
        row.late_per_s,
        row.cold_ms,
        row.key_p50_ms,
        row.key_p95_ms
    )
}

/// How many times as fast ours is.
fn ratios(ours: &Row, peer: &Row) -> String {
    format!(
        "{:22}{:11}{:>7.2}x{:>8.2}x{:>8}{:>6.2}x{:>8.2}x{:>8.2}x{:>8.2}x\n",
        "",
        "as fast",
        ours.read_per_s / peer.read_per_s,
        ours.written_per_s / peer.written_per_s,
        "",
        ours.late_per_s / peer.late_per_s,
        peer.cold_ms / ours.cold_ms,
        peer.key_p50_ms / ours.key_p50_ms,
        peer.key_p95_ms / ours.key_p95_ms
    )
}
