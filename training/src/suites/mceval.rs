//! McEval (Chai et al. 2024, arXiv 2406.07436): solutions in some forty languages, of which lines are asked.

use std::path::Path;

use anyhow::Result;
use multicoder_grammars::LanguageId;
use serde::Deserialize;

use super::derive::{self, LINES_PER_SOLUTION, Solution};
use super::question::Question;
use super::read;
use crate::evaluate::sample::LanguageSample;

#[derive(Deserialize)]
struct Record {
    task_id: String,
    prompt: String,
    canonical_solution: String,
    /// Absent where the prompt is not code but a task in words.
    signature: Option<String>,
    test: Option<String>,
}

/// Name of the suite and of its folder.
pub const NAME: &str = "mceval";

/// Whole programs of the folder `dir` by language, of each at most `max_bytes`: prompt, solution and tests.
///
/// # Errors
/// As of [`read::records`].
pub fn texts(dir: &Path, max_bytes: usize) -> Result<Vec<LanguageSample>> {
    let mut samples = Vec::new();
    for (name, path) in read::files(dir)? {
        let Some(language) = language(&name) else { continue };
        let mut texts = Vec::new();
        let mut left = max_bytes;
        for (_, record) in read::records::<Record>(&path)? {
            let prompt = if record.signature.is_some() { joined(record.prompt) } else { String::new() };
            let text = format!("{prompt}{}\n{}", record.canonical_solution, record.test.unwrap_or_default());
            let Some(rest) = left.checked_sub(text.len()) else { break };
            left = rest;
            texts.push(text);
        }
        samples.push(LanguageSample { language: language.name().to_owned(), texts, ..LanguageSample::default() });
    }
    samples.retain(|sample| !sample.texts.is_empty());
    Ok(samples)
}

/// The questions of the folder `dir`, of its files `LANGUAGE.jsonl.gz`; languages that we do not know are left out.
///
/// # Errors
/// As of [`read::records`].
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (name, path) in read::files(dir)? {
        let Some(language) = language(&name) else { continue };
        for (_, record) in read::records::<Record>(&path)? {
            let Record { task_id: id, prompt, canonical_solution: text, signature, test } = record;
            let tests = test.map(|test| format!("\n{test}"));
            let prompt = if signature.is_some() { joined(prompt) } else { String::new() };
            questions.extend(derive::lines(language, &Solution { id, prompt, text, tests }, LINES_PER_SOLUTION));
        }
    }
    Ok(questions)
}

/// The data strips the newline between a signature and its body.
fn joined(prompt: String) -> String {
    if prompt.ends_with('\n') { prompt } else { prompt + "\n" }
}

/// The language of a file: `Common_Lisp`, `CPP`, `Shell`.
fn language(name: &str) -> Option<LanguageId> {
    let plain = name.to_lowercase().replace('_', "");
    LanguageId::by_name(&plain)
        .or_else(|| LanguageId::by_lsp_id(&plain))
        .or_else(|| LanguageId::by_linguist_name(&name.replace('_', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_the_names_of_their_languages() {
        for (name, expected) in
            [("CPP", "cpp"), ("Common_Lisp", "commonlisp"), ("Shell", "bash"), ("Csharp", "csharp"), ("Julia", "julia")]
        {
            assert_eq!(language(name).map(LanguageId::name), Some(expected));
        }
        assert_eq!(language("Klingon"), None);
    }
}
