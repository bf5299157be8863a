//! What a caret stands in, judged from its line alone: for languages without a tree and for lines that do not parse yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use crate::language::LanguageId;

/// What the end of a line's beginning stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineContext {
    Code,
    String,
    Comment,
}

/// What a caret after `line_prefix`, the text of its line before it, stands in. Strings and comments that began on an
/// earlier line are not seen. Languages that write single quotes for other things than strings are judged by `"` alone.
pub fn line_context(language: LanguageId, line_prefix: &str) -> LineContext {
    let row = language.row();
    let quotes = quotes(language);
    let mut open_quote = None;
    let mut rest = line_prefix;
    while let Some(c) = rest.chars().next() {
        match open_quote {
            _ if c == '\\' => {
                rest = rest[1..].strip_prefix(|_: char| true).unwrap_or_default();
                continue;
            }
            Some(quote) if c == quote => open_quote = None,
            Some(_) => {}
            None if row.line_comment.is_some_and(|open| rest.starts_with(open)) => return LineContext::Comment,
            None if quotes.contains(&c) => open_quote = Some(c),
            None => {}
        }
        rest = &rest[c.len_utf8()..];
    }
    if open_quote.is_some() { LineContext::String } else { LineContext::Code }
}

/// The signs that open and close a string of a line.
fn quotes(language: LanguageId) -> &'static [char] {
    let row = language.row();
    match row.line_comment {
        // ML and Lisp families, Rust, Scala, Haskell: 'a is a type, a label, a quotation or part of a name.
        Some("//") if matches!(row.name, "rust" | "scala" | "fsharp") => &['"'],
        Some(";" | "--" | "%") if row.name != "lua" && row.name != "sql" && row.name != "erlang" => &['"'],
        None => &['"'],
        _ => &['"', '\'', '`'],
    }
}

/// The words of a text: runs of letters, digits and `_`, in strings and comments too.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// The names in `text`, in order: its words (letters, digits and `_`, no digit first) outside of strings and line comments that the
/// grammar does not have as fixed tokens: keywords are left out, `nil` is not. Without a grammar all words count.
pub fn identifiers(language: LanguageId, text: &str) -> Vec<&str> {
    let keywords = keywords(language);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for line in text.lines() {
        let mut start = 0;
        while let Some(found) = line[start..].find(is_word) {
            let word_start = start + found;
            let word_end = line[word_start..].find(|c| !is_word(c)).map_or(line.len(), |end| word_start + end);
            let word = &line[word_start..word_end];
            let is_name = !word.starts_with(|c: char| c.is_ascii_digit()) && !keywords.contains(word);
            if is_name && line_context(language, &line[..word_start]) == LineContext::Code {
                names.push(word);
            }
            start = word_end;
        }
    }
    names
}

/// The words that a language's grammar has as fixed tokens.
fn keywords(language: LanguageId) -> &'static BTreeSet<String> {
    static ALL: LazyLock<BTreeMap<&str, BTreeSet<String>>> =
        LazyLock::new(|| LanguageId::all().map(|language| (language.name(), read_keywords(language))).collect());
    &ALL[language.name()]
}

fn read_keywords(language: LanguageId) -> BTreeSet<String> {
    let Some(grammar) = language.row().grammar else { return BTreeSet::new() };
    let grammar = grammar();
    let fixed = (0..grammar.node_kind_count() as u16).filter(|&id| !grammar.node_kind_is_named(id));
    let kinds = fixed.filter_map(|id| grammar.node_kind_for_id(id));
    let words = kinds.filter(|kind| kind.chars().all(|c| c.is_alphanumeric() || c == '_'));
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(language: &str, text: &str) -> Vec<String> {
        let language = LanguageId::by_name(language).expect(language);
        identifiers(language, text).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn names_are_the_words_outside_of_strings_and_comments_without_keywords() {
        assert_eq!(names("python", "for x_1 in range(10): f(\"in a string\", 'b')  # of x"), ["x_1", "range", "f"]);
        assert_eq!(names("go", "if err != nil {\n\treturn err // err"), ["err", "nil", "err"]);
        assert_eq!(names("rust", "let x: &'a str = y;"), ["x", "a", "str", "y"]);
        assert_eq!(names("awk", "if (x) print x"), ["if", "x", "print", "x"]);
    }
}
