//! What stands between the quotes of a string, and JavaScript's templates whose tag says what they are written in.

use std::ops::Range;

use tree_sitter::Node;

use super::{Region, Source, without};
use crate::language::LanguageId;
use crate::syntax::SyntaxTree;
use crate::syntax::kind::{self, Role};

/// Tags, or comments before a template, and the language that they mean.
const TAGS: &[(&str, &str)] = &[
    ("css", "css"),
    ("createGlobalStyle", "css"),
    ("glsl", "glsl"),
    ("gql", "graphql"),
    ("graphql", "graphql"),
    ("GraphQL", "graphql"),
    ("html", "html"),
    ("injectGlobal", "css"),
    ("keyframes", "css"),
    ("markdown", "markdown"),
    ("sql", "sql"),
    ("SQL", "sql"),
    ("styled", "css"),
];

pub(super) fn may_have_tags(text: &str) -> bool {
    text.contains('`') && TAGS.iter().any(|(tag, _)| text.contains(tag))
}

/// The content of templates with a tag of [`TAGS`], without what is filled in.
pub(super) fn tagged_templates(source: &Source, found: &mut Vec<Region>) {
    let Some(tree) = source.tree() else { return };
    for node in tree.preorder(|_| true).filter(|node| node.kind() == "template_string") {
        let language = tag_of(&node, source.text).and_then(LanguageId::by_name);
        if let (Some(language), Some(span)) = (language, inside(&source.text[node.byte_range()], node.start_byte())) {
            found.extend(written(&node, &span).into_iter().map(|span| Region { span, language }));
        }
    }
    found.sort_by_key(|region| region.span.start);
}

/// What the tag before a template (`css`, `styled.div`, `styled(Button)`) or the comment before it means.
fn tag_of(template: &Node, text: &str) -> Option<&'static str> {
    // Asking for the sibling costs as much as there are siblings: not for each template of a long list.
    if !text[..template.start_byte()]
        .trim_end()
        .ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ')' | '/'))
    {
        return None;
    }
    let before = template.prev_sibling()?;
    let written = &text[before.byte_range()];
    let tag = match before.kind() {
        "comment" => written.trim_start_matches("/*").trim_end_matches("*/").trim(),
        "identifier" | "member_expression" | "call_expression" => {
            written.split(|c: char| !(c.is_alphanumeric() || c == '_')).next()?
        }
        _ => return None,
    };
    TAGS.iter().find(|(name, _)| *name == tag).map(|(_, language)| *language)
}

/// The outermost strings of a tree, in the order of the text.
pub(super) fn strings(tree: &SyntaxTree) -> impl Iterator<Item = Node<'_>> {
    tree.preorder(|node| kind::role(node) != Role::String).filter(|node| kind::role(node) == Role::String)
}

/// The parts of `span` that a string's author wrote as text, without code that is filled in.
pub(super) fn written(string: &Node, span: &Range<usize>) -> Vec<Range<usize>> {
    let mut code: Vec<Range<usize>> = Vec::new();
    for child in string.children(&mut string.walk()).filter(|child| kind::role(child) == Role::Code) {
        code.push(child.byte_range());
    }
    without(span, &code)
}

/// The span inside the quotes of a string that is written like this and begins at `start`; none for what has no quotes. Knows
/// `"`, `'`, `` ` ``, three of them, prefixes (`f"`, `r#"`, `@"`), C++'s `R"x(`, Lua's `[[` and Perl's `q{`.
pub(super) fn inside(string: &str, start: usize) -> Option<Range<usize>> {
    let body = string.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '@' | '$' | '#' | '_'));
    let prefix = &string[..string.len() - body.len()];
    let opening = opening(body, prefix)?;
    let closing = closing(opening, prefix);
    let inner = &body[opening.len()..];
    let inner = inner.strip_suffix(closing.as_str()).unwrap_or(inner);
    let from = start + prefix.len() + opening.len();
    Some(from..from + inner.len())
}

/// What opens a string after its prefix.
fn opening<'a>(body: &'a str, prefix: &str) -> Option<&'a str> {
    let first = body.chars().next()?;
    let is_long = |mark: &str| body.starts_with(mark) && body.len() >= 2 * mark.len();
    let n_bytes = match first {
        '"' if prefix.ends_with('R') => raw_opening_len(body).unwrap_or(1),
        '"' | '\'' if is_long("\"\"\"") || is_long("'''") => 3,
        '"' | '\'' | '`' => 1,
        '[' if body.starts_with("[[") || body.starts_with("[=") => body[1..].find('[')? + 2,
        '{' | '(' | '[' | '|' | '/' | '!' if prefix.starts_with('q') => 1,
        _ => return None,
    };
    Some(&body[..n_bytes])
}

/// Bytes of C++'s `"x(`, where a string ends in `)x"`; other languages have raw strings of that prefix without it.
fn raw_opening_len(body: &str) -> Option<usize> {
    let opening = &body[..=body.find('(')?];
    body[opening.len()..].ends_with(&closing(opening, "R")).then_some(opening.len())
}

/// What closes a string that was opened like this.
fn closing(opening: &str, prefix: &str) -> String {
    if let Some(word) = opening.strip_prefix('"').and_then(|rest| rest.strip_suffix('(')) {
        return format!("){word}\"");
    }
    let mirrored: String = opening.chars().rev().map(closing_of).collect();
    mirrored + &"#".repeat(prefix.matches('#').count())
}

fn closing_of(opening: char) -> char {
    match opening {
        '[' => ']',
        '(' => ')',
        '{' => '}',
        other => other,
    }
}
