//! Scripts and styles in pages, and the page around PHP. HTML has no grammar here, so its tags are scanned for.

use std::ops::Range;

use super::{Region, Source, language_called, without};
use crate::language::LanguageId;

/// Elements whose content is not markup, with the language that they have when nothing says another.
const ELEMENTS: &[(&str, &str)] = &[("script", "javascript"), ("style", "css")];

/// Attributes that say the language.
const ATTRIBUTES: &[&str] = &["lang", "type"];

/// Longest tag that is read.
const MAX_TAG_BYTES: usize = 4096;

pub(super) fn may_have_elements(text: &str) -> bool {
    ["<script", "<style", "<SCRIPT", "<STYLE"].iter().any(|tag| text.contains(tag))
}

/// Content of `<script>` and `<style>` elements, comments of the page left out.
pub(super) fn elements(source: &Source, found: &mut Vec<Region>) {
    let text = source.text;
    let mut at = 0;
    while let Some(start) = text[at..].find('<').map(|offset| at + offset) {
        if text[start..].starts_with("<!--") {
            at = text[start..].find("-->").map_or(text.len(), |end| start + end + 3);
            continue;
        }
        at = tag_end(text, start);
        let Some((name, default)) = element_at(text, start) else { continue };
        // All the rest would be the element's content; half a page is none of our examples.
        let Some(end) = closing_tag(text, at, name) else { return };
        let tag = &text[start..at];
        if let Some(language) = language_of(&tag[..tag.len() - 1], default).filter(|_| !tag.ends_with("/>")) {
            found.push(Region { span: at..end, language });
        }
        at = end;
    }
}

/// The end of the tag that begins at `start`: a `>` outside of its attributes' quotes. What is no tag ends after its `<`.
fn tag_end(text: &str, start: usize) -> usize {
    if !text[start + 1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
        return start + 1;
    }
    let mut quote = None;
    for (offset, c) in text[start..].char_indices().take_while(|(offset, _)| *offset < MAX_TAG_BYTES) {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None if c == '>' => return start + offset + 1,
            None => {}
        }
    }
    // A quote that never ends: perhaps it was none.
    start + 1
}

fn element_at(text: &str, start: usize) -> Option<(&'static str, &'static str)> {
    let is_named = |name: &str| {
        let end = start + 1 + name.len();
        let is_name = text.get(start + 1..end).is_some_and(|written| written.eq_ignore_ascii_case(name));
        is_name && text[end..].starts_with(|c: char| c.is_whitespace() || c == '>' || c == '/')
    };
    ELEMENTS.iter().find(|(name, _)| is_named(name)).copied()
}

/// Where the closing tag of an element begins.
fn closing_tag(text: &str, from: usize, name: &str) -> Option<usize> {
    let mut closings = text[from..].match_indices("</").map(|(offset, _)| from + offset);
    closings.find(|&at| text.get(at + 2..at + 2 + name.len()).is_some_and(|word| word.eq_ignore_ascii_case(name)))
}

/// What an element's attributes say that it is written in; none when that is nothing of the table.
fn language_of(tag: &str, default: &str) -> Option<LanguageId> {
    let Some(value) = ATTRIBUTES.iter().find_map(|name| attribute(tag, name)) else {
        return LanguageId::by_name(default);
    };
    let kind = value.rsplit('/').next().unwrap_or(value).to_ascii_lowercase();
    match kind.as_str() {
        "" | "module" | "javascript" | "ecmascript" | "babel" | "css" => LanguageId::by_name(default),
        kind if kind.ends_with("json") || kind == "importmap" => LanguageId::by_name("json"),
        kind => language_called(kind.trim_start_matches("x-")).filter(|id| id.name() != "html"),
    }
}

/// The value of an attribute, with or without quotes.
fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let places = tag.match_indices(name).map(|(at, _)| at);
    let values = places.filter(|&at| tag[..at].ends_with(char::is_whitespace)).filter_map(|at| {
        let value = tag[at + name.len()..].trim_start().strip_prefix('=')?.trim_start();
        match value.chars().next()? {
            quote @ ('"' | '\'') => value[1..].split(quote).next(),
            _ => value.split(char::is_whitespace).next(),
        }
    });
    values.into_iter().next()
}

/// A file of nothing but code begins with its opening tag and never closes it.
pub(super) fn may_have_markup_of_php(text: &str) -> bool {
    text.contains("?>") || !text.trim_start_matches('\u{feff}').starts_with("<?")
}

/// What is outside of `<?php ?>`: a page, with its scripts and styles.
pub(super) fn markup_of_php(source: &Source, found: &mut Vec<Region>) {
    let (Some(html), Some(tree)) = (LanguageId::by_name("html"), source.tree()) else { return };
    let texts = tree.preorder(|node| node.kind() != "text").filter(|node| node.kind() == "text");
    let outside: Vec<Range<usize>> = texts.map(|node| node.byte_range()).collect();
    let mut inner = Vec::new();
    elements(source, &mut inner);
    let spans: Vec<Range<usize>> = inner.iter().map(|region| region.span.clone()).collect();
    found.extend(outside.iter().flat_map(|span| without(span, &spans)).map(|span| Region { span, language: html }));
    let code = without(&(0..source.text.len()), &outside);
    for Region { span, language } in inner {
        found.extend(without(&span, &code).into_iter().map(|span| Region { span, language }));
    }
    found.sort_by_key(|region| region.span.start);
}
