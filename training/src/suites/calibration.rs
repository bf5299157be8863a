//! Carets in lines of held-out packages, as an editor has them: how far the model's probability of its answer can be trusted.

use anyhow::Result;
use multicoder_grammars::LanguageId;

use super::Packages;
use super::question::{Ending, Question};
use crate::evaluate::sample::{self, SampleOptions};

/// Lines drawn of a language.
const LINES_PER_LANGUAGE: usize = 400;
/// Text that they are drawn from, in bytes.
const BYTES_PER_LANGUAGE: usize = 400_000;

/// The questions of the packages: the rest of a line from before a token of it, with the text after the line, and without.
///
/// # Errors
/// Missing or broken shards.
pub fn questions(packages: &Packages<'_>) -> Result<Vec<Question>> {
    let options = SampleOptions {
        languages: packages.languages,
        max_bytes_per_language: BYTES_PER_LANGUAGE,
        n_lines: LINES_PER_LANGUAGE,
        seed: packages.seed,
    };
    let mut questions = Vec::new();
    for sample in sample::draw(packages.shards, packages.split, &options)? {
        let Some(language) = LanguageId::by_name(&sample.language) else { continue };
        for case in &sample.lines {
            let (before, truth, after) = sample.parts(case);
            questions.extend([("infill", after), ("left to right", "")].map(|(setting, suffix)| Question {
                id: format!("{}/{}:{}", sample.language, case.text, case.caret),
                language: language.name(),
                setting,
                prefix: before.to_owned(),
                suffix: suffix.to_owned(),
                fragments: Vec::new(),
                truth: truth.to_owned(),
                ending: Ending::CaretLine,
                tests: None,
            }));
        }
    }
    Ok(questions)
}
