//! Which language a file is written in, from what the editor says, what the file says of itself, and its name.
//!
//! The order is that of GitHub's Linguist with the editor before it and an order of preference after it: editor id, then
//! a modeline (an explicit statement), then the `#!` line, then file name, extension and content. Where the content leaves
//! several languages, the row of the table that lists the extension wins; a corpus may put its own prior before that.

use std::path::Path;

use linguist::DetectedLanguage;

use crate::language::LanguageId;

/// Content looked at, in bytes: the head decides, the tail may hold a modeline.
const HEAD_BYTES: usize = 48 * 1024;
const TAIL_BYTES: usize = 1024;
const MAX_LINE_BYTES: usize = 2000;

/// The language of a document, or `None` when nothing in the table fits.
///
/// `editor_id` is the editor's `languageId`; an unknown one, and those that mean "no language", count for nothing.
/// `text` may be empty, then only the names decide.
pub fn detect(editor_id: Option<&str>, path: &Path, text: &str) -> Option<LanguageId> {
    detect_with_prior(editor_id, path, text, None)
}

/// As [`detect`], with a language to prefer where an extension is shared and the content does not decide: the majority
/// language of the package that the file is from. A `.h` file without a trace of C++ in a C++ package is C++.
pub fn detect_with_prior(
    editor_id: Option<&str>,
    path: &Path,
    text: &str,
    prior: Option<LanguageId>,
) -> Option<LanguageId> {
    let plain = LanguageId::by_name("plaintext");
    let by_editor = editor_id.and_then(LanguageId::by_lsp_id).filter(|&id| Some(id) != plain);
    if by_editor.is_some() {
        return by_editor;
    }
    let sampled = sample(text);
    by_modeline(&sampled).or_else(|| by_shebang(text)).or_else(|| by_name_and_content(path, &sampled, prior))
}

fn by_modeline(text: &str) -> Option<LanguageId> {
    linguist::detect_language_by_modeline(text).ok()?.first().and_then(known)
}

/// The language of the interpreter that the first line names: `#!/usr/bin/env -S node --harmony`, `#!/usr/bin/python3`.
fn by_shebang(text: &str) -> Option<LanguageId> {
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    let program = shebang_program(lines.next()?)?;
    if program.ends_with("sh")
        && let Some(real) = lines.take(8).find_map(exec_program)
    {
        return Some(real);
    }
    LanguageId::by_interpreter(program)
}

/// The program of a `#!` line, without `env`, its options and its assignments.
fn shebang_program(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("#!")?.split_whitespace();
    let first = words.next()?;
    if !first.ends_with("/env") && first != "env" {
        return Some(first);
    }
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        match word {
            "-u" | "--unset" | "-C" | "--chdir" => _ = words.next(),
            _ if word.starts_with("-S") && word.len() > 2 => return Some(&word[2..]),
            _ if word.starts_with('-') || word.contains('=') => {}
            _ => return Some(word),
        }
    }
    None
}

/// The interpreter of a shell script that only replaces itself: `exec tclsh "$0" "$@"`.
fn exec_program(line: &str) -> Option<LanguageId> {
    let after_exec = line.trim_start_matches(['#', ' ', '\t', '"', '\'', ':']).strip_prefix("exec ")?;
    if !line.contains("$0") {
        return None;
    }
    LanguageId::by_interpreter(after_exec.split_whitespace().next()?.trim_matches('"'))
}

fn by_name_and_content(path: &Path, text: &str, prior: Option<LanguageId>) -> Option<LanguageId> {
    let own = by_own_table(path);
    // Without content the heuristics would fall through to their defaults; the table's preference is better.
    let by_linguist = linguist::detect_language(path, (!text.trim().is_empty()).then_some(text)).unwrap_or_default();
    let candidates: Vec<LanguageId> = by_linguist.iter().filter_map(known).collect();
    match candidates.as_slice() {
        [] if by_linguist.is_empty() => own,
        [] => None,
        [only] if by_linguist.len() == 1 => match prior {
            Some(prior) if is_default_rule(path, &by_linguist[0]) && shares_extension(path, prior) => Some(prior),
            _ => Some(*only),
        },
        several => {
            let preferred = [prior, own].into_iter().flatten().find(|id| several.contains(id));
            Some(preferred.unwrap_or(several[0]))
        }
    }
}

/// The table's own word on a path: whole file name, then the longest extension, then names like `Dockerfile.test`.
fn by_own_table(path: &Path) -> Option<LanguageId> {
    let file_name = path.file_name()?.to_str()?;
    if let Some(id) = LanguageId::by_filename(file_name) {
        return Some(id);
    }
    let dots = file_name.match_indices('.').map(|(dot, _)| dot);
    let by_extension = dots.clone().find_map(|dot| LanguageId::by_extension(&file_name[dot + 1..]));
    by_extension.or_else(|| LanguageId::by_filename(file_name.split('.').next()?))
}

/// Whether Linguist's answer is only its last resort for the extension: a rule that asks nothing of the content.
fn is_default_rule(path: &Path, answer: &DetectedLanguage) -> bool {
    let Some(extension) = dotted_extension(path) else { return false };
    linguist::definitions::HEURISTICS.disambiguations.iter().filter(|group| group.extensions.contains(&extension)).any(
        |group| {
            group.rules.last().is_some_and(|rule| {
                let unconditional = rule.pattern.is_none()
                    && rule.negative_pattern.is_none()
                    && rule.named_pattern.is_none()
                    && rule.and.is_none();
                unconditional && rule.language.iter().flatten().any(|name| name == answer.name)
            })
        },
    )
}

fn shares_extension(path: &Path, language: LanguageId) -> bool {
    let candidates = linguist::detect_language_by_extension(path).unwrap_or_default();
    candidates.iter().any(|candidate| known(candidate) == Some(language))
}

fn dotted_extension(path: &Path) -> Option<String> {
    Some(format!(".{}", path.extension()?.to_str()?.to_ascii_lowercase()))
}

fn known(detected: &DetectedLanguage) -> Option<LanguageId> {
    LanguageId::by_linguist_name(detected.name)
}

/// Head and tail of a long text. Very long lines are dropped: they are data, and regular expressions are slow on them.
fn sample(text: &str) -> String {
    let head_end = char_boundary_at_or_before(text, HEAD_BYTES);
    let tail_start = char_boundary_at_or_before(text, text.len().saturating_sub(TAIL_BYTES)).max(head_end);
    let lines = text[..head_end].lines().chain(text[tail_start..].lines());
    lines.filter(|line| line.len() <= MAX_LINE_BYTES).flat_map(|line| [line, "\n"]).collect()
}

fn char_boundary_at_or_before(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}
