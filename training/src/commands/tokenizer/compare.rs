//! `multicoder tokenizer compare`: bytes of a token in every language, several tokenizers side by side on the same text.

use std::path::PathBuf;

use anyhow::Result;
use multicoder_model::Tokenizer;
use serde::Serialize;

use crate::data::density::{Density, densities, macro_average};
use crate::report::table::{self, Cells};

/// Arguments of `multicoder tokenizer compare`.
#[derive(clap::Args, Debug)]
pub(super) struct CompareArgs {
    /// Corpus whose text is encoded.
    #[arg(long, value_name = "DIR")]
    shards: PathBuf,
    /// Its split.
    #[arg(long, value_name = "NAME", default_value = "valid")]
    split: String,
    /// Most text of a language, in bytes: whole files in a seeded order.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    max_bytes_per_language: usize,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
    /// The tokenizer.json files.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Comparison {
    split: String,
    max_bytes_per_language: usize,
    tokenizers: Vec<Compared>,
}

#[derive(Serialize)]
struct Compared {
    path: String,
    /// Entries, special tokens included.
    vocab_size: usize,
    /// Mean bytes of a token, each language counting the same.
    macro_average: f64,
    languages: Vec<LanguageDensity>,
}

#[derive(Serialize)]
struct LanguageDensity {
    language: String,
    n_bytes: usize,
    n_tokens: usize,
    bytes_per_token: f64,
}

/// Runs the command.
///
/// # Errors
/// Missing or broken shards, a file that is no tokenizer.
pub(super) fn run(args: CompareArgs) -> Result<()> {
    let texts = super::read_texts(&args.shards, &args.split)?;
    let mut tokenizers = Vec::new();
    for path in &args.files {
        let tokenizer = Tokenizer::from_file(path)?;
        let all = densities(&tokenizer, &texts, args.max_bytes_per_language)?;
        tokenizers.push(Compared {
            path: path.display().to_string(),
            vocab_size: tokenizer.vocab_size(),
            macro_average: macro_average(&all),
            languages: all.into_iter().map(LanguageDensity::from).collect(),
        });
    }
    let max_bytes_per_language = args.max_bytes_per_language;
    let comparison = Comparison { split: args.split, max_bytes_per_language, tokenizers };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&comparison)?),
        false => print!("bytes of a token\n\n{}", table::plain_with_total(&cells(&comparison.tokenizers))),
    }
    Ok(())
}

impl From<Density> for LanguageDensity {
    fn from(density: Density) -> Self {
        let bytes_per_token = density.bytes_per_token();
        let Density { language, n_bytes, n_tokens } = density;
        Self { language, n_bytes, n_tokens, bytes_per_token }
    }
}

/// A row a language, a column a tokenizer; the macro average last.
fn cells(tokenizers: &[Compared]) -> Cells {
    let row = |first: [String; 2], number: &dyn Fn(&Compared) -> f64| {
        first.into_iter().chain(tokenizers.iter().map(|of| format!("{:.3}", number(of)))).collect::<Vec<String>>()
    };
    let heading =
        ["language".to_owned(), "kB".to_owned()].into_iter().chain(tokenizers.iter().map(|of| of.path.clone()));
    let mut cells = vec![heading.collect()];
    // All have the same languages in the same order: those of the shards.
    for (idx, language) in tokenizers.first().into_iter().flat_map(|of| &of.languages).enumerate() {
        let first = [language.language.clone(), language.n_bytes.div_ceil(1000).to_string()];
        cells.push(row(first, &|of| of.languages[idx].bytes_per_token));
    }
    cells.push(row(["macro average".to_owned(), String::new()], &|of| of.macro_average));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokenizers_stand_side_by_side() {
        let compared = |path: &str, n_tokens: usize| {
            let densities =
                ["lua", "rust"].map(|language| Density { language: language.to_owned(), n_bytes: 1200, n_tokens });
            let macro_average = macro_average(&densities);
            Compared {
                path: path.to_owned(),
                vocab_size: 300,
                macro_average,
                languages: densities.map(LanguageDensity::from).into(),
            }
        };
        let cells = cells(&[compared("a.json", 400), compared("b.json", 300)]);
        assert_eq!(cells[0], ["language", "kB", "a.json", "b.json"]);
        assert_eq!(cells[2], ["rust", "2", "3.000", "4.000"]);
        assert_eq!(cells[3], ["macro average", "", "3.000", "4.000"]);
    }
}
