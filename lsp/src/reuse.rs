//! Type-through: who types the beginning of the last answer gets the rest of it, without the model.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::complete::{Answer, Request};
use crate::prompt::with_newlines;

/// Answers that are remembered, over all documents.
const CAPACITY: usize = 16;

struct Entry {
    request: Request,
    answer: Answer,
}

/// The last answers and where they were given.
#[derive(Default)]
pub struct Answers {
    newest_first: Mutex<VecDeque<Entry>>,
}

impl Answers {
    /// Remembers an answer of the model.
    pub fn keep(&self, request: Request, answer: Answer) {
        let mut entries = self.lock();
        entries.push_front(Entry { request, answer });
        entries.truncate(CAPACITY);
    }

    /// What is left of an earlier answer, if since then nothing but its beginning was typed.
    pub fn rest_for(&self, request: &Request) -> Option<Answer> {
        self.lock().iter().find_map(|entry| entry.rest_for(request))
    }

    /// Drops what was answered in a document.
    pub fn forget(&self, document: &str) {
        self.lock().retain(|entry| entry.request.document != document);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.newest_first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn rest_for(&self, request: &Request) -> Option<Answer> {
        let then = &self.request;
        let same_place = then.document == request.document
            && then.language == request.language
            && then.window.suffix == request.window.suffix
            && then.options.max_lines == request.options.max_lines;
        if !same_place || self.answer.probability < request.options.min_probability {
            return None;
        }
        let typed_bytes = request.caret_byte.checked_sub(then.caret_byte)?;
        let (typed, rest) = self.answer.text.split_at_checked(typed_bytes)?;
        let is_inside_line_end = typed.ends_with('\r') && rest.starts_with('\n');
        let before_typed = request.window.prefix.strip_suffix(&with_newlines(typed))?;
        if is_inside_line_end || rest.trim().is_empty() || !same_end(before_typed, &then.window.prefix) {
            return None;
        }
        let mut answer = self.answer.clone();
        answer.text = rest.to_string();
        answer.is_reused = true;
        answer.prefilled_tokens = 0;
        Some(answer)
    }
}

/// Whether two windows that end at the same place show the same text, as far as both reach.
fn same_end(a: &str, b: &str) -> bool {
    if a.len() < b.len() { b.ends_with(a) } else { a.ends_with(b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::complete::{request, run};
    use crate::config::Settings;
    use crate::documents::Snapshot;
    use crate::scripted::Scripted;

    fn request_at(source: &str) -> Request {
        let (prefix, _) = source.split_once('|').unwrap();
        let snapshot = Snapshot::from_file("a.py".into(), &source.replacen('|', "", 1));
        request(&snapshot, prefix.chars().count(), &Settings::standard()).unwrap()
    }

    fn remembered(source: &str, written: &str) -> Answers {
        let first = request_at(source);
        let answer = run(&first, &mut Scripted::always(written), &|| false).unwrap();
        let answers = Answers::default();
        answers.keep(first, answer);
        answers
    }

    #[test]
    fn every_prefix_of_an_answer_gets_the_same_rest() {
        let answers = remembered("x = |\r\ny", "caf\u{e9}(1, 2)\n");
        let text = "caf\u{e9}(1, 2)";
        for (typed_bytes, _) in text.char_indices() {
            let (typed, rest) = text.split_at(typed_bytes);
            let answer = answers.rest_for(&request_at(&format!("x = {typed}|\r\ny"))).unwrap();
            assert_eq!((answer.text.as_str(), answer.is_reused), (rest, true));
        }
        assert!(answers.rest_for(&request_at(&format!("x = {text}|\r\ny"))).is_none(), "nothing is left");
    }

    #[test]
    fn another_text_gets_nothing() {
        let answers = remembered("x = |\ny", "call(1)\n");
        for source in ["x = b|\ny", "x = c|\nz", "z = c|\ny", "x =|\ny", "x = cb|\ny", "x = call(1) |\ny"] {
            assert!(answers.rest_for(&request_at(source)).is_none(), "{source}");
        }
        assert!(answers.rest_for(&request_at("x = c|\ny")).is_some());
    }

    #[test]
    fn going_back_shows_it_again_and_closing_forgets() {
        let answers = remembered("x = |\ny", "call(1)\n");
        let first = request_at("x = |\ny");
        assert_eq!(answers.rest_for(&first).unwrap().text, "call(1)");
        answers.forget(&first.document);
        assert!(answers.rest_for(&first).is_none());
    }

    #[test]
    fn answers_over_lines_with_lone_carriage_returns_are_typed_through() {
        let answers = remembered("f() {|\r}", "\n    g()\n");
        assert_eq!(answers.rest_for(&request_at("f() {\r  |\r}")).unwrap().text, "  g()");
    }

    #[test]
    fn answers_over_lines_are_typed_through_as_well() {
        let answers = remembered("f() {|\r\n}", "\n    g()\n");
        assert_eq!(answers.rest_for(&request_at("f() {\r\n  |\r\n}")).unwrap().text, "  g()");
    }
}
