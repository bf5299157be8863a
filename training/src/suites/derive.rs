//! Questions derived from benchmarks that give a prompt and a whole solution: lines of the solution, one hidden at a time.

use multicoder_grammars::LanguageId;

use super::question::{Ending, Question, Tests};
use crate::evaluate::sample::is_code;
use crate::rng::Rng;

/// Lines asked for of one solution of a benchmark.
pub const LINES_PER_SOLUTION: usize = 4;
/// The setting that shows the text after the line.
const SINGLE_LINE: &str = "single line";
/// Of the draw of lines; fixed, so that the questions of a benchmark are always the same.
const SEED: u64 = 1;

/// A prompt and what follows it.
pub struct Solution {
    /// As the data names it.
    pub id: String,
    /// Text before the solution.
    pub prompt: String,
    /// The right text after the prompt.
    pub text: String,
    /// Text after the solution that makes it a program which fails if it is wrong.
    pub tests: Option<String>,
}

/// Two questions for each of at most `n` lines of code of a solution, drawn at random: with the text after the line (`single line`),
/// and without (`left to right`).
pub fn lines(language: LanguageId, solution: &Solution, n: usize) -> Vec<Question> {
    let Solution { id, prompt, text, tests } = solution;
    let mut lines = Vec::new();
    let mut start = 0;
    for (at, line) in text.split_inclusive('\n').enumerate() {
        let body = line.trim_end_matches('\n');
        // The first line may go on with one of the prompt.
        let is_whole = at > 0 || prompt.ends_with('\n') || prompt.is_empty();
        if is_whole && is_code(body, language.row().line_comment) {
            let mut rng = Rng::keyed(SEED, id, &[at as u64]);
            lines.push((rng.next_u64(), at, start..start + body.len()));
        }
        start += line.len();
    }
    lines.sort_unstable_by_key(|(rank, ..)| *rank);
    lines.truncate(n);
    lines.sort_unstable_by_key(|(_, at, _)| *at);
    let of_line = |(_, at, line): (u64, usize, std::ops::Range<usize>)| {
        [(SINGLE_LINE, &text[line.end..]), ("left to right", "")].map(|(setting, suffix)| Question {
            id: format!("{id} line {}", at + 1),
            language: language.name(),
            setting,
            prefix: format!("{prompt}{}", &text[..line.start]),
            suffix: suffix.to_owned(),
            fragments: Vec::new(),
            truth: text[line.clone()].to_owned(),
            ending: Ending::FirstLine,
            // Without the text after it a line is no program.
            tests: tests.as_ref().filter(|_| setting == SINGLE_LINE).map(|tests| Tests {
                text: tests.clone(),
                empty: Some(format!("{prompt}{tests}")),
                right: None,
            }),
        })
    };
    lines.into_iter().flat_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_truth_and_suffix_of_a_line_are_the_solution() {
        let solution = Solution {
            id: "Lua/1".to_owned(),
            prompt: "function f(a, b)".to_owned(),
            text: " local unasked = 1\n  -- a comment of words\n  local x = a + b\n\n  end\n  return x * 2\nend"
                .to_owned(),
            tests: Some("\nassert(f)".to_owned()),
        };
        let questions = lines(LanguageId::by_name("lua").unwrap(), &solution, LINES_PER_SOLUTION);
        let truths: Vec<&str> = questions.iter().map(|question| question.truth.as_str()).collect();
        assert_eq!(truths, ["  local x = a + b", "  local x = a + b", "  return x * 2", "  return x * 2"]);
        for question in &questions {
            let whole = format!("{}{}", solution.prompt, solution.text);
            let Question { prefix, truth, suffix, .. } = question;
            assert!(whole.starts_with(&format!("{prefix}{truth}")));
            assert_eq!(*suffix == whole[prefix.len() + truth.len()..], question.setting == "single line");
            assert_eq!(question.tests.is_some(), question.setting == "single line");
        }
        let long = Solution { text: "  x = y + z\n".repeat(50), ..solution };
        assert_eq!(lines(LanguageId::by_name("lua").unwrap(), &long, 3).len(), 6);
    }
}
