//! CrossCodeEval (Ding et al. 2023, arXiv 2310.11248): the rest of a statement that uses a name of another file.
//!
//! Settings: `in file`, the text before the caret alone; `retrieved`, with the fragments that the benchmark's BM25 search found with the
//! answer known; `retrieved, infill`, with the text after the hole too, as an editor has it.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use super::question::{Ending, Fragment, Question};
use super::read;

#[derive(Deserialize)]
struct Record {
    prompt: String,
    groundtruth: String,
    right_context: String,
    metadata: Metadata,
    crossfile_context: CrossFile,
}

#[derive(Deserialize)]
struct Metadata {
    task_id: String,
}

#[derive(Deserialize)]
struct CrossFile {
    /// Best first.
    list: Vec<Retrieved>,
}

#[derive(Deserialize)]
struct Retrieved {
    retrieved_chunk: String,
    filename: String,
}

/// The questions of the folder `dir`.
///
/// # Errors
/// As of [`read::records`].
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (name, path) in read::files(dir)? {
        for (n, (_, record)) in read::records::<Record>(&path)?.into_iter().enumerate() {
            questions.extend(settings(&format!("{name}/{n}"), record));
        }
    }
    Ok(questions)
}

fn settings(place: &str, record: Record) -> [Question; 3] {
    let fragment = |found: &Retrieved| Fragment { path: found.filename.clone(), text: found.retrieved_chunk.clone() };
    let fragments: Vec<Fragment> = record.crossfile_context.list.iter().rev().map(fragment).collect();
    let question = |setting, fragments: &[Fragment], suffix: &str| Question {
        // One task is asked about at several places.
        id: format!("{} {place}", record.metadata.task_id),
        language: "python",
        setting,
        prefix: record.prompt.clone(),
        suffix: suffix.to_owned(),
        fragments: fragments.to_vec(),
        truth: record.groundtruth.clone(),
        ending: Ending::CaretLine,
        tests: None,
    };
    [
        question("in file", &[], ""),
        question("retrieved", &fragments, ""),
        question("retrieved, infill", &fragments, &record.right_context),
    ]
}

/// Equality as the benchmark's `eval_metric.py` has it: without comments, line by line, white space at the ends of lines and blank lines
/// left out.
pub fn is_exact(predicted: &str, truth: &str) -> bool {
    let code =
        |line: &str| line.split('#').next().and_then(|line| line.split("//").next()).map(str::trim).map(str::to_owned);
    let lines = |text: &str| text.lines().filter_map(code).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    lines(predicted) == lines(truth)
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::pack;
    use super::*;
    use serde_json::json;

    #[test]
    fn equality_is_that_of_the_published_scorer() {
        assert!(is_exact("f(a, b)  # sum", "f(a, b)"));
        assert!(is_exact("  f(a,\n\n     b)", "f(a,\nb)"));
        assert!(!is_exact("f(a,b)", "f(a, b)"));
        // It cuts comments wherever their signs stand, floor divisions and strings too.
        assert!(is_exact("x // 2", "x // 3"));
    }

    #[test]
    fn the_best_fragment_comes_last_and_only_where_it_may_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let found = |name: &str| json!({"retrieved_chunk": format!("text of {name}"), "filename": name, "score": 1.0});
        let record = json!({
            "prompt": "a.", "groundtruth": "b()", "right_context": "\nc\n", "metadata": {"task_id": "python/1"},
            "crossfile_context": {"text": "", "list": [found("best.py"), found("second.py")]},
        });
        pack(dir.path(), "python", &[record.clone(), record]);
        let questions = questions(dir.path()).unwrap();
        assert_eq!(questions.len(), 6);
        let paths = |n: usize| questions[n].fragments.iter().map(|fragment| fragment.path.as_str()).collect::<Vec<_>>();
        assert_eq!((paths(0), paths(1)), (vec![], vec!["second.py", "best.py"]));
        assert_eq!((questions[1].suffix.as_str(), questions[2].suffix.as_str()), ("", "\nc\n"));
        assert_ne!(questions[0].id, questions[3].id);
    }
}
