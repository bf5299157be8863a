//! What a caret stands in, judged from its line alone: for languages without a tree and for lines that do not parse yet.

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
    let quotes: &[char] = match row.line_comment {
        // ML and Lisp families, Rust, Scala, Haskell: 'a is a type, a label, a quotation or part of a name.
        Some("//") if matches!(row.name, "rust" | "scala" | "fsharp") => &['"'],
        Some(";" | "--" | "%") if row.name != "lua" && row.name != "sql" && row.name != "erlang" => &['"'],
        None => &['"'],
        _ => &['"', '\'', '`'],
    };
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
