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
    /// With what the prompt lacks in some languages: imports and the head of the function.
    declaration: String,
    canonical_solution: String,
    test: String,
    /// In Go: the package and what the tests import, which stands before everything.
    #[serde(default)]
    test_setup: String,
}

/// The questions of the folder `dir`, of its files `humaneval_*.jsonl.gz`, which are named by language.
///
/// # Errors
/// As of [`read::records`]; a file of no known language.
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (name, path) in read::files(dir)? {
        let language = name.strip_prefix("humaneval_").and_then(LanguageId::by_lsp_id);
        let language = language.ok_or_else(|| anyhow!("{}: expected a language after `humaneval_`", path.display()))?;
        for (_, record) in read::records::<Record>(&path)? {
            let Record { task_id: id, prompt, declaration, canonical_solution: text, test, test_setup } = record;
            let prompt = test_setup + &with_head(prompt, &declaration);
            let tests = Some(format!("\n{test}"));
            questions.extend(derive::lines(language, &Solution { id, prompt, text, tests }, LINES_PER_SOLUTION));
        }
    }
    Ok(questions)
}

/// The prompt, and after it the declaration where the prompt does not hold the last line of it, the head of the function.
fn with_head(prompt: String, declaration: &str) -> String {
    let head = declaration.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    if prompt.contains(head) { prompt } else { prompt + declaration }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::read::tests::pack;
    use super::*;

    #[test]
    fn what_the_tests_import_stands_before_the_prompt() {
        let dir = tempfile::tempdir().unwrap();
        let record = json!({
            "task_id": "Go/0", "prompt": "func Add(a int) int {\n", "declaration": "func Add(a int) int {\n",
            "canonical_solution": "    return a + 1\n}\n", "test": "func TestAdd(t *testing.T) {}\n",
            "test_setup": "package main\n\nimport \"testing\"\n",
        });
        pack(dir.path(), "humaneval_go", &[record]);
        let questions = questions(dir.path()).unwrap();
        assert_eq!(questions[0].prefix, "package main\n\nimport \"testing\"\nfunc Add(a int) int {\n");
    }

    #[test]
    fn a_prompt_without_the_head_of_its_function_gets_it() {
        let rust = with_head("/* Adds. */\n".to_owned(), "use md5;\n\nfn add(a: u8) -> u8 {\n\n");
        assert_eq!(rust, "/* Adds. */\nuse md5;\n\nfn add(a: u8) -> u8 {\n\n");
        let python = "import os\n\ndef add(a):\n    \"\"\" Adds. \"\"\"\n";
        assert_eq!(with_head(python.to_owned(), "import os\n\ndef add(a):\n"), python);
    }
}
