//! Here-documents whose last line says what they are written in: `<<~SQL`.

use super::{Region, Source};
use crate::language::LanguageId;

/// Short names that people end here-documents with. Other extensions are words (`CMD`, `FOR`) before they are languages.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("JS", "javascript"),
    ("MD", "markdown"),
    ("PY", "python"),
    ("RB", "ruby"),
    ("TS", "typescript"),
    ("YML", "yaml"),
];

pub(super) fn may_have(text: &str) -> bool {
    text.match_indices("<<").any(|(at, _)| opening(&text[at..]).is_some())
}

/// From the line after `<<~SQL` to a line that is `SQL`. Without such a line it was a shift to the left.
pub(super) fn named_by_their_end(source: &Source, found: &mut Vec<Region>) {
    let text = source.text;
    let mut from = 0;
    let mut unended: Vec<&str> = Vec::new();
    for at in text.match_indices("<<").map(|(at, _)| at) {
        let Some((word, language)) = opening(&text[at..]).filter(|_| at >= from) else { continue };
        if unended.contains(&word) {
            continue;
        }
        // A second one on the same line begins where the first one ends.
        let Some(start) = text[at..].find('\n').map(|offset| (at + offset + 1).max(from)) else { continue };
        match end_of_body(&text[start..], word).map(|offset| start + offset) {
            Some(end) => {
                found.push(Region { span: start..end, language });
                from = end;
            }
            None => unended.push(word),
        }
    }
}

/// The word after `<<`, `<<~`, `<<-` or `<<<`, with or without quotes, and the language that it names. A name in capitals only:
/// what is shifted to the left has another one.
fn opening(text: &str) -> Option<(&str, LanguageId)> {
    let rest = text.strip_prefix("<<")?.trim_start_matches('<');
    let rest = rest.strip_prefix(['~', '-']).unwrap_or(rest);
    let rest = rest.strip_prefix(['"', '\'', '`']).unwrap_or(rest);
    let word = &rest[..rest.find(|c: char| !c.is_ascii_uppercase()).unwrap_or(rest.len())];
    let ends = !rest[word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
    // One letter is a variable's name.
    let language = (ends && word.len() > 1).then(|| language_of(word)).flatten()?;
    Some((word, language))
}

fn language_of(word: &str) -> Option<LanguageId> {
    let short = SHORT_NAMES.iter().find(|(name, _)| *name == word).map(|(_, language)| *language);
    let found =
        LanguageId::by_name(short.unwrap_or(&word.to_ascii_lowercase())).or_else(|| LanguageId::by_lsp_id(word));
    found.filter(|id| id.name() != "plaintext")
}

/// Where the line begins that ends the body.
fn end_of_body(body: &str, word: &str) -> Option<usize> {
    let mut start = 0;
    for line in body.split_inclusive('\n') {
        if line.trim().trim_end_matches([';', ',', ')']) == word {
            return Some(start);
        }
        start += line.len();
    }
    None
}
