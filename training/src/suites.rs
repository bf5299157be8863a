//! Benchmark suites of questions with one right answer: read, put to whoever answers, scored by language.
//!
//! A suite is one row of [`SUITES`] and one file that turns its data into [`Question`]s. Nothing else knows a suite by name; every model
//! goes through the same prompts ([`answer`]), the same end of an answer ([`question::Ending`]) and the same scores ([`score`]).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use multicoder_model::{CodeLm, Tokenizer};

mod ahead;
pub mod answer;
pub mod calibrate;
pub mod calibration;
pub mod check;
pub mod codexglue;
pub mod crosscodeeval;
pub mod crossfile;
pub mod derive;
pub mod http;
pub mod humaneval_infilling;
pub mod humaneval_x;
pub mod mceval;
pub mod multipl_e;
pub mod question;
pub mod read;
pub mod record;
pub mod run;
pub mod samples;
pub mod sandbox;
pub mod santacoder_fim;
pub mod score;
pub mod speed;
pub mod toolchain;

use crate::evaluate::metric;
use crate::evaluate::sample::{self, LanguageSample, SampleOptions};
use codexglue::TokenAccuracy;
use question::Question;

/// What a suite's questions are made of.
pub enum Data {
    /// A folder of its name among the benchmarks.
    Folder(fn(&Path) -> Result<Vec<Question>>),
    /// The packages of a corpus that training never saw.
    Packages(fn(&Packages<'_>) -> Result<Vec<Question>>),
}

/// Text that carets are drawn from, of each language, in bytes.
const BYTES_PER_LANGUAGE: usize = 400_000;

/// Packages of a corpus.
#[derive(Clone, Copy, Debug)]
pub struct Packages<'a> {
    /// Folder of Parquet shards.
    pub shards: &'a Path,
    /// Split of them.
    pub split: &'a str,
    /// Only these languages; empty for all.
    pub languages: &'a [String],
    /// Of what is drawn from large ones.
    pub seed: u64,
}

impl Packages<'_> {
    /// Whether a language is asked about.
    pub fn wants(&self, language: &str) -> bool {
        self.languages.is_empty() || self.languages.iter().any(|wanted| wanted == language)
    }

    /// Files of each language, and carets in at most `n_lines` lines of them.
    ///
    /// # Errors
    /// Missing or broken shards.
    fn samples(&self, n_lines: usize) -> Result<Vec<LanguageSample>> {
        let (languages, seed) = (self.languages, self.seed);
        let options = SampleOptions { languages, max_bytes_per_language: BYTES_PER_LANGUAGE, n_lines, seed };
        sample::draw(self.shards, self.split, &options)
    }
}

/// What to draw from, and how much.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// Folder of the benchmarks.
    pub bench: &'a Path,
    /// Folder of Parquet shards, for the suites that are made of packages.
    pub shards: Option<&'a Path>,
    /// Split of the shards.
    pub split: &'a str,
    /// Only these languages; empty for all.
    pub languages: &'a [String],
    /// Most questions of each language in each setting.
    pub limit: Option<usize>,
    /// Of the draw.
    pub seed: u64,
}

/// One suite.
pub struct Suite {
    /// As it is called on the command line, and the folder of its data.
    pub name: &'static str,
    /// What it asks, in a line.
    pub about: &'static str,
    /// Where its questions come from, in the order of the data.
    pub data: Data,
    /// Whether an answer counts as exact.
    pub is_exact: fn(&str, &str) -> bool,
    /// Longest answer, in tokens, where the command says nothing else.
    pub max_new_tokens: usize,
    /// Of a suite that has text too, the share of its tokens that a model says right, of at most so many files.
    pub tokens: Option<TokensRight>,
}

/// See [`Suite::tokens`].
type TokensRight = fn(&CodeLm, &Tokenizer, &Path, (&[String], Option<usize>)) -> Result<Vec<TokenAccuracy>>;

/// Longest answer where lines are asked for.
const LINE_TOKENS: usize = 64;

/// Every suite of questions, by name.
pub static SUITES: &[Suite] = &[
    Suite {
        name: "calibration",
        about: "the rest of a line in held-out packages, all languages: how far the model's probability of its answer is to be trusted",
        data: Data::Packages(calibration::questions),
        is_exact: metric::exact_match,
        max_new_tokens: LINE_TOKENS,
        tokens: None,
    },
    Suite {
        name: "codexglue",
        about: "the rest of a line in PY150 and JavaCorpus, from the user's own copy of the data, and the share of right tokens",
        data: Data::Folder(codexglue::questions),
        is_exact: metric::exact_match,
        max_new_tokens: 100,
        tokens: Some(codexglue::token_accuracy),
    },
    Suite {
        name: "crosscodeeval",
        about: "the rest of a statement that needs another file: without it, with retrieved fragments, and with the text after it",
        data: Data::Folder(crosscodeeval::questions),
        is_exact: crosscodeeval::is_exact,
        max_new_tokens: LINE_TOKENS,
        tokens: None,
    },
    Suite {
        name: "crossfile",
        about: "in held-out packages, the rest of a line from a name on that only another file defines: without that file, with what a search finds, with the definition",
        data: Data::Packages(crossfile::questions),
        is_exact: metric::exact_match,
        max_new_tokens: LINE_TOKENS,
        tokens: None,
    },
    Suite {
        name: "humaneval-infilling",
        about: "a line, or a random span, of a Python function",
        data: Data::Folder(humaneval_infilling::questions),
        is_exact: score::is_exact_stripped,
        max_new_tokens: LINE_TOKENS,
        tokens: None,
    },
    Suite {
        name: "humaneval-x",
        about: "lines of solutions in six languages, derived from the solutions, with and without the text after them",
        data: Data::Folder(humaneval_x::questions),
        is_exact: score::is_exact_stripped,
        max_new_tokens: LINE_TOKENS,
        tokens: None,
    },
    Suite {
        name: "mceval",
        about: "lines of solutions in every language that we know of McEval's, derived likewise",
        data: Data::Folder(mceval::questions),
        is_exact: score::is_exact_stripped,
        max_new_tokens: LINE_TOKENS,
        tokens: None,
    },
    Suite {
        name: "multipl-e",
        about: "functions in every language that we know of MultiPL-E's, by their tests, and the line of their signature",
        data: Data::Folder(multipl_e::questions),
        is_exact: score::is_exact_stripped,
        max_new_tokens: 256,
        tokens: None,
    },
    Suite {
        name: "samples",
        about: "lines of the source files in a folder, such as grammars/samples/ of this repository",
        data: Data::Folder(samples::questions),
        is_exact: score::is_exact_stripped,
        max_new_tokens: LINE_TOKENS,
        tokens: None,
    },
    Suite {
        name: "santacoder-fim",
        about: "a line of a function in Java, JavaScript or Python",
        data: Data::Folder(santacoder_fim::questions),
        is_exact: score::is_exact_stripped,
        max_new_tokens: LINE_TOKENS,
        tokens: None,
    },
    Suite {
        name: "speed",
        about: "how long an answer of 24 tokens takes, by the text around the caret, afresh and after one more key",
        data: Data::Packages(speed::questions),
        is_exact: score::is_exact_stripped,
        max_new_tokens: 24,
        tokens: None,
    },
];

impl Suite {
    /// The suite of this name.
    pub fn by_name(name: &str) -> Option<&'static Suite> {
        SUITES.iter().find(|suite| suite.name == name)
    }

    /// Its questions: at most `draw.limit` of each language in each setting, drawn by the seed, in the order of the data.
    ///
    /// # Errors
    /// Data that is missing or malformed, with file and line; a language that the suite does not have.
    pub fn draw(&self, draw: &Draw<'_>) -> Result<Vec<Question>> {
        let questions = self.questions(draw)?;
        for language in draw.languages {
            let known = questions.iter().any(|question| question.language == language);
            ensure!(known, "--languages: {} has no question in `{language}`", self.name);
        }
        let wanted =
            |question: &Question| draw.languages.is_empty() || draw.languages.iter().any(|l| l == question.language);
        Ok(question::limited(questions.into_iter().filter(wanted).collect(), draw.limit, draw.seed))
    }

    fn questions(&self, draw: &Draw<'_>) -> Result<Vec<Question>> {
        let name = self.name;
        match self.data {
            Data::Folder(questions) => {
                let dir = draw.bench.join(name);
                let found = dir.is_dir();
                ensure!(found, "{}: no such folder; --bench DIR names the folder that holds `{name}`", dir.display());
                questions(&dir)
            }
            Data::Packages(questions) => {
                let shards =
                    draw.shards.with_context(|| format!("--shards DIR: {name} is made of the packages of a corpus"))?;
                let found =
                    questions(&Packages { shards, split: draw.split, languages: draw.languages, seed: draw.seed })?;
                ensure!(
                    !found.is_empty(),
                    "{}/{}: no question can be made of these packages",
                    shards.display(),
                    draw.split
                );
                Ok(found)
            }
        }
    }
}

/// The table as it stands in `docs/suites.md`.
pub fn table_markdown() -> String {
    let rows = SUITES.iter().map(|suite| format!("| `{}` | {} |\n", suite.name, suite.about));
    format!("| suite | asks for |\n|---|---|\n{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_row_says_what_it_asks() {
        assert!(SUITES.is_sorted_by(|a, b| a.name < b.name));
        for suite in SUITES {
            assert!(suite.about.len() > 20 && !suite.about.ends_with('.'), "{}", suite.name);
            assert!((suite.is_exact)("a = b", " a = b\n") && !(suite.is_exact)("a = b", "a = c"), "{}", suite.name);
        }
    }

    #[test]
    fn data_that_is_not_there_is_an_error_that_names_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let draw = Draw { bench: dir.path(), shards: None, split: "test", languages: &[], limit: None, seed: 1 };
        for suite in SUITES {
            let error = suite.draw(&draw).unwrap_err().to_string();
            let Data::Folder(_) = suite.data else {
                assert!(error.contains(suite.name) && error.contains("--shards"), "{error}");
                continue;
            };
            assert!(error.contains(suite.name) && error.contains("--bench"), "{error}");
            std::fs::create_dir(dir.path().join(suite.name)).unwrap();
            let error = format!("{:#}", suite.draw(&draw).unwrap_err());
            assert!(error.contains(suite.name), "{error}");
        }
    }
}
