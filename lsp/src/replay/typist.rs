//! Someone who types a text that is known: the document, the caret, and what is still to be typed.

use std::collections::VecDeque;

use anyhow::ensure;
use multicoder_model::mix;
use ropey::Rope;
use serde_json::{Value, json};

/// The most characters that are taken out of a place.
const STRETCH_CHARS: usize = 400;
/// A file is at least this long.
const MIN_CHARS: usize = 200;

/// A change of the document, by UTF-8 positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    pub start: Value,
    pub end: Value,
    pub text: String,
}

/// A stream of numbers that a seed decides.
#[derive(Clone, Debug)]
pub(super) struct Draw {
    seed: u64,
    n_drawn: u64,
}

impl Draw {
    pub(super) fn new(seed: u64) -> Draw {
        Draw { seed, n_drawn: 0 }
    }

    fn below(&mut self, n: usize) -> usize {
        self.n_drawn += 1;
        (mix(self.seed, self.n_drawn) % n.max(1) as u64) as usize
    }

    /// Below 100.
    pub(super) fn percent(&mut self) -> u64 {
        self.below(100) as u64
    }
}

/// A document that is typed into.
#[derive(Debug)]
pub struct Typist {
    pub uri: String,
    rope: Rope,
    caret_char: usize,
    /// Taken out of the file, to be typed at the caret.
    rest: VecDeque<char>,
    /// Typed here since the last jump.
    n_typed: usize,
    draw: Draw,
}

impl Typist {
    /// Before a stretch that was taken out of `text`, at a place that `seed` decides.
    ///
    /// # Errors
    /// A text that is too short.
    pub fn new(uri: &str, text: &str, seed: u64) -> anyhow::Result<Typist> {
        let rope = Rope::from_str(&text.replace("\r\n", "\n"));
        let n_chars = rope.len_chars();
        ensure!(n_chars >= MIN_CHARS, "{uri}: {n_chars} characters; expected a text of {MIN_CHARS} at least");
        let draw = Draw::new(seed ^ n_chars as u64);
        let mut typist = Typist { uri: uri.to_owned(), rope, caret_char: 0, rest: VecDeque::new(), n_typed: 0, draw };
        typist.jump();
        Ok(typist)
    }

    pub fn text(&self) -> String {
        self.rope.to_string()
    }

    /// The caret, as the protocol has it.
    pub fn position(&self) -> Value {
        self.position_of(self.caret_char)
    }

    pub fn has_more(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Whether something was typed here that can be taken back.
    pub fn has_typed(&self) -> bool {
        self.n_typed > 0
    }

    /// Whether `text` is what comes next.
    pub fn goes_on_with(&self, text: &str) -> bool {
        !text.is_empty() && text.chars().eq(self.rest.iter().copied().take(text.chars().count()))
    }

    /// Types the next `n` characters.
    pub fn type_next(&mut self, n: usize) -> Vec<Edit> {
        let text: String = self.rest.drain(..n.min(self.rest.len())).collect();
        let n_chars = text.chars().count();
        let edit = self.replace(self.caret_char, 0, &text);
        (self.caret_char, self.n_typed) = (self.caret_char + n_chars, self.n_typed + n_chars);
        vec![edit]
    }

    /// Takes back up to `n` characters that were typed here.
    pub fn untype(&mut self, n: usize) -> Vec<Edit> {
        let n = n.min(self.n_typed);
        let start = self.caret_char - n;
        let taken: Vec<char> = self.rope.slice(start..self.caret_char).chars().collect();
        taken.into_iter().rev().for_each(|c| self.rest.push_front(c));
        let edit = self.replace(start, n, "");
        (self.caret_char, self.n_typed) = (start, self.n_typed - n);
        vec![edit]
    }

    /// Puts back what was still to be typed, and takes out a stretch elsewhere.
    pub fn jump(&mut self) -> Vec<Edit> {
        let text: String = self.rest.drain(..).collect();
        let back = self.replace(self.caret_char, 0, &text);
        let n_lines = self.rope.len_lines();
        let line = n_lines / 8 + self.draw.below((n_lines * 3 / 4).max(1));
        let start = self.rope.line_to_char(line.min(n_lines - 1)).min(self.rope.len_chars() - MIN_CHARS / 2);
        let n = STRETCH_CHARS.min(self.rope.len_chars() - start);
        self.rest = self.rope.slice(start..start + n).chars().collect();
        let out = self.replace(start, n, "");
        (self.caret_char, self.n_typed) = (start, 0);
        vec![back, out]
    }

    fn replace(&mut self, start: usize, n_chars: usize, text: &str) -> Edit {
        let edit =
            Edit { start: self.position_of(start), end: self.position_of(start + n_chars), text: text.to_owned() };
        self.rope.remove(start..start + n_chars);
        self.rope.insert(start, text);
        edit
    }

    fn position_of(&self, char_idx: usize) -> Value {
        let line = self.rope.char_to_line(char_idx);
        let character = self.rope.char_to_byte(char_idx) - self.rope.line_to_byte(line);
        json!({"line": line, "character": character})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_and_taken_back_and_left_alone_is_the_text_again() {
        let text: String = (0..60).map(|n| format!("naïve_{n} = {n}\n")).collect();
        let mut typist = Typist::new("file:///a.py", &text, 7).unwrap();
        let whole = |typist: &Typist| {
            let (before, after) = (typist.rope.slice(..typist.caret_char), typist.rope.slice(typist.caret_char..));
            format!("{before}{}{after}", typist.rest.iter().collect::<String>())
        };
        assert!(typist.has_more() && typist.text().len() < text.len());
        let mut draw = Draw::new(3);
        for _ in 0..400 {
            match draw.percent() {
                0..60 => typist.type_next(1 + draw.below(5)),
                60..90 => typist.untype(draw.below(6)),
                _ => typist.jump(),
            };
            assert_eq!(whole(&typist), text);
        }
    }

    #[test]
    fn positions_count_bytes_and_short_texts_are_refused() {
        let text = "größe = 1\n".repeat(40);
        let mut typist = Typist::new("file:///a.py", &text, 1).unwrap();
        let before = typist.position()["character"].as_u64().unwrap();
        let edits = typist.type_next(3);
        assert_eq!(typist.position()["character"].as_u64().unwrap() - before, edits[0].text.len() as u64);
        assert!(typist.goes_on_with(&typist.rest.iter().take(4).collect::<String>()));
        assert!(!typist.goes_on_with("") && !typist.goes_on_with("elsewhere"));
        let error = Typist::new("file:///a.py", "x = 1\n", 1).unwrap_err().to_string();
        assert!(error.contains("6 characters"), "{error}");
    }
}
