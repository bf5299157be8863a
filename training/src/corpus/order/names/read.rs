//! Reading the names of one statement. Statements are looked at for a bounded number of bytes, so that a text that is one long line
//! costs no more than another.

use multicoder_grammars::LanguageId;

use super::table::{Family, Names, Statement};
use super::{Base, Import, part};
use crate::data::lines::floor_char;

/// Most bytes of a statement on one line, and of one in parentheses or braces.
const LINE_BYTES: usize = 400;
const LIST_BYTES: usize = 4_000;

/// What divides Rust's paths, and what stands for a divider where a name is that of a module inside the file's own.
const RUST_PATH: &str = "::";
const RUST_MODULE: &str = "mod";

/// The names of the statement whose opening is at `at`.
pub(super) fn names(family: &Family, statement: &Statement, text: &str, at: usize) -> Vec<Import> {
    let opening = statement.opening;
    let rest = &text[at + opening.len()..];
    match statement.names {
        Names::Quoted(divider) => {
            let region = if opening.starts_with('(') { in_parentheses(&text[at..]) } else { line_or_parentheses(rest) };
            quoted(region).filter_map(|name| path(family, name, divider)).collect()
        }
        Names::Words(RUST_MODULE) => submodule(rest).into_iter().collect(),
        Names::Words(divider) => words(rest, divider),
        Names::Listed(divider) => {
            let is_part = |c: char| is_name(c) || divider.contains(c);
            let listed = in_parentheses(&text[at..]).split(|c| !is_part(c)).filter(|word| word.contains(divider));
            listed.filter_map(|word| name(word, divider)).collect()
        }
        Names::PythonFrom => python_from(rest),
        Names::Bare => bare(line(rest)).and_then(|word| path(family, word, "/")).into_iter().collect(),
        Names::Capital => {
            let word = text[..at].rsplit(|c: char| !is_name(c)).next().unwrap_or_default();
            let is_module = word.starts_with(|c: char| c.is_ascii_uppercase());
            is_module.then(|| name(word, ".")).flatten().into_iter().collect()
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '$')
}

/// The beginning of `text`, at most `max_bytes`.
fn head(text: &str, max_bytes: usize) -> &str {
    &text[..floor_char(text, max_bytes)]
}

fn line(text: &str) -> &str {
    head(text, LINE_BYTES).lines().next().unwrap_or_default()
}

/// From the parenthesis that `text` begins with to its partner, or as far as one looks.
fn in_parentheses(text: &str) -> &str {
    let text = head(text, LIST_BYTES);
    let mut depth = 0;
    let closing = text.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '(') - i32::from(*c == ')');
        depth <= 0
    });
    closing.map_or(text, |(end, _)| &text[..end])
}

fn line_or_parentheses(rest: &str) -> &str {
    let rest = rest.trim_start_matches([' ', '\t']);
    if rest.starts_with('(') { in_parentheses(rest) } else { line(rest) }
}

/// Everything in quotes; C's angle brackets are quotes when nothing else comes before them.
fn quoted(region: &str) -> impl Iterator<Item = &str> {
    let mut rest = region.trim_start();
    if let Some(name) = rest.strip_prefix('<').and_then(|inner| inner.split_once('>')) {
        rest = name.0;
        return Some(rest).into_iter().chain(Vec::new());
    }
    let mut found = Vec::new();
    while let Some(start) = rest.find(['"', '\'', '`']) {
        let (quote, inner) = rest[start..].split_at(1);
        let Some((name, after)) = inner.split_once(quote) else { break };
        found.push(name);
        rest = after;
    }
    None.into_iter().chain(found)
}

/// A path in quotes, or bare: where it begins says from where it is meant.
fn path(family: &Family, written: &str, divider: &str) -> Option<Import> {
    let from_top = ["@/", "~/", "res://"].iter().find_map(|prefix| written.strip_prefix(prefix));
    let of_package = written.strip_prefix("package:").and_then(|rest| Some(rest.split_once('/')?.1));
    if family.dots_only && from_top.is_none() && !written.starts_with('.') {
        return None;
    }
    let written = from_top.or(of_package).unwrap_or(written);
    let is_dotted = divider == "." && !written.contains('/');
    if is_dotted || divider == RUST_PATH {
        return name(written, divider);
    }
    name(if family.keeps_extension { written } else { without_extension(written) }, "/")
}

/// Without an extension that a language has: `a.min.js` is `a.min`, `a.test` is itself.
fn without_extension(path: &str) -> &str {
    let stem = path.rsplit_once('.').filter(|(stem, extension)| {
        !stem.is_empty() && !stem.ends_with('/') && LanguageId::by_extension(extension).is_some()
    });
    stem.map_or(path, |(stem, _)| stem)
}

/// A name whose parts are divided by `divider`. What a shell or a template would fill in is left out.
fn name(written: &str, divider: &str) -> Option<Import> {
    let mut base = Base::Anywhere;
    let mut parts = Vec::new();
    for written in written.split(divider).map(str::trim).filter(|part| !part.is_empty()) {
        base = match (written, base, divider) {
            (".", Base::Anywhere, _) => Base::Folder(0),
            ("..", Base::Folder(n_up), _) => Base::Folder(n_up + 1),
            ("..", Base::Anywhere, _) => Base::Folder(1),
            ("self", Base::Anywhere, RUST_PATH) if parts.is_empty() => Base::Module(0),
            ("super", Base::Module(n_up), RUST_PATH) => Base::Module(n_up + 1),
            ("super", Base::Anywhere, RUST_PATH) => Base::Module(1),
            ("crate", _, RUST_PATH) | ("self", _, RUST_PATH) => base,
            _ if written.contains('$') => base,
            _ => {
                parts.push(part(written));
                base
            }
        };
    }
    (!parts.is_empty() || base != Base::Anywhere).then_some(Import { base, parts })
}

/// The longest beginning of `text` that is a name with dividers.
fn word<'a>(text: &'a str, divider: &str) -> &'a str {
    let is_part = |c: char| is_name(c) || divider.contains(c) || (divider == "/" && c == '.');
    &text[..text.find(|c| !is_part(c)).unwrap_or(text.len())]
}

/// Words after commas, and in the braces or brackets directly after a word.
fn words(rest: &str, divider: &str) -> Vec<Import> {
    let mut rest = head(rest, LIST_BYTES).trim_start().trim_start_matches(['\'', '"']);
    let mut found = Vec::new();
    loop {
        let first = word(rest, divider);
        rest = &rest[first.len()..];
        match rest.strip_prefix(['{', '[']) {
            Some(inner) => {
                let (items, after) = inner.split_once(['}', ']']).unwrap_or((inner, ""));
                let whole = |item: &str| format!("{first}{divider}{}", word(item.trim(), divider));
                found.extend(items.split(',').filter_map(|item| name(&whole(item), divider)));
                rest = after;
            }
            None => found.extend(name(first, divider)),
        }
        // `a as b, c`: the next name comes after a comma, unless the statement ends or lists what it takes from the module.
        let end = rest.find([',', ';', '\n', '(', '{', '=', ':', ')', ']']);
        match end.and_then(|end| rest[end..].strip_prefix(',')) {
            Some(after) if found.len() < 100 => rest = after.trim_start(),
            _ => return found,
        }
    }
}

/// `x` of `mod x;`, which is a file below the file's own path; a module with a body is none.
fn submodule(rest: &str) -> Option<Import> {
    let module = word(rest, RUST_PATH);
    let is_file = rest[module.len()..].trim_start().starts_with(';') && !module.is_empty();
    is_file.then(|| Import { base: Base::Module(0), parts: vec![part(module)] })
}

/// `..a.b import c, d as e`, also in parentheses over several lines.
fn python_from(rest: &str) -> Vec<Import> {
    let written = rest.trim_start_matches('.');
    let n_dots = rest.len() - written.len();
    let base = if n_dots > 0 { Base::Folder(n_dots - 1) } else { Base::Anywhere };
    let module = word(written, ".");
    let Some(items) = written[module.len()..].trim_start().strip_prefix("import") else { return Vec::new() };
    let items = items.trim_start_matches([' ', '\t']);
    let items = if items.starts_with('(') { in_parentheses(items) } else { line(items) };
    let module: Vec<String> = module.split('.').filter(|part| !part.is_empty()).map(part).collect();
    let imports = items.split(',').map(|item| {
        let item = word(item.trim_start_matches(|c: char| c.is_whitespace() || c == '('), "");
        let parts = module.iter().cloned().chain((!item.is_empty()).then(|| part(item))).collect();
        Import { base, parts }
    });
    imports.filter(|import| !import.parts.is_empty()).collect()
}

/// The first word of a line whose end looks like a file's.
fn bare(line: &str) -> Option<&str> {
    let words = line.split(|c: char| c.is_whitespace() || "\"'[]();".contains(c));
    words.map(|word| word.trim_start_matches('/')).find(|word| {
        let file = word.rsplit(['/', '\\']).next().unwrap_or(word);
        file.rsplit_once('.').is_some_and(|(stem, extension)| !stem.is_empty() && !extension.is_empty())
    })
}
