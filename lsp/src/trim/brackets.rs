//! Brackets around the caret: what an answer may close, and what stands there to close it already.
//!
//! The three kinds are counted apart, so that a stray one spoils only its own kind.

use super::lexis::Lexis;
use super::{Around, is_word};
use crate::reason::Reason;

const PAIRS: [(char, char); 3] = [('(', ')'), ('[', ']'), ('{', '}')];

/// Lines above the caret in which an open bracket is looked for that the rest of a line may close.
const LINES_ABOVE: usize = 40;

/// Where one kind of bracket has no partner: byte offsets.
#[derive(Debug, Default, Eq, PartialEq)]
struct Lone {
    closers: Vec<usize>,
    openers: Vec<usize>,
}

/// The brackets of one kind without partner among the characters of `code`.
fn lone(code: &[(usize, char)], (opener, closer): (char, char)) -> Lone {
    let mut lone = Lone::default();
    for &(at, c) in code {
        if c == opener {
            lone.openers.push(at);
        } else if c == closer && lone.openers.pop().is_none() {
            lone.closers.push(at);
        }
    }
    lone
}

/// `text` without the end that is also the beginning of the rest of the line, unless what is left would miss those brackets itself.
/// Words are never cut in two.
pub(super) fn without_overlap<'t>(text: &'t str, around: &Around<'_>) -> &'t str {
    let rest = around.line_after().trim_end();
    if rest.is_empty() {
        return text;
    }
    let lexis = Lexis::of(around.language);
    let openers = |text: &str| {
        let code = lexis.code_chars(text);
        PAIRS.iter().map(|&pair| lone(&code, pair).openers.len()).sum::<usize>()
    };
    let written = text.trim_end();
    for cut in written.char_indices().map(|(i, _)| i) {
        let (kept, overlap) = written.split_at(cut);
        let begins_rest = rest.strip_prefix(overlap).is_some_and(|after| !joins_words(overlap, after));
        let is_overlap = begins_rest || rest.trim_start() == overlap.trim_start();
        if is_overlap && !joins_words(kept, overlap) && openers(kept) <= openers(written) {
            return kept;
        }
    }
    text
}

/// Whether the place between the two texts is inside a word.
fn joins_words(before: &str, after: &str) -> bool {
    before.chars().next_back().is_some_and(is_word) && after.chars().next().is_some_and(is_word)
}

/// `text` up to the first bracket that would spoil what stands there: a closer with nothing to close, or an opener amid a line that
/// nothing closes. In comments and docstrings everything may stand.
///
/// # Errors
/// `Unbalanced` where that would leave a stump: at the end of a line, and where an operator would come last.
pub(super) fn balanced<'t>(text: &'t str, around: &Around<'_>) -> Result<&'t str, Reason> {
    let lexis = Lexis::of(around.language);
    if lexis.is_in_prose(around.prefix) {
        return Ok(text);
    }
    let Some(end) = first_spoiler(text, around, &lexis) else { return Ok(text) };
    let kept = &text[..end];
    if around.is_mid_line() && !ends_in_operator(kept) { Ok(kept) } else { Err(Reason::Unbalanced) }
}

/// Byte offset in `text` of the first bracket that has no partner and needs one.
fn first_spoiler(text: &str, around: &Around<'_>, lexis: &Lexis) -> Option<usize> {
    let closers_below = leading_closers(around.next_line().unwrap_or_default());
    let whole = format!("{}{text}{}\n{closers_below}", around.prefix, around.line_after());
    let code = lexis.code_chars(&whole);
    let (caret, end) = (around.prefix.len(), around.prefix.len() + text.len());
    let between = |from: usize, to: usize| {
        &code[code.partition_point(|(at, _)| *at < from)..code.partition_point(|(at, _)| *at < to)]
    };
    let is_mid_line = around.is_mid_line();
    let above = between(if is_mid_line { last_lines(around.prefix) } else { 0 }, caret);
    let mut spoilers = Vec::new();
    for pair in PAIRS {
        let to_close = lone(above, pair).openers.len();
        let closed = lone(between(end, whole.len()), pair).closers.len();
        let written = lone(between(caret, end), pair);
        let surplus = written.closers.iter().skip(to_close.saturating_sub(closed)).map(|at| at - caret);
        // What a line begins with (`} else {`) may close a block that began above all that is seen.
        spoilers.extend(surplus.filter(|&at| !lexis.may_stand_alone(pair.1) && !begins_line(text, at, around)).take(1));
        if is_mid_line {
            let needs = written.openers.len().saturating_sub(closed.saturating_sub(to_close));
            spoilers.extend(written.openers.get(written.openers.len() - needs).map(|at| at - caret));
        }
    }
    spoilers.into_iter().min()
}

/// Whether something is missing behind the last character of `text`.
fn ends_in_operator(text: &str) -> bool {
    text.trim_end().ends_with(|c: char| "=<>+-*/%&|^!~?:.,\\@#$([{".contains(c))
}

/// Where the last lines of the prefix begin.
fn last_lines(prefix: &str) -> usize {
    prefix.rmatch_indices('\n').nth(LINES_ABOVE).map_or(0, |(at, _)| at + 1)
}

fn leading_closers(line: &str) -> &str {
    let end = line.find(|c| !PAIRS.iter().any(|(_, closer)| *closer == c)).unwrap_or(line.len());
    &line[..end]
}

/// Whether only blanks and closers stand before byte `at` of `text` on its line.
fn begins_line(text: &str, at: usize, around: &Around<'_>) -> bool {
    let before = &text[..at];
    let is_blank = |line: &str| line.chars().all(|c| c.is_whitespace() || PAIRS.iter().any(|(_, closer)| *closer == c));
    match before.rsplit_once('\n') {
        Some((_, line)) => is_blank(line),
        None => is_blank(before) && is_blank(around.line_before()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multicoder_grammars::LanguageId;

    fn check(source: &str, text: &str, expected: Option<&str>) {
        check_in(None, source, text, expected);
    }

    fn check_in(language: Option<&str>, source: &str, text: &str, expected: Option<&str>) {
        let (prefix, suffix) = source.split_once('|').unwrap();
        let around = Around { prefix, suffix, language: language.and_then(LanguageId::by_name) };
        assert_eq!(balanced(text, &around), expected.ok_or(Reason::Unbalanced), "{source:?} + {text:?}");
    }

    fn lone_in(text: &str) -> Lone {
        lone(&Lexis::of(None).code_chars(text), PAIRS[0])
    }

    #[test]
    fn finds_brackets_without_a_partner() {
        assert_eq!(lone_in("f(a(1), (").openers, [1, 8]);
        assert_eq!(lone_in("x) + (y)").closers, [1]);
        assert_eq!(lone_in("p(\"(((\", '(')"), Lone::default());
        assert_eq!(lone_in("\"\\\"(\""), Lone::default());
    }

    #[test]
    fn a_closer_needs_something_to_close() {
        check("x|", " = f(a))", None);
        check("f(|", "a)", Some("a)"));
        check("f(\n    a,\n    |", "b)", Some("b)"));
        check("f(\n    a,\n    |\n)", "b)", None);
        check("f(|)", "a) + g(b", Some("a"));
        check("    |", "} else {", Some("} else {"));
    }

    #[test]
    fn a_bracket_opened_far_above_may_be_closed() {
        check(&format!("f({}|", "\n    a,".repeat(LINES_ABOVE * 2)), "\n    b)", Some("\n    b)"));
    }

    #[test]
    fn brackets_in_strings_and_comments_are_not_judged() {
        check("x = |", "'a, b)'", Some("'a, b)'"));
        check("x = 'a|", ", b)'", Some(", b)'"));
        check_in(Some("c"), "/* see|", " foo) bar", Some(" foo) bar"));
        check_in(Some("c"), "int x; // a|", " foo) bar", Some(" foo) bar"));
        check_in(Some("python"), "def f():\n    \"\"\"One\n    |", "two) three", Some("two) three"));
        check_in(Some("python"), "x = 1|", "  # 1)", Some("  # 1)"));
        check_in(Some("rust"), "fn f<'a>(x: |", "&'a str)", Some("&'a str)"));
        check_in(Some("rust"), "x|", " = a)", None);
    }

    #[test]
    fn arms_of_a_shells_case_keep_their_closer() {
        check_in(Some("bash"), "case $1 in\n  |\nesac", "start)", Some("start)"));
    }

    #[test]
    fn an_opener_amid_a_line_needs_a_closer() {
        check("f(|)", "g(a", Some("g"));
        check("f|)", "(a", Some("(a"));
        check("if x |", "{", Some("{"));
    }

    #[test]
    fn a_cut_that_leaves_an_operator_is_silence() {
        check("items.forEach((x)|)", " => {", None);
        check("f(|)", "a + (b", None);
    }

    #[test]
    fn strings_are_followed_over_the_caret() {
        check("print(\"|", ":) hi\")", Some(":) hi\")"));
        check("print(\"a\\\"|", ":) hi\")", Some(":) hi\")"));
    }

    #[test]
    fn an_overlap_goes_unless_it_is_needed() {
        let kept = |text, suffix| without_overlap(text, &Around { prefix: "x", suffix, language: None });
        assert_eq!(kept("a, b)", ")"), "a, b");
        assert_eq!(kept("bar()", ")"), "bar()");
        assert_eq!(kept("bar())", ")"), "bar()");
        assert_eq!(kept("x", ""), "x");
    }

    #[test]
    fn words_are_not_cut() {
        let kept = |text, suffix| without_overlap(text, &Around { prefix: "x = ", suffix, language: None });
        assert_eq!(kept("items", "s.len()"), "items");
        assert_eq!(kept("foo.s", "size()"), "foo.s");
        assert_eq!(kept("foo.size()", "size()"), "foo.");
    }
}
