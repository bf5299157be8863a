//! The program: without a command it serves one editor on standard input and output.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use multicoder_lsp::model_completer::Choice;

use commands::{bench, complete, completions, doctor, replay, serve};

/// Completes code in any editor that speaks the Language Server Protocol, with the model inside this program.
///
/// Without a command: serve one editor on standard input and output.
#[derive(Debug, Parser)]
#[command(name = "multicoder-lsp", version)]
struct Cli {
    #[command(flatten)]
    choice: Choice,
    /// Taken for granted; editors that pass it may.
    #[arg(long, hide = true)]
    stdio: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Complete one place of a file and print the line.
    Complete(complete::Args),
    /// Say what model, device, languages and speed there are, and what each editor must set.
    Doctor(doctor::Args),
    /// Type in files by itself and print how long the answers took.
    Replay(replay::Args),
    /// Read and write tokens as fast as possible, beside llama.cpp with the same weights.
    Bench(bench::Args),
    /// Keep a core busy until standard input ends; `bench --busy` starts it.
    #[command(hide = true)]
    Spin,
    /// Print the completion script of a shell.
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let result = match cli.command {
        None => serve::run(cli.choice),
        Some(Command::Complete(args)) => complete::run(&args, &cli.choice),
        Some(Command::Doctor(args)) => doctor::run(&args, &cli.choice),
        Some(Command::Replay(args)) => replay::run(&args, &cli.choice),
        Some(Command::Bench(args)) => bench::run(&args, &cli.choice),
        Some(Command::Spin) => {
            multicoder_lsp::bench::spin();
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Completions(args)) => completions::run::<Cli>(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("multicoder-lsp: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Logs go to standard error: standard output is the protocol's. `MULTICODER_LOG=debug` shows every decision.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MULTICODER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
