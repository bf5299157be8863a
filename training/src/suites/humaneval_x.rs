//! HumanEval-X (Zheng et al. 2023, arXiv 2303.17568): hand-written solutions in six languages, of which lines are asked.

use std::path::Path;

use anyhow::{Result, anyhow};
use multicoder_grammars::LanguageId;
use serde::Deserialize;

use super::derive::{self, LINES_PER_SOLUTION, Solution};
use super::question::Question;
use super::read;

#[derive(Deserialize)]
struct Record {
    task_id: String,
    prompt: String,
    canonical_solution: String,
    test: String,
}

/// The questions of the folder `dir`, of its files `humaneval_LANGUAGE.jsonl.gz`.
///
/// # Errors
/// As of [`read::records`]; a file of no known language.
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (name, path) in read::files(dir)? {
        let language = name.strip_prefix("humaneval_").and_then(LanguageId::by_lsp_id);
        let language = language.ok_or_else(|| anyhow!("{}: expected humaneval_LANGUAGE", path.display()))?;
        for (_, record) in read::records::<Record>(&path)? {
            let Record { task_id: id, prompt, canonical_solution: text, test } = record;
            let tests = Some(format!("\n{test}"));
            questions.extend(derive::lines(language, &Solution { id, prompt, text, tests }, LINES_PER_SOLUTION));
        }
    }
    Ok(questions)
}
