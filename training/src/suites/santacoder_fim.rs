//! SantaCoder's fill-in-the-middle task (Ben Allal et al. 2023, arXiv 2301.03988, §4.1): a line of a solution of HumanEval in three languages.
//!
//! Prompt and suffix are given as the data has them, most without the newline at the hole: a model has to write it. The line counts when it
//! is right but for white space at its ends.

use std::path::Path;

use anyhow::{Result, anyhow};
use multicoder_grammars::LanguageId;
use serde::Deserialize;

use super::question::{Ending, Question};
use super::read;

const FILE: &str = "santacoder-fim-task.jsonl.gz";

#[derive(Deserialize)]
struct Record {
    name: String,
    language: String,
    prompt: String,
    suffix: String,
    canonical_solution: String,
}

/// The questions of the folder `dir`.
///
/// # Errors
/// As of [`read::records`]; a language that is no file's ending.
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let records = read::records::<Record>(&dir.join(FILE))?;
    records.into_iter().map(|(place, record)| question(&place, record)).collect()
}

fn question(place: &str, record: Record) -> Result<Question> {
    let language = LanguageId::by_extension(&record.language)
        .ok_or_else(|| anyhow!("{place}: language `{}`: expected py, js or java", record.language))?;
    Ok(Question {
        id: format!("{}/{}", record.language, record.name),
        language: language.name(),
        setting: "single line",
        prefix: record.prompt,
        suffix: record.suffix,
        fragments: Vec::new(),
        truth: record.canonical_solution,
        ending: Ending::FirstLine,
        tests: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::pack;
    use super::*;
    use serde_json::json;

    fn record(language: &str) -> serde_json::Value {
        json!({"name": "HumanEval_0-L1", "language": language, "prompt": "int f() {\n  int x = 1;",
               "suffix": "  return x;\n}", "canonical_solution": "  x++;", "tests": ""})
    }

    #[test]
    fn a_record_becomes_a_question_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        pack(dir.path(), "santacoder-fim-task", &[record("java"), record("py")]);
        let questions = questions(dir.path()).unwrap();
        assert_eq!(questions.iter().map(|question| question.language).collect::<Vec<_>>(), ["java", "python"]);
        assert_ne!(questions[0].id, questions[1].id);
        assert_eq!((questions[0].truth.as_str(), &questions[0].ending), ("  x++;", &Ending::FirstLine));
    }

    #[test]
    fn an_unknown_language_is_an_error_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        pack(dir.path(), "santacoder-fim-task", &[record("java"), record("q#")]);
        let error = questions(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("`q#`"), "{error}");
    }
}
