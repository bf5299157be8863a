//! Carets in lines of held-out packages, as an editor has them: how far the model's probability of its answer can be trusted.

use anyhow::Result;
use multicoder_grammars::LanguageId;

use super::Packages;
use super::question::{Ending, Question};

/// Lines drawn of a language.
const LINES_PER_LANGUAGE: usize = 400;

/// The questions of the packages: the rest of a line from before a token of it, with the text after the line, and without.
///
/// # Errors
/// Missing or broken shards.
pub fn questions(packages: &Packages<'_>) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for sample in packages.samples(LINES_PER_LANGUAGE)? {
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
