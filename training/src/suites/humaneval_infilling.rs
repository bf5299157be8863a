//! HumanEval infilling (Bavarian et al. 2022, arXiv 2207.14255, §3.1): a hidden line, or a random span, of a Python function.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use super::question::{Ending, Question, Tests};
use super::read;

/// Each file, its name as a setting, and where its answers end.
const FILES: [(&str, &str, Ending); 2] = [
    ("HumanEval-SingleLineInfilling.jsonl.gz", "single line", Ending::FirstLine),
    ("HumanEval-RandomSpanInfillingLight.jsonl.gz", "random span", Ending::Text),
];

#[derive(Deserialize)]
struct Record {
    task_id: String,
    prompt: String,
    suffix: String,
    canonical_solution: String,
    test: String,
    entry_point: String,
}

/// The questions of the folder `dir`.
///
/// # Errors
/// As of [`read::records`].
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (file, setting, ending) in &FILES {
        for (_, record) in read::records::<Record>(&dir.join(file))? {
            questions.push(Question {
                id: record.task_id,
                language: "python",
                setting,
                prefix: record.prompt,
                suffix: record.suffix,
                fragments: Vec::new(),
                truth: record.canonical_solution,
                ending: ending.clone(),
                tests: Some(Tests {
                    text: format!("\n{}\ncheck({})\n", record.test, record.entry_point),
                    empty: None,
                    right: None,
                }),
            });
        }
    }
    Ok(questions)
}
