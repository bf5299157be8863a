//! Brackets around the caret: what an answer may close, and what stands there to close it already.
//!
//! The three kinds are counted apart, so that a stray one in a comment spoils only its own kind.

use super::Around;

const PAIRS: [(char, char); 3] = [('(', ')'), ('[', ']'), ('{', '}')];

/// Lines above the caret in which an open bracket is looked for.
const LINES_ABOVE: usize = 40;

/// Where one kind of bracket has no partner in a text: byte offsets.
#[derive(Debug, Default, Eq, PartialEq)]
struct Lone {
    closers: Vec<usize>,
    openers: Vec<usize>,
}

/// The brackets of one kind without partner in `text`. `in_string` says whether it starts inside a string.
fn lone(text: &str, in_string: bool, (opener, closer): (char, char)) -> Lone {
    let mut lone = Lone::default();
    for (at, c) in code_chars(text, in_string) {
        if c == opener {
            lone.openers.push(at);
        } else if c == closer && lone.openers.pop().is_none() {
            lone.closers.push(at);
        }
    }
    lone
}

/// The characters of `text` that are in no double-quoted string and in no one-character literal. A string ends with its line.
fn code_chars(text: &str, mut in_string: bool) -> Vec<(usize, char)> {
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let mut code = Vec::with_capacity(chars.len());
    let mut i = 0;
    while i < chars.len() {
        let (at, c) = chars[i];
        match c {
            '\n' => in_string = false,
            '\\' if in_string => i += 1,
            '"' => in_string = !in_string,
            '\'' if !in_string && chars.get(i + 2).is_some_and(|(_, c)| *c == '\'') => i += 2,
            _ if !in_string => code.push((at, c)),
            _ => {}
        }
        i += 1;
    }
    code
}

/// Whether a line ends inside a double-quoted string.
fn ends_in_string(line: &str) -> bool {
    let mut escaped = false;
    let quotes = line.chars().filter(|&c| {
        let counts = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        counts
    });
    quotes.count() % 2 == 1
}

/// `text` without the end that is also the beginning of the rest of the line, unless what is left would miss those brackets itself.
pub(super) fn without_overlap<'t>(text: &'t str, line_after: &str) -> &'t str {
    if line_after.trim().is_empty() {
        return text;
    }
    let openers = |text: &str| PAIRS.iter().map(|&pair| lone(text, false, pair).openers.len()).sum::<usize>();
    let written = text.trim_end();
    let rest = line_after.trim_end();
    for cut in written.char_indices().map(|(i, _)| i) {
        let overlap = &written[cut..];
        if rest.starts_with(overlap) || rest.trim_start() == overlap.trim_start() {
            let kept = &written[..cut];
            if openers(kept) <= openers(written) {
                return kept;
            }
        }
    }
    text
}

/// `text` up to the first bracket that would spoil what stands there: a closer with nothing to close, or an opener amid a line that
/// nothing closes.
pub(super) fn balanced<'t>(text: &'t str, around: &Around<'_>) -> &'t str {
    let above = last_lines(around.prefix);
    let in_string = ends_in_string(around.line_before());
    let behind = format!("{}\n{}", around.line_after(), leading_closers(around.next_line().unwrap_or_default()));
    let mut end = text.len();
    for pair in PAIRS {
        let to_close = lone(above, false, pair).openers.len();
        let closed = lone(&behind, in_string, pair).closers.len();
        let written = lone(text, in_string, pair);
        let mut surplus = written.closers.iter().skip(to_close.saturating_sub(closed));
        // What a line begins with (`} else {`) may close a block that began above all that is seen.
        end = end.min(surplus.find(|&&at| !begins_line(text, at, around)).copied().unwrap_or(end));
        if around.is_mid_line() {
            let needs = written.openers.len().saturating_sub(closed.saturating_sub(to_close));
            let first = written.openers.len() - needs;
            end = end.min(written.openers.get(first).copied().unwrap_or(end));
        }
    }
    &text[..end]
}

/// The last lines of the prefix.
fn last_lines(prefix: &str) -> &str {
    let start = prefix.rmatch_indices('\n').nth(LINES_ABOVE).map_or(0, |(at, _)| at + 1);
    &prefix[start..]
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

    fn check(source: &str, text: &str, expected: &str) {
        let (prefix, suffix) = source.split_once('|').unwrap();
        assert_eq!(balanced(text, &Around { prefix, suffix }), expected, "{source:?} + {text:?}");
    }

    #[test]
    fn finds_brackets_without_a_partner() {
        assert_eq!(lone("f(a(1), (", false, PAIRS[0]).openers, [1, 8]);
        assert_eq!(lone("x) + (y)", false, PAIRS[0]).closers, [1]);
        assert_eq!(lone("p(\"(((\", '(')", false, PAIRS[0]), Lone::default());
        assert_eq!(lone("\"\\\"(\"", false, PAIRS[0]), Lone::default());
    }

    #[test]
    fn a_closer_needs_something_to_close() {
        check("x|", " = f(a))", " = f(a)");
        check("f(|", "a)", "a)");
        check("f(\n    a,\n    |", "b)", "b)");
        check("f(\n    a,\n    |\n)", "b)", "b");
        check("f(|)", "a) + g(b", "a");
        check("    |", "} else {", "} else {");
    }

    #[test]
    fn an_opener_amid_a_line_needs_a_closer() {
        check("f(|)", "g(a", "g");
        check("f|)", "(a", "(a");
        check("if x |", "{", "{");
    }

    #[test]
    fn strings_are_followed_over_the_caret() {
        assert!(ends_in_string("print(\"a") && !ends_in_string("print(\"a\\\"\")"));
        check("print(\"|", ":) hi\")", ":) hi\")");
    }

    #[test]
    fn an_overlap_goes_unless_it_is_needed() {
        assert_eq!(without_overlap("a, b)", ")"), "a, b");
        assert_eq!(without_overlap("bar()", ")"), "bar()");
        assert_eq!(without_overlap("bar())", ")"), "bar()");
        assert_eq!(without_overlap("x", ""), "x");
    }
}
