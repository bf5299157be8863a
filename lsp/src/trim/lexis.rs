//! What of a text is code: without the strings and comments, as far as a scan of characters tells them.

use multicoder_grammars::LanguageId;
use multicoder_grammars::lexical::{LineContext, line_context};

/// Bytes that a character literal with an escape may have, as `'\\u{10ffff}'`.
const MAX_LITERAL_BYTES: usize = 14;

/// How a language writes strings and comments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexis {
    language: Option<LanguageId>,
    has_single_quotes: bool,
    has_backquotes: bool,
    line_comment: Option<&'static str>,
    block_comment: Option<(&'static str, &'static str)>,
    is_shell: bool,
}

impl Lexis {
    /// That of a language; of an unknown one all quotes count and nothing is a comment.
    pub(super) fn of(language: Option<LanguageId>) -> Lexis {
        let has_quote = |quote| language.is_none_or(|language| line_context(language, quote) == LineContext::String);
        Lexis {
            language,
            has_single_quotes: has_quote("'"),
            has_backquotes: has_quote("`"),
            line_comment: language.and_then(|language| language.row().line_comment),
            block_comment: language.and_then(|language| language.row().block_comment),
            is_shell: language.is_some_and(|language| language.name() == "bash"),
        }
    }

    /// Whether a caret behind `prefix` stands in a comment or in a string of several lines.
    pub(super) fn is_in_prose(&self, prefix: &str) -> bool {
        let line = prefix.rsplit('\n').next().unwrap_or_default();
        let in_line_comment = self.language.is_some_and(|it| line_context(it, line) == LineContext::Comment);
        let in_block = self.block_comment.is_some_and(|(open, close)| {
            open != close && prefix.rfind(open).is_some_and(|at| !prefix[at + open.len()..].contains(close))
        });
        let in_long_string = ["\"\"\"", "'''"].iter().any(|quote| prefix.matches(quote).count() % 2 == 1);
        in_line_comment || in_block || in_long_string
    }

    /// Whether a closing bracket needs no opening one: the arms of a shell's `case`.
    pub(super) fn may_stand_alone(&self, closer: char) -> bool {
        self.is_shell && closer == ')'
    }

    /// The characters of `text` that are in no string and in no comment, with their byte offsets.
    pub(super) fn code_chars(&self, text: &str) -> Vec<(usize, char)> {
        let mut code = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            // `1'000`, `4'b0` and `(a)'` are no beginnings of strings.
            let is_mark = c == '\'' && text[..at].ends_with(|c: char| c.is_ascii_digit() || c == ')' || c == ']');
            let string_len = || if is_mark { None } else { self.string_len(&text[at..]) };
            let skipped = self.comment_len(text, at).or_else(string_len);
            if skipped.is_none() {
                code.push((at, c));
            }
            at += skipped.unwrap_or(c.len_utf8());
        }
        code
    }

    /// Bytes of the comment that begins at `at`, if one does.
    fn comment_len(&self, text: &str, at: usize) -> Option<usize> {
        let (before, rest) = text.split_at(at);
        if let Some((open, close)) = self.block_comment
            && rest.starts_with(open)
        {
            let end = rest[open.len()..].find(close).map(|len| open.len() + len + close.len());
            return Some(end.unwrap_or(rest.len()));
        }
        let open = self.line_comment.filter(|open| rest.starts_with(open))?;
        // `$#` and `${x#y}` of shells, `\%` of TeX.
        let begins = match before.chars().next_back() {
            Some(last) if open == "#" => last.is_whitespace(),
            last => last != Some('\\'),
        };
        begins.then(|| rest.find('\n').unwrap_or(rest.len()))
    }

    /// Bytes of the string at the start of `rest`, if one begins there. Double quotes that are not closed hold for the rest of the line,
    /// others are none.
    fn string_len(&self, rest: &str) -> Option<usize> {
        let next = rest.chars().nth(1);
        match rest.chars().next()? {
            '\\' if matches!(next, Some('"' | '\'' | '`')) => Some(2),
            '"' => Some(quoted_len(rest, '"').unwrap_or_else(|| rest.find('\n').unwrap_or(rest.len()))),
            '\'' if self.has_single_quotes => quoted_len(rest, '\''),
            '\'' if next == Some('\\') => quoted_len(rest, '\'').filter(|len| *len <= MAX_LITERAL_BYTES),
            '\'' => (rest.chars().nth(2) == Some('\'')).then(|| 2 + next.map_or(0, char::len_utf8)),
            '`' if self.has_backquotes => quoted_len(rest, '`'),
            _ => None,
        }
    }
}

/// Bytes from the quote that `rest` begins with to the one that closes it on the same line.
fn quoted_len(rest: &str, quote: char) -> Option<usize> {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '\n' => return None,
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(language: &str, text: &str) -> String {
        let lexis = Lexis::of(LanguageId::by_name(language));
        lexis.code_chars(text).into_iter().map(|(_, c)| c).collect()
    }

    #[test]
    fn strings_and_comments_are_left_out() {
        assert_eq!(code("python", "a('(\\')', \"(\") # ("), "a(, ) ");
        assert_eq!(code("c", "a /* ( */ b // (\nc '(' \"x\nd"), "a  b \nc  \nd");
        assert_eq!(code("rust", "f<'a>(x: &'a T, '(', '\\'')"), "f<'a>(x: &'a T, , )");
        assert_eq!(code("cpp", "f(1'000, (2'000))"), "f(1'000, (2'000))");
        assert_eq!(code("bash", "f $# ${x#y} # z"), "f $# ${x#y} ");
        assert_eq!(code("javascript", "`(` + `(\n)`"), " + `(\n)`");
    }

    #[test]
    fn prose_is_recognised() {
        let is_in_prose = |language, prefix| Lexis::of(LanguageId::by_name(language)).is_in_prose(prefix);
        assert!(is_in_prose("c", "x;\n/* a\n b") && !is_in_prose("c", "/* a */ b"));
        assert!(is_in_prose("python", "def f():\n    \"\"\"a\n b") && !is_in_prose("python", "\"\"\"a\"\"\"\nb"));
        assert!(is_in_prose("python", "a  # b") && !is_in_prose("python", "# a\nb"));
    }
}
