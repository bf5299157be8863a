//! From what the model wrote to what is worth showing: whole lines, no repetition of what stands there, brackets in balance.
//!
//! Everything here is text; the caret's surroundings come as [`Around`]. Line ends are `\n`.

mod brackets;
mod lexis;

use multicoder_grammars::LanguageId;

use crate::completer::Finish;
use crate::reason::Reason;

/// Blank lines that an answer may begin with.
const MAX_LEADING_NEWLINES: usize = 2;

/// The text on both sides of the caret.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    pub prefix: &'a str,
    pub suffix: &'a str,
    /// Tells strings and comments from code.
    pub language: Option<LanguageId>,
}

impl<'a> Around<'a> {
    /// The caret's line up to the caret.
    pub fn line_before(&self) -> &'a str {
        self.prefix.rsplit('\n').next().unwrap_or_default()
    }

    /// The caret's line from the caret on.
    pub fn line_after(&self) -> &'a str {
        self.suffix.split('\n').next().unwrap_or_default()
    }

    /// Whether text stands on the caret's line behind the caret.
    pub fn is_mid_line(&self) -> bool {
        !self.line_after().trim().is_empty()
    }

    /// The next line with text below the caret's, without the blanks around it.
    fn next_line(&self) -> Option<&'a str> {
        self.indented_next_line().map(str::trim)
    }

    fn indented_next_line(&self) -> Option<&'a str> {
        self.suffix.split('\n').skip(1).find(|line| !line.trim().is_empty())
    }

    fn max_lines(&self, wanted: usize) -> usize {
        if self.is_mid_line() { 1 } else { wanted }
    }
}

/// Whether `bytes` hold all the lines that are wanted, so that the model may stop.
pub fn is_enough(bytes: &[u8], around: &Around<'_>, max_lines: usize) -> bool {
    let text = valid_part(bytes);
    let leading = text.len() - text.trim_start_matches(['\n', ' ', '\t']).len();
    let leading_newlines = text[..leading].matches('\n').count();
    if leading_newlines > MAX_LEADING_NEWLINES || around.is_mid_line() && leading_newlines > 0 {
        return true;
    }
    cut_lines(text, around.max_lines(max_lines)).is_some() || is_repetitive(text)
}

/// The part of the answer that is worth showing.
///
/// # Errors
/// Why nothing is.
pub fn trim(bytes: &[u8], finish: Finish, around: &Around<'_>, max_lines: usize) -> Result<String, Reason> {
    let text = without_control(valid_part(bytes));
    if is_repetitive(text.trim()) {
        return Err(Reason::Repetitive);
    }
    let text = whole_lines(text, finish, around, max_lines)?;
    if text.trim().is_empty() {
        return Err(Reason::Empty);
    }
    let text = without_repeated_lines(text, around, max_lines)?;
    let text = brackets::without_overlap(text, around);
    if text.trim().is_empty() {
        return Err(Reason::RepeatsFollowing);
    }
    let text = brackets::balanced(text, around)?;
    let text = if around.line_after().starts_with(char::is_whitespace) || !around.is_mid_line() {
        text.trim_end()
    } else {
        text.trim_end_matches('\n')
    };
    verdict(text, around)?;
    Ok(text.to_string())
}

/// The last word: whether `text`, as it would be inserted, is worth it.
fn verdict(text: &str, around: &Around<'_>) -> Result<(), Reason> {
    let shown = text.trim();
    if shown.is_empty() {
        return Err(Reason::Empty);
    }
    if shown.chars().all(|c| c.is_whitespace() || ")]}>.;,:'\"`".contains(c)) {
        return Err(Reason::OnlyClosers);
    }
    if follows(shown, around) {
        return Err(Reason::RepeatsFollowing);
    }
    if repeats_lines_above(text, around) {
        return Err(Reason::Repetitive);
    }
    Ok(())
}

/// Whether the text behind the caret begins with `shown`, or the line below is what the caret's line would become.
fn follows(shown: &str, around: &Around<'_>) -> bool {
    let behind = around.suffix.trim_start();
    let whole_line = format!("{}{}", around.line_before(), shown.split('\n').next().unwrap_or_default());
    behind.starts_with(shown)
        || !around.is_mid_line() && around.next_line().is_some_and(|next| next == whole_line.trim() || next == shown)
}

fn valid_part(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// The text up to the first character that no source line has.
fn without_control(text: &str) -> &str {
    let end = text.find(|c: char| c == '\u{fffd}' || c.is_control() && c != '\n' && c != '\t').unwrap_or(text.len());
    &text[..end]
}

/// Byte length of the first `n_lines` lines with text, if the last of them is ended by a line break.
fn cut_lines(text: &str, n_lines: usize) -> Option<usize> {
    let mut full = 0;
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        end += line.len();
        full += usize::from(!line.trim().is_empty() && line.ends_with('\n'));
        if full == n_lines {
            return Some(end - 1);
        }
    }
    None
}

fn whole_lines<'t>(text: &'t str, finish: Finish, around: &Around<'_>, max_lines: usize) -> Result<&'t str, Reason> {
    let leading = &text[..text.len() - text.trim_start().len()];
    let leading_newlines = leading.matches('\n').count();
    if leading_newlines > MAX_LEADING_NEWLINES || around.is_mid_line() && leading_newlines > 0 {
        return Err(Reason::Empty);
    }
    if let Some(end) = cut_lines(text, around.max_lines(max_lines)) {
        return Ok(&text[..end]);
    }
    if finish == Finish::EndOfText {
        return Ok(text);
    }
    // The last line is cut off somewhere: the full ones before it may do.
    match text.rfind('\n').map(|end| &text[..end]).filter(|full| !full.trim().is_empty()) {
        Some(full) => Ok(full),
        None if text.trim().is_empty() => Err(Reason::Empty),
        None => Err(Reason::UnfinishedLine),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The answer up to a line that already stands below the caret. In an answer of several lines the indentation counts: the same closing
/// bracket stands at every depth.
fn without_repeated_lines<'t>(text: &'t str, around: &Around<'_>, max_lines: usize) -> Result<&'t str, Reason> {
    let Some(next) = around.indented_next_line().filter(|_| !around.is_mid_line()) else { return Ok(text) };
    let is_next = |line: &str| match max_lines {
        1 => line.trim() == next.trim(),
        _ => line.trim_end() == next.trim_end(),
    };
    let mut end = 0;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let is_repeated = match i {
            0 if line.trim().is_empty() => false,
            0 => is_next(&format!("{}{line}", around.line_before())) || line.trim() == next.trim(),
            _ => is_next(line),
        };
        if is_repeated {
            let kept = text[..end].trim_end();
            return if kept.is_empty() { Err(Reason::RepeatsFollowing) } else { Ok(kept) };
        }
        end += line.len();
    }
    Ok(text)
}

/// Whether the end of `text` is one piece of at most 16 bytes over and over.
fn is_repetitive(text: &str) -> bool {
    const TIMES: usize = 6;
    const LEAST_BYTES: usize = 18;
    let bytes = text.as_bytes();
    (1..=16).any(|period| {
        let run = bytes.iter().rev().zip(bytes.iter().rev().skip(period)).take_while(|(a, b)| a == b).count() + period;
        // Rulers and indentation (`-----`, spaces) are one character over and over, and meant.
        let piece = &bytes[bytes.len().saturating_sub(period)..];
        let says_something = piece.iter().any(|byte| byte.is_ascii_alphanumeric() || *byte != piece[0]);
        run >= LEAST_BYTES.max(period * TIMES) && says_something
    })
}

/// Whether the line that results is the one above it and the one above that, too.
fn repeats_lines_above(text: &str, around: &Around<'_>) -> bool {
    let whole = format!("{}{}{}", around.line_before(), text, around.line_after());
    let mut last = whole.lines().map(str::trim).filter(|line| !line.is_empty());
    let Some(result) = last.next_back().filter(|line| line.chars().any(char::is_alphanumeric)) else { return false };
    let above = around.prefix.rsplit_once('\n').map_or("", |(above, _)| above);
    let mut lines = above.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    [lines.next(), lines.next()].iter().all(|line| *line == Some(result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `source` has the caret as `|`; `written` is what the model wrote.
    fn check(source: &str, written: &str, expected: Result<&str, Reason>) {
        let (prefix, suffix) = source.split_once('|').unwrap();
        let around = Around { prefix, suffix, language: None };
        let answer = trim(written.as_bytes(), Finish::Stopped, &around, 1);
        assert_eq!(answer.as_deref().map_err(|reason| *reason), expected, "{source:?} + {written:?}");
    }

    #[test]
    fn answers_are_whole_lines() {
        check("let x = |", "f(1);\nlet y", Ok("f(1);"));
        check("fn f() {|\n}", "\n    g();\n    h();\n", Ok("\n    g();"));
        check("let x = |", "f(1", Err(Reason::UnfinishedLine));
        check("let x = |", "f(1);  \n", Ok("f(1);"));
        check("|", "\n\n\n\nx\n", Err(Reason::Empty));
        check("|", "   \n\t\n", Err(Reason::Empty));
    }

    #[test]
    fn the_end_of_text_ends_a_line() {
        let around = Around { prefix: "return ", suffix: "\n", language: None };
        assert_eq!(trim(b"x", Finish::EndOfText, &around, 1).as_deref(), Ok("x"));
        assert_eq!(trim(b"x", Finish::Exhausted, &around, 1), Err(Reason::UnfinishedLine));
        assert_eq!(trim(b"a\nb\nc", Finish::Exhausted, &around, 5).as_deref(), Ok("a\nb"));
    }

    #[test]
    fn what_follows_is_not_repeated() {
        check("    |\n    return x\n", "return x\n", Err(Reason::RepeatsFollowing));
        check("    ret|\n    return x\n", "urn x\n", Err(Reason::RepeatsFollowing));
        check("foo(|, b)", ", b)\n", Err(Reason::RepeatsFollowing));
        check("a = |\nb = 2", "1\nb = 2\n", Ok("1"));
        let around = Around { prefix: "x", suffix: "\n\nend\n", language: None };
        assert_eq!(trim(b"(1)\nend\n", Finish::Stopped, &around, 3).as_deref(), Ok("(1)"));
    }

    #[test]
    fn in_answers_of_several_lines_the_indentation_counts() {
        let around = Around { prefix: "fn f() {\n    if a {", suffix: "\n}\n", language: None };
        let answer = trim(b"\n        g();\n    }\n}\n", Finish::Stopped, &around, 3);
        assert_eq!(answer.as_deref(), Ok("\n        g();\n    }"));
        let around = Around { prefix: "    }", suffix: "\n}\n", language: None };
        assert_eq!(trim(b"\n    g();\n", Finish::Stopped, &around, 1).as_deref(), Ok("\n    g();"));
    }

    #[test]
    fn the_rest_of_the_line_is_not_doubled() {
        check("foo(|)", "a, b)\n", Ok("a, b"));
        check("foo(|);", "a);\n", Ok("a"));
        check("foo(|)", "bar()\n", Ok("bar()"));
        check("x = [|] + y", "1, 2] + y\n", Ok("1, 2"));
        check("print(\"|\")", "hello\")\n", Ok("hello"));
        check("if |:", "x > 1:\n", Ok("x > 1"));
    }

    #[test]
    fn brackets_stay_balanced() {
        check("foo(|)", "a) + bar(b\n", Ok("a"));
        check("foo(a, |", "b)\n", Ok("b)"));
        check("x|", " = f(a))\n", Err(Reason::Unbalanced));
        check("x = |", "'a, b)'\n", Ok("'a, b)'"));
        check("items.forEach((x)|)", " => {\n", Err(Reason::Unbalanced));
        check("x = |s.len()", "items\n", Ok("items"));
        check("if (x) |", "{\n", Ok("{"));
    }

    #[test]
    fn closers_alone_are_nothing() {
        check("foo(a|", ");\n", Err(Reason::OnlyClosers));
        check("    |", "}\n", Err(Reason::OnlyClosers));
    }

    #[test]
    fn loops_are_nothing() {
        check("x = |", "ab, ab, ab, ab, ab, ab, ab, ab, \n", Err(Reason::Repetitive));
        check("x = |", "'    '    '    '    '    '    '    '", Err(Reason::Repetitive));
        check("a();\na();\n|", "a();\n", Err(Reason::Repetitive));
        check("// |", "-----------------------------\n", Ok("-----------------------------"));
    }

    #[test]
    fn control_characters_and_broken_utf8_end_the_text() {
        check("x = |", "ab\u{7}c\n", Err(Reason::UnfinishedLine));
        let around = Around { prefix: "", suffix: "", language: None };
        assert_eq!(trim(b"ok\n\xff", Finish::Stopped, &around, 1).as_deref(), Ok("ok"));
    }

    #[test]
    fn the_model_may_stop_at_the_line_end() {
        let end = Around { prefix: "x", suffix: "\ny", language: None };
        assert!(!is_enough(b"abc", &end, 1) && is_enough(b"abc\n", &end, 1));
        assert!(!is_enough(b"\n  ", &end, 1) && is_enough(b"\n  a\n", &end, 1) && is_enough(b"\n\n\n", &end, 1));
        assert!(is_enough(b"a, a, a, a, a, a, a, a, a, ", &end, 1) && !is_enough(b"------------------------", &end, 1));
        assert!(!is_enough(b"a\nb", &end, 2) && is_enough(b"a\nb\n", &end, 2));
        let middle = Around { prefix: "f(", suffix: ")", language: None };
        assert!(is_enough(b"\n", &middle, 4) && is_enough(b"a\n", &middle, 4));
    }

    proptest! {
        #[test]
        fn invariants_hold_for_any_text(
            prefix in "[a(){}\" \n]{0,20}", suffix in "[a(){}\" \n;]{0,20}", written in "[ab(){}\"; \n]{0,20}", max_lines in 1usize..4,
        ) {
            let around = Around { prefix: &prefix, suffix: &suffix, language: None };
            if let Ok(answer) = trim(written.as_bytes(), Finish::EndOfText, &around, max_lines) {
                prop_assert!(!answer.trim().is_empty());
                prop_assert!(!suffix.trim_start().starts_with(answer.trim()), "{:?}", answer);
                let says_something = |c: char| !")]}>.;,:'\"`".contains(c) && !c.is_whitespace();
                prop_assert!(answer.chars().any(says_something));
                prop_assert!(written.starts_with(&answer));
                prop_assert!(!(around.is_mid_line() && answer.contains('\n')));
                prop_assert!(answer.lines().filter(|line| !line.trim().is_empty()).count() <= max_lines);
            }
        }
    }
}
