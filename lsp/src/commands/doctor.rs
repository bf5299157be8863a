//! `doctor`: what model, device, languages and speed there are, and what each editor must set.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use multicoder_grammars::LanguageId;
use multicoder_lsp::completer::{Completer, ModelInfo};
use multicoder_lsp::config;
use multicoder_lsp::model_completer::{Choice, ModelCompleter};
use multicoder_lsp::priority;
use multicoder_model::Prompt;
use serde::Serialize;

/// Tokens of the measured prompt and of its continuation.
const PREFILL_TOKENS: usize = 256;
const DECODE_TOKENS: usize = 32;

/// Each editor: its name, and what to put where. The folder `editors/` has them in full.
const EDITORS: &[(&str, &str)] = &[
    (
        "Neovim 0.12 or newer",
        "init.lua: vim.lsp.config('multicoder', { cmd = { 'multicoder-lsp' } }); vim.lsp.enable('multicoder'); \
         vim.lsp.inline_completion.enable(true); vim.keymap.set('i', '<Tab>', function() \
         return vim.lsp.inline_completion.get() and '' or '<Tab>' end, { expr = true })",
    ),
    (
        "Helix",
        "languages.toml: [language-server.multicoder] command = \"multicoder-lsp\", and \"multicoder\" in language-servers of \
         each language; completions come as menu items",
    ),
    (
        "Emacs, lsp-mode 10 or newer",
        "(lsp-register-client (make-lsp-client :new-connection (lsp-stdio-connection \"multicoder-lsp\") :add-on? t \
         :activation-fn (lambda (&rest _) t) :server-id 'multicoder)); accept with C-<return>; \
         lsp-inline-completion-idle-delay is 2 s unless set",
    ),
    (
        "VS Code",
        "an extension that starts multicoder-lsp with vscode-languageclient 10.1 or newer; editor.inlineSuggest.enabled",
    ),
    ("any other editor", "run multicoder-lsp over standard input and output; completions come as menu items"),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What there is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    version: &'static str,
    model: ModelInfo,
    load_ms: f64,
    goldens: usize,
    /// "ok", or what is wrong.
    goldens_check: String,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    threads: usize,
    /// Whether the system lets answers go before what else computes.
    has_priority: bool,
    /// Languages that are recognised but which the model was not trained on.
    languages_without_model: Vec<&'static str>,
    settings: String,
    editors: Vec<(&'static str, &'static str)>,
}

/// Examines and prints. The exit code is 1 when the model does not answer as it did when it was packed.
pub(crate) fn run(args: &Args, choice: &Choice) -> anyhow::Result<ExitCode> {
    let report = examine(choice)?;
    super::print(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report_text(&report) })?;
    Ok(if report.goldens_check == "ok" { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn examine(choice: &Choice) -> anyhow::Result<Report> {
    let has_priority = priority::raise();
    let start = Instant::now();
    let mut completer = ModelCompleter::load(choice).map_err(anyhow::Error::msg)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let goldens_check = completer.model().check_goldens().map_or_else(|error| error.to_string(), |()| "ok".to_string());
    let (prefill_tokens_per_s, decode_tokens_per_s) = speed(&mut completer)?;
    let info = completer.info().clone();
    let lacks = |name: &&'static str| !info.languages.iter().any(|known| known == name);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        load_ms,
        goldens: completer.model().info.goldens.len(),
        goldens_check,
        prefill_tokens_per_s,
        decode_tokens_per_s,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        has_priority,
        languages_without_model: LanguageId::all().map(LanguageId::name).filter(lacks).collect(),
        settings: config::keys(),
        editors: EDITORS.to_vec(),
        model: info,
    })
}

/// Tokens per second of reading a prompt and of writing after it; the best of three.
fn speed(completer: &mut ModelCompleter) -> anyhow::Result<(f64, f64)> {
    let sample = "fn main() {\n    let total: usize = (0..10).map(|i| i * i).sum();\n    println!(\"{total}\");\n}\n\n";
    let tokenizer = &completer.model().tokenizer;
    let room = completer.info().context_tokens.saturating_sub(DECODE_TOKENS).max(1);
    let mut ids = tokenizer.encode(&sample.repeat(PREFILL_TOKENS / 8)).context("the sample")?;
    ids.truncate(PREFILL_TOKENS.min(room));
    let prompt = Prompt { ids, heal: Vec::new() };
    let mut best = (0f64, 0f64);
    for _ in 0..3 {
        let start = Instant::now();
        let (out, prefill_s) = completer.measure(&prompt, DECODE_TOKENS)?;
        let decode_s = start.elapsed().as_secs_f64() - prefill_s;
        best.0 = best.0.max(prompt.ids.len() as f64 / prefill_s);
        best.1 = best.1.max(out.ids.len().saturating_sub(1) as f64 / decode_s.max(1e-9));
    }
    Ok(best)
}

fn report_text(report: &Report) -> String {
    let model = &report.model;
    let (all, active) = (model.parameters as f64 / 1e6, model.active_parameters as f64 / 1e6);
    let checksum = if model.checksum.is_empty() { "none (a folder)" } else { &model.checksum };
    let priority = match report.has_priority {
        true => "before what else runs in the same session or group",
        false => "that of other programs: the system allows no more",
    };
    let (prefill, decode) = (report.prefill_tokens_per_s, report.decode_tokens_per_s);
    let mut text = format!("multicoder-lsp {}\n", report.version);
    for (name, value) in [
        ("model", format!("{} ({}), {}", model.name, model.origin, model.quantization)),
        (
            "parameters",
            format!("{all:.1} M, {active:.1} M of them for one language; context {} tokens", model.context_tokens),
        ),
        ("checksum", checksum.to_string()),
        ("goldens", format!("{} pairs: {}", report.goldens, report.goldens_check)),
        ("device", format!("{}, {} threads", model.device, report.threads)),
        ("priority", priority.to_string()),
        ("speed", format!("{prefill:.0} tokens/s read, {decode:.0} tokens/s written")),
        ("loaded in", format!("{:.0} ms", report.load_ms)),
        ("languages", format!("{}: {}", model.languages.len(), model.languages.join(" "))),
        ("", format!("and {} more that are recognised (listed with --json)", report.languages_without_model.len())),
        ("network", "none: this program opens no socket".to_string()),
        ("settings", format!("{} (section \"{}\")", report.settings, config::SECTION)),
    ] {
        text += &format!("{name:11} {value}\n");
    }
    for (editor, what) in &report.editors {
        text += &format!("\n{editor}\n    {what}\n");
    }
    text
}
