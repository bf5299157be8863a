//! Fenced code, in Markdown and in doc comments (CommonMark 0.31, section 4.5).

use std::ops::Range;

use super::{Region, Source, language_called};
use crate::language::LanguageId;

/// What begins a line of a doc comment.
const DOC_COMMENTS: &[&str] = &["///", "//!"];

pub(super) fn may_have(text: &str) -> bool {
    text.contains("```") || text.contains("~~~")
}

/// Code between fences that name its language, each as one region.
pub(super) fn of_document(source: &Source, found: &mut Vec<Region>) {
    let mut code: Option<Region> = None;
    fenced(source.text, lines(source.text), |line, language| match &mut code {
        Some(region) if region.span.end == line.start => region.span.end = line.end,
        _ => found.extend(code.replace(Region { span: line, language })),
    });
    found.extend(code);
}

/// As in a document, each line of its own: between two lines stand the marks of the comment.
pub(super) fn of_doc_comments(source: &Source, found: &mut Vec<Region>) {
    let text = source.text;
    let mut comment: Vec<Range<usize>> = Vec::new();
    for line in lines(text).chain(std::iter::once(text.len()..text.len())) {
        match doc_line(text, &line) {
            Some(content) => comment.push(content),
            None => fenced(text, comment.drain(..), |span, language| found.push(Region { span, language })),
        }
    }
}

/// The spans of the lines of `text`, line ends included.
fn lines(text: &str) -> impl Iterator<Item = Range<usize>> {
    text.split_inclusive('\n').scan(0, |start, line| {
        let span = *start..*start + line.len();
        *start = span.end;
        Some(span)
    })
}

/// What a line of a doc comment says, without its mark and one blank.
fn doc_line(text: &str, line: &Range<usize>) -> Option<Range<usize>> {
    let written = text[line.clone()].trim_start();
    let content = DOC_COMMENTS.iter().find_map(|mark| written.strip_prefix(mark))?;
    let content = content.strip_prefix(' ').unwrap_or(content);
    Some(line.end - content.len()..line.end)
}

/// Calls `add` with each line between two fences of which the first names a language. A fence that is not closed goes on to the
/// last of the lines.
fn fenced(text: &str, lines: impl Iterator<Item = Range<usize>>, mut add: impl FnMut(Range<usize>, LanguageId)) {
    let mut open: Option<(char, usize, Option<LanguageId>)> = None;
    for line in lines {
        match (fence(&text[line.clone()]), open) {
            (Some((mark, n, "")), Some((open_mark, n_open, _))) if mark == open_mark && n >= n_open => open = None,
            (_, Some((_, _, Some(language)))) => add(line, language),
            (Some((mark, n, info)), None) => open = Some((mark, n, language_of(info))),
            _ => {}
        }
    }
}

/// The mark of a fence, how often it is repeated, and what is written after it.
fn fence(line: &str) -> Option<(char, usize, &str)> {
    let line = line.trim();
    let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let info = line.trim_start_matches(mark);
    let n = line.len() - info.len();
    // Backquotes in the rest of the line: code inside a sentence.
    (n >= 3 && !(mark == '`' && info.contains('`'))).then(|| (mark, n, info.trim()))
}

/// `python`, `{.python #id}`, `rust,ignore`, `js title="x"`.
fn language_of(info: &str) -> Option<LanguageId> {
    let name = info.trim_start_matches(['{', '.']);
    language_called(name.split(|c: char| c.is_whitespace() || matches!(c, ',' | '}' | '{' | ':')).next()?)
}
