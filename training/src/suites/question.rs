//! A question: text on both sides of a caret, the right text between them, and where an answer ends.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A piece of another file that the asked may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Path inside the project.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// As the data names it; with [`Question::setting`] it is unique in its suite.
    pub id: String,
    /// Name as in `multicoder_grammars::LANGUAGES`.
    pub language: &'static str,
    /// Which of the suite's ways of asking this is; scores are apart for each.
    pub setting: &'static str,
    /// Text before the caret.
    pub prefix: String,
    /// Text after the hole; empty where it is not to be seen.
    pub suffix: String,
    /// Of other files, the most useful one last.
    pub fragments: Vec<Fragment>,
    /// What stood between prefix and suffix; empty where nobody knows, and only tests tell.
    pub truth: String,
    /// Where an answer ends.
    pub ending: Ending,
    /// What makes a program of it; none where there is nothing.
    pub tests: Option<Tests>,
}

/// Tests of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tests {
    /// Text after the suffix, with which the program fails if the answer is wrong.
    pub text: String,
    /// A program without a solution; where it passes, the tests test nothing.
    pub empty: Option<String>,
    /// A program that passes where tests can be run; none for the one with the right answer.
    pub right: Option<String>,
}

/// Where an answer ends; the same for every model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With the line that the caret stands in.
    CaretLine,
    /// With its first line that is not blank.
    FirstLine,
    /// Where the model ends it.
    Text,
    /// After the first `;` or `}`, or before the first `{`, that white space parts from the rest: where CodeXGLUE ends a line of Java.
    Statement,
    /// Before the first of these texts.
    Before(Vec<String>),
}

impl Ending {
    /// Whether an answer that has come to `text` needs no more.
    pub fn is_enough(&self, text: &[u8]) -> bool {
        match self {
            Ending::CaretLine => text.contains(&b'\n'),
            Ending::FirstLine => {
                let begins = text.iter().position(|byte| !byte.is_ascii_whitespace());
                begins.is_some_and(|at| text[at..].contains(&b'\n'))
            }
            Ending::Text => false,
            Ending::Statement => statement_end(text).is_some(),
            Ending::Before(stops) => {
                stops.iter().any(|stop| text.windows(stop.len().max(1)).any(|window| window == stop.as_bytes()))
            }
        }
    }

    /// The answer within `text`.
    pub fn cut<'a>(&self, text: &'a str) -> &'a str {
        match self {
            Ending::CaretLine => text.split('\n').next().unwrap_or_default(),
            Ending::FirstLine => {
                let begins = text.find(|c: char| !c.is_whitespace()).unwrap_or(text.len());
                text[begins..].find('\n').map_or(text, |end| &text[..begins + end])
            }
            Ending::Text => text,
            Ending::Statement => {
                let end = statement_end(text.as_bytes()).map(|end| end + usize::from(text.as_bytes()[end] != b'{'));
                &text[..end.unwrap_or(text.len())]
            }
            Ending::Before(stops) => {
                let end = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
                &text[..end.unwrap_or(text.len())]
            }
        }
    }
}

/// Where the sign stands that ends a statement.
fn statement_end(text: &[u8]) -> Option<usize> {
    let is_blank = |at: Option<&u8>| at.is_none_or(u8::is_ascii_whitespace);
    let is_apart = |at: usize| is_blank(at.checked_sub(1).map(|before| &text[before])) && is_blank(text.get(at + 1));
    (0..text.len()).find(|&at| b";{}".contains(&text[at]) && is_apart(at))
}

/// The settings of questions, in their order.
pub fn settings(questions: &[Question]) -> Vec<&'static str> {
    let mut settings = Vec::new();
    for question in questions {
        if !settings.contains(&question.setting) {
            settings.push(question.setting);
        }
    }
    settings
}

/// At most `limit` questions of each language in each setting, those that `seed` ranks first, in the order given.
pub fn limited(questions: Vec<Question>, limit: Option<usize>, seed: u64) -> Vec<Question> {
    let Some(limit) = limit else { return questions };
    let mut ranks: BTreeMap<(&str, &str), Vec<(u64, usize)>> = BTreeMap::new();
    for (at, question) in questions.iter().enumerate() {
        let rank = xxh3_64_with_seed(question.id.as_bytes(), seed);
        ranks.entry((question.setting, question.language)).or_default().push((rank, at));
    }
    let mut is_kept = vec![false; questions.len()];
    for mut group in ranks.into_values() {
        group.sort_unstable();
        group.into_iter().take(limit).for_each(|(_, at)| is_kept[at] = true);
    }
    questions.into_iter().zip(is_kept).filter_map(|(question, kept)| kept.then_some(question)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::suites) fn question(id: &str, language: &'static str, setting: &'static str) -> Question {
        Question {
            id: id.to_owned(),
            language,
            setting,
            prefix: "x = ".to_owned(),
            suffix: String::new(),
            fragments: Vec::new(),
            truth: "1".to_owned(),
            ending: Ending::CaretLine,
            tests: None,
        }
    }

    #[test]
    fn an_answer_ends_where_its_kind_says() {
        let stops = || Ending::Before(vec!["\ndef".to_owned(), "\n}".to_owned()]);
        for (ending, text, enough, cut) in [
            (Ending::CaretLine, "a + b", false, "a + b"),
            (Ending::CaretLine, "\n    a\n", true, ""),
            (Ending::FirstLine, "\n    a", false, "\n    a"),
            (Ending::FirstLine, "\n    a\nb\n", true, "\n    a"),
            (Ending::FirstLine, "\n \n", false, "\n \n"),
            (Ending::Text, "a\nb\n", false, "a\nb\n"),
            (stops(), "  a\n}\ndef", true, "  a"),
            (stops(), "  a\n  }", false, "  a\n  }"),
        ] {
            assert_eq!((ending.is_enough(text.as_bytes()), ending.cut(text)), (enough, cut), "{ending:?} {text:?}");
        }
    }

    #[test]
    fn a_limit_holds_for_each_language_in_each_setting_and_the_same_ids_are_asked_in_both() {
        let mut questions = Vec::new();
        for setting in ["infill", "left to right"] {
            for language in ["lua", "r"] {
                questions.extend((0..20).map(|n| question(&format!("{language}/{n}"), language, setting)));
            }
        }
        let few = limited(questions.clone(), Some(5), 1);
        let ids = |setting: &str| -> Vec<&str> {
            few.iter().filter(|question| question.setting == setting).map(|question| question.id.as_str()).collect()
        };
        assert_eq!((few.len(), ids("infill")), (20, ids("left to right")));
        assert_ne!(limited(questions.clone(), Some(5), 2), few);
        assert_eq!(limited(questions.clone(), Some(100), 1), questions);
    }
}
