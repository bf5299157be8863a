//! Lines of whole source files in a folder: of this repository's `grammars/samples/`, or of any other. A language is told by a file's ending.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use multicoder_grammars::LanguageId;

use super::derive::{self, Solution};
use super::question::Question;

/// Lines asked for of one file.
const LINES_PER_FILE: usize = 20;

/// The questions of the files in `dir`, by name; files of no known language are left out.
///
/// # Errors
/// A folder or file that cannot be read, or is no UTF-8.
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        paths.push(entry.with_context(|| dir.display().to_string())?.path());
    }
    paths.sort();
    let mut questions = Vec::new();
    for path in paths {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let Some(language) = ending.and_then(LanguageId::by_extension) else { continue };
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        questions.extend(derive::lines(
            language,
            &Solution { id, prompt: String::new(), text, tests: None },
            LINES_PER_FILE,
        ));
    }
    anyhow::ensure!(!questions.is_empty(), "{}: expected source files", dir.display());
    Ok(questions)
}
