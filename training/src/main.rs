//! The `multicoder` command: arguments in, exit code out. One row a subcommand; the work is in `multicoder_training`.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use multicoder_training::{commands, threads};

/// Builds corpora, trains PL-MoE code models, measures them and packs them into one file.
#[derive(Parser)]
#[command(name = "multicoder", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch packages, build Parquet shards of source text, report on them.
    Corpus(commands::corpus::Args),
    /// Learn a tokenizer from the shards.
    Tokenizer(commands::tokenizer::Args),
    /// Train a model; resume, dry run, warm start.
    Train(commands::train::Args),
    /// Put a model through a benchmark suite, by language.
    Eval(commands::eval::Args),
    /// Compare variants of a model at equal compute, over seeds.
    Lab(commands::lab::Args),
    /// Pack a checkpoint into the one file that is served, and write its model card.
    Pack(commands::pack::Args),
    /// Write one language's part of a model as a GGUF file that llama.cpp runs.
    Export(commands::export::Args),
    /// Measure the training step, beside PyTorch.
    Bench(commands::bench::Args),
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What a shell says of a program that was ended by SIGPIPE.
const CLOSED_PIPE: i32 = 141;

/// A reader of standard output that has seen enough (`| head`) ends the command without a word, as it ends other programs.
fn end_with_the_reader() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            std::process::exit(CLOSED_PIPE);
        }
        report(panic);
    }));
}

fn main() -> ExitCode {
    end_with_the_reader();
    threads::park_idle_workers();
    let outcome = match Cli::parse().command {
        Command::Corpus(args) => commands::corpus::run(args),
        Command::Tokenizer(args) => commands::tokenizer::run(args),
        Command::Train(args) => commands::train::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Lab(args) => commands::lab::run(args),
        Command::Pack(args) => commands::pack::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "multicoder", &mut script);
            std::io::stdout().write_all(&script).map_err(Into::into)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
