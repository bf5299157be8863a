//! `multicoder export`: one language's part of a model as a GGUF file that llama.cpp runs.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use multicoder_model::llama::{self, LlamaFormat};

use crate::weights::Source;

/// Arguments of `multicoder export`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A GGUF file of ours, a checkpoint folder, or a run (its newest checkpoint).
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// The language whose experts are exported; not for a model without experts.
    #[arg(long, value_name = "NAME")]
    language: Option<String>,
    /// The file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How weights are stored.
    #[arg(long, value_enum, default_value_t = Format::Q8_0)]
    quantize: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    #[value(name = "f32")]
    F32,
    #[value(name = "f16")]
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    /// As q4_0, in superblocks where rows are a multiple of 256 long.
    #[value(name = "q4_k")]
    Q4K,
}

/// Runs the command.
///
/// # Errors
/// A model that llama.cpp has no architecture for, with the option that it lacks.
pub fn run(args: Args) -> Result<()> {
    let Source { lm, tokenizer, .. } = Source::open(&args.model)?;
    let format = match args.quantize {
        Format::F32 => LlamaFormat::F32,
        Format::F16 => LlamaFormat::F16,
        Format::Q8_0 => LlamaFormat::Q8_0,
        Format::Q4_0 => LlamaFormat::Q4_0,
        Format::Q4K => LlamaFormat::Q4K,
    };
    let name = args.out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let bytes = llama::to_bytes(&lm, &tokenizer, &name, args.language.as_deref(), format)
        .with_context(|| args.model.display().to_string())?;
    let part = args.out.with_extension("gguf.part");
    std::fs::write(&part, &bytes).with_context(|| part.display().to_string())?;
    std::fs::rename(&part, &args.out).with_context(|| args.out.display().to_string())?;
    println!("{}: {} bytes, for llama.cpp", args.out.display(), bytes.len());
    eprintln!(
        "llama.cpp splits text into other tokens than our tokenizer does: give it ids where answers are to be the same"
    );
    if lm.config().copy.is_some() {
        eprintln!("the copy component, which mixes in what the text itself says, is not part of the file");
    }
    Ok(())
}
