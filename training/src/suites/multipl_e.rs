//! MultiPL-E (Cassano et al. 2023, arXiv 2208.08227): functions of HumanEval to be written in some twenty languages.
//!
//! The data has prompts and tests but no solutions. `function` asks for the function's body, which its tests judge; `signature` for the
//! line that the prompt declares the function by, between its description and its tests.

use std::path::Path;

use anyhow::Result;
use multicoder_grammars::LanguageId;
use serde::Deserialize;

use super::question::{Ending, Question, Tests};
use super::read;
use crate::evaluate::sample::is_code;

#[derive(Deserialize)]
struct Record {
    /// As `HumanEval_23_strlen`.
    name: String,
    prompt: String,
    tests: String,
    stop_tokens: Vec<String>,
}

/// By language, a program that passes where the libraries of its tests are.
const LIBRARIES: &[(&str, &str)] = &[
    ("bash", "true"),
    ("cpp", "#include <bits/stdc++.h>\nint main() {}"),
    ("go", "package a_test\nimport \"testing\"\nfunc TestA(t *testing.T) {}"),
    (
        "java",
        "import org.javatuples.*;\nclass Problem { public static void main(String[] args) { new Pair<>(1, 2); } }",
    ),
    ("javascript", "require('node:assert')"),
    ("lua", "require('luaunit')"),
    ("perl", "use Test::Deep;"),
    ("php", "<?php"),
    ("python", "pass"),
    ("r", "TRUE"),
    ("ruby", "require 'test/unit'"),
    ("rust", "fn main() {}"),
];

/// The questions of the folder `dir`, of its files `humaneval-LANGUAGE-reworded.jsonl.gz`; languages that we do not know are left out.
///
/// # Errors
/// As of [`read::records`].
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (name, path) in read::files(dir)? {
        let told = name.strip_prefix("humaneval-").and_then(|name| name.strip_suffix("-reworded"));
        let Some(told) = told else { continue };
        let Some(language) = LanguageId::by_lsp_id(told).or_else(|| LanguageId::by_extension(told)) else { continue };
        for (_, record) in read::records::<Record>(&path)? {
            questions.push(function(language, &record));
            questions.extend(signature(language, &record));
        }
    }
    Ok(questions)
}

fn function(language: LanguageId, record: &Record) -> Question {
    let libraries = LIBRARIES.iter().find(|(name, _)| *name == language.name()).map_or("", |(_, program)| program);
    let mut stops = record.stop_tokens.clone();
    // What follows would be no program, and its tests would pass.
    stops.extend((language.name() == "php").then(|| "?>".to_owned()));
    Question {
        id: record.name.clone(),
        language: language.name(),
        setting: "function",
        prefix: record.prompt.clone(),
        suffix: String::new(),
        fragments: Vec::new(),
        truth: String::new(),
        ending: Ending::Before(stops),
        tests: Some(Tests { text: format!("\n{}", record.tests), empty: None, right: Some(libraries.to_owned()) }),
    }
}

/// None where no line of the prompt, comments apart, names the function.
fn signature(language: LanguageId, record: &Record) -> Option<Question> {
    let prompt = &record.prompt;
    // Languages spell the name in their own ways: choose_num, chooseNum, choose-num.
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let name = plain(record.name.splitn(3, '_').nth(2)?);
    let mut start = 0;
    let mut found = None;
    for line in prompt.split_inclusive('\n') {
        let body = line.trim_end_matches('\n');
        let is_call = body.trim_start().starts_with(">>>");
        if is_code(body, language.row().line_comment) && !is_call && plain(body).contains(&name) {
            found = Some(start..start + body.len());
            // Python describes a function within it, all others before it.
            if body.starts_with("def ") && body.ends_with(':') {
                break;
            }
        }
        start += line.len();
    }
    let line = found?;
    Some(Question {
        id: record.name.clone(),
        language: language.name(),
        setting: "signature",
        prefix: prompt[..line.start].to_owned(),
        suffix: format!("{}\n{}", &prompt[line.end..], record.tests),
        fragments: Vec::new(),
        truth: prompt[line].to_owned(),
        ending: Ending::FirstLine,
        tests: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::Checker;
    use super::super::read::tests::pack;
    use super::super::sandbox::tests::sandbox_or_skip;
    use super::*;
    use serde_json::json;

    fn asked(file: &str, prompt: &str) -> Vec<Question> {
        let dir = tempfile::tempdir().unwrap();
        let record =
            json!({"name": "HumanEval_0_choose_num", "prompt": prompt, "tests": "check()\n", "stop_tokens": ["\n}"]});
        pack(dir.path(), file, &[record]);
        questions(dir.path()).unwrap()
    }

    #[test]
    fn the_signature_is_the_line_of_the_prompt_that_declares_the_function() {
        for (file, prompt, truth) in [
            (
                "humaneval-js-reworded",
                "// Chooses.\n// >>> choose_num(1, 2)\nfunction choose_num(x, y){\n",
                "function choose_num(x, y){",
            ),
            (
                "humaneval-py-reworded",
                "import os\n\ndef choose_num(x):\n    \"\"\"Chooses.\n    >>> choose_num(1, 2)\n    \"\"\"\n",
                "def choose_num(x):",
            ),
            (
                "humaneval-ml-reworded",
                "(** Chooses.\n * >>> choose_num 1 2\n*)\nlet choose_num (x : int) : int =",
                "let choose_num (x : int) : int =",
            ),
            (
                "humaneval-java-reworded",
                "class Problem {\n    // Chooses.\n    public static long chooseNum(long x) {\n",
                "    public static long chooseNum(long x) {",
            ),
            (
                "humaneval-elixir-reworded",
                "def candidate(x), do: choose_num(x)\n  def choose_num(x) do\n    ",
                "  def choose_num(x) do",
            ),
        ] {
            let questions = asked(file, prompt);
            let signature = questions.iter().find(|of| of.setting == "signature").expect(file);
            let Question { prefix, suffix, .. } = signature;
            assert_eq!(signature.truth, truth, "{file}");
            assert_eq!(format!("{prefix}{truth}{suffix}"), format!("{prompt}\ncheck()\n"), "{file}");
        }
    }

    #[test]
    fn a_function_ends_before_a_stop_and_is_judged_by_its_tests() {
        let questions = asked("humaneval-js-reworded", "function choose_num(x){\n");
        let function = &questions[0];
        assert_eq!((function.setting, function.truth.as_str()), ("function", ""));
        assert_eq!(function.ending.cut("  return x;\n}\nmore"), "  return x;");
        assert_eq!(function.tests.as_ref().unwrap().text, "\ncheck()\n");
        assert_eq!(asked("humaneval-php-reworded", "<?php")[0].ending.cut("return 1;\n} ?>"), "return 1;");
        assert!(asked("humaneval-php-keep", "<?php").is_empty() && asked("mbpp-php-reworded", "<?php").is_empty());
        assert!(asked("humaneval-klingon-reworded", "x").is_empty());
    }

    #[test]
    fn a_right_function_passes_and_a_wrong_one_fails_where_there_is_something_to_run_it() {
        if sandbox_or_skip().is_none() {
            return;
        }
        let mut checker = Checker::open().unwrap();
        // As in the data: the tests close what the prompt opens, or stand after it.
        for (file, prompt, tests, right) in [
            ("py", "def choose_num(x):\n", "assert choose_num(1) == 2\n", "    return x + 1"),
            ("sh", "choose_num() {\n", "}\nset -e\n[[ $(choose_num 1) = 2 ]]\n", "    echo $(($1 + 1))"),
            (
                "js",
                "function choose_num(x){\n",
                "require('node:assert').deepEqual(choose_num(1), 2);\n",
                "  return x + 1;\n}",
            ),
            ("cpp", "long choose_num(long x) {\n", "}\nint main() { return choose_num(1) != 2; }\n", "  return x + 1;"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let record = json!({"name": "HumanEval_0_choose_num", "prompt": prompt, "tests": tests, "stop_tokens": []});
            pack(dir.path(), &format!("humaneval-{file}-reworded"), &[record]);
            let function = questions(dir.path()).unwrap().remove(0);
            if checker.toolchain(function.language).unwrap().is_some() {
                assert_eq!(checker.passes(&function, right).unwrap(), Some(true), "{file}");
                assert_eq!(checker.passes(&function, "    return 7").unwrap(), Some(false), "{file}");
            }
        }
    }

    #[test]
    fn every_program_that_looks_for_libraries_has_a_toolchain() {
        for (language, _) in LIBRARIES {
            assert!(crate::suites::toolchain::Toolchain::of(language).is_some(), "{language}");
        }
    }
}
