//! Lines of held-out packages that use a name which only another file of the package defines, in CrossCodeEval's way (Ding et al. 2023,
//! arXiv 2310.11248, §2.2), for every language whose grammar tells where definitions are.
//!
//! The caret stands before the name, which occurs nowhere before it in its file and not soon after its line. Settings: `in file`, with the text after the line;
//! `retrieved`, also with the stretches of other files that resemble the lines before the caret; `oracle`, with the definition instead.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::Result;
use multicoder_grammars::{LanguageId, SyntaxTree, lexical, similar};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Packages;
use super::question::{Ending, Fragment, Question};
use crate::data::lines::floor_char;
use crate::data::shard;
use crate::evaluate::progress_bar;
use crate::evaluate::sample::is_code;

/// Questions of one package, so that one large package is not all of a language.
const PER_PACKAGE: usize = 20;
/// Files looked at in a package, drawn by the seed.
const MAX_FILES: usize = 150;
/// Longest file looked at, in bytes.
const MAX_FILE_BYTES: usize = 100_000;
/// Shortest name that is asked for, in bytes: shorter ones are guessed.
const MIN_NAME_BYTES: usize = 5;
/// Lines before the caret that other files are searched for.
const QUERY_LINES: usize = 20;
/// Text after the line that a prompt may show, in bytes.
const SHOWN_BYTES: usize = 2000;
/// Stretches shown.
const N_RETRIEVED: usize = 3;
/// First words of lines that bring names from elsewhere.
const IMPORTING: &[&str] = &[
    "import",
    "from",
    "use",
    "using",
    "require",
    "require_once",
    "require_relative",
    "include",
    "include_once",
    "open",
    "package",
    "export",
    "alias",
    "mod",
    "source",
    "library",
    "load",
    "extern",
];

/// A file of a package.
struct File {
    path: String,
    text: String,
    /// Names that it defines, each with its whole definition.
    definitions: Vec<(String, Range<usize>)>,
}

/// The questions of the packages, by language and package.
///
/// # Errors
/// Missing or broken shards.
pub fn questions(packages: &Packages<'_>) -> Result<Vec<Question>> {
    let mut by_package: BTreeMap<(LanguageId, String), Vec<(String, String)>> = BTreeMap::new();
    for document in shard::read_split(packages.shards, packages.split)? {
        let document = document?;
        let language = LanguageId::by_name(&document.language).filter(|language| language.has_grammar());
        let language = language.filter(|language| packages.wants(language.name()));
        if let Some(language) = language.filter(|_| document.text.len() <= MAX_FILE_BYTES) {
            by_package.entry((language, document.package)).or_default().push((document.path, document.text));
        }
    }
    let bar = progress_bar(by_package.len() as u64, "packages");
    let mut questions = Vec::new();
    for ((language, package), texts) in by_package {
        bar.inc(1);
        let files = files(language, &package, texts, packages.seed);
        questions.extend(of_package(language, &package, &files, packages.seed));
    }
    bar.finish_and_clear();
    Ok(questions)
}

fn files(language: LanguageId, package: &str, mut texts: Vec<(String, String)>, seed: u64) -> Vec<File> {
    texts.sort_by_cached_key(|(path, _)| xxh3_64_with_seed(format!("{package}\0{path}").as_bytes(), seed));
    texts.truncate(MAX_FILES);
    let file = |(path, text): (String, String)| {
        let tree = SyntaxTree::parse(language, &text);
        let definitions = tree.map_or_else(Vec::new, |tree| tree.definitions());
        let definitions = definitions.into_iter().map(|(name, whole)| (text[name].to_owned(), whole)).collect();
        File { path, text, definitions }
    };
    texts.into_iter().map(file).collect()
}

/// A use of a name: the file, the byte range of its rest of the line, and where it is defined.
struct Use {
    file: usize,
    rest: Range<usize>,
    defined_in: usize,
    definition: Range<usize>,
}

fn of_package(language: LanguageId, package: &str, files: &[File], seed: u64) -> Vec<Question> {
    let mut defined: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (at, file) in files.iter().enumerate() {
        file.definitions.iter().for_each(|(name, _)| {
            defined.entry(name).or_default().insert(at);
        });
    }
    let mut uses: Vec<(u64, Use)> = Vec::new();
    for (at, file) in files.iter().enumerate() {
        for found in uses_in(language, files, at, &defined) {
            let key = format!("{package}\0{}\0{}", file.path, found.rest.start);
            uses.push((xxh3_64_with_seed(key.as_bytes(), seed), found));
        }
    }
    uses.sort_by_key(|(rank, _)| *rank);
    uses.into_iter().take(PER_PACKAGE).flat_map(|(_, found)| settings(language, package, files, &found)).collect()
}

fn uses_in(language: LanguageId, files: &[File], at: usize, defined: &BTreeMap<&str, BTreeSet<usize>>) -> Vec<Use> {
    let file = &files[at];
    let mut uses = Vec::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut start = 0;
    for line in file.text.split_inclusive('\n') {
        let body = line.trim_end_matches('\n');
        let names = lexical::identifiers(language, body);
        if is_code(body, language.row().line_comment) && !is_import(body) {
            let elsewhere = |name: &&&str| {
                let only = defined.get(**name).filter(|files| files.len() == 1).and_then(|files| files.first());
                name.len() >= MIN_NAME_BYTES && !seen.contains(**name) && only.is_some_and(|&only| only != at)
            };
            if let Some(&name) = names.iter().find(elsewhere) {
                // A part of the line, so that their addresses tell where.
                let caret = start + (name.as_ptr() as usize - body.as_ptr() as usize);
                let defined_in = *defined[name].first().unwrap_or(&at);
                let whole = files[defined_in].definitions.iter().find(|(other, _)| other == name);
                if let Some((_, definition)) = whole {
                    let rest = caret..start + body.len();
                    let is_told = || {
                        lexical::words(&file.text[start..caret])
                            .chain(lexical::words(shown(&file.text[rest.end..])))
                            .any(|word| word == name)
                    };
                    if !is_told() {
                        uses.push(Use { file: at, rest, defined_in, definition: definition.clone() });
                    }
                }
            }
        }
        seen.extend(lexical::words(body));
        start += line.len();
    }
    uses
}

/// What of the text after the line may be shown.
fn shown(after: &str) -> &str {
    &after[..floor_char(after, SHOWN_BYTES)]
}

fn is_import(line: &str) -> bool {
    let first = line.trim_start().trim_start_matches(['#', '-', '@', '\\', '(']).trim_start();
    let word = first.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
    IMPORTING.contains(&word) || line.contains("require(") || line.contains("import(")
}

fn settings(language: LanguageId, package: &str, files: &[File], found: &Use) -> [Question; 3] {
    let file = &files[found.file];
    let text = &file.text;
    let question = |setting, fragments| Question {
        id: format!("{package}/{}:{}", file.path, text[..found.rest.start].matches('\n').count() + 1),
        language: language.name(),
        setting,
        prefix: text[..found.rest.start].to_owned(),
        suffix: text[found.rest.end..].to_owned(),
        fragments,
        truth: text[found.rest.clone()].to_owned(),
        ending: Ending::CaretLine,
        tests: None,
    };
    [
        question("in file", Vec::new()),
        question("retrieved", retrieved(files, found)),
        question("oracle", vec![definition(&files[found.defined_in], &found.definition)]),
    ]
}

/// The best one last.
fn retrieved(files: &[File], found: &Use) -> Vec<Fragment> {
    let before = &files[found.file].text[..found.rest.start];
    let start = before.rmatch_indices('\n').nth(QUERY_LINES).map_or(0, |(newline, _)| newline + 1);
    let others: Vec<usize> = (0..files.len()).filter(|&at| at != found.file).collect();
    let texts: Vec<&str> = others.iter().map(|&at| files[at].text.as_str()).collect();
    let matches = similar::matches(&before[start..], &texts, N_RETRIEVED);
    let fragment = |found: &similar::Match| Fragment {
        path: files[others[found.text]].path.clone(),
        text: texts[found.text][found.bytes.clone()].to_owned(),
    };
    matches.iter().rev().map(fragment).collect()
}

/// The first lines of a definition.
fn definition(file: &File, bytes: &Range<usize>) -> Fragment {
    let start = file.text[..bytes.start].rfind('\n').map_or(0, |newline| newline + 1);
    let lines: String = file.text[start..].split_inclusive('\n').take(similar::STRETCH_LINES).collect();
    Fragment { path: file.path.clone(), text: lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(texts: &[(&str, &str)]) -> Vec<Question> {
        let language = LanguageId::by_name("python").unwrap();
        let texts = texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        of_package(language, "p", &files(language, "p", texts, 1), 1)
    }

    #[test]
    fn a_name_is_asked_for_where_only_another_file_defines_it_and_nothing_before_says_it() {
        let tools = "import os\n\ndef frobnicate(x):\n    return x + 1\n\ndef other_tool(x):\n    return x\n";
        let own = "from tools import other_tool\n\ndef local_helper(y):\n    return y\n\n\
                   value = local_helper(1) + other_tool(2)\nresult = value + frobnicate(value)\nagain = other_tool(result) + 1\n";
        let questions = package(&[("tools.py", tools), ("own.py", own)]);
        let asked: Vec<(&str, &str)> = questions.iter().map(|of| (of.setting, of.truth.as_str())).collect();
        let truth = "frobnicate(value)";
        assert_eq!(asked, [("in file", truth), ("retrieved", truth), ("oracle", truth)]);
        for question in &questions {
            assert_eq!(format!("{}{}{}", question.prefix, question.truth, question.suffix), own);
        }
        assert!(questions[0].fragments.is_empty());
        let oracle = &questions[2].fragments[0];
        assert_eq!((oracle.path.as_str(), oracle.text.starts_with("def frobnicate(x):")), ("tools.py", true));
    }

    #[test]
    fn what_two_files_define_or_an_import_names_is_not_asked_for() {
        let tool = "def frobnicate(x):\n    return x + 1\n";
        let user = "result = other + frobnicate(other)\n";
        assert_eq!(package(&[("a.py", tool), ("b.py", tool), ("c.py", user)]), []);
        assert_eq!(package(&[("a.py", tool), ("c.py", &format!("from a import frobnicate\n{user}"))]), []);
        // Nor what the text around it says.
        assert_eq!(package(&[("a.py", tool), ("c.py", &format!("{user}{user}"))]), []);
        assert_eq!(package(&[("a.py", tool), ("c.py", "log(\"frobnicate\", frobnicate(x))\n")]), []);
        assert_eq!(package(&[("a.py", tool), ("c.py", user)]).len(), 3);
    }

    #[test]
    fn a_package_is_asked_about_a_few_times_only() {
        let tools: String = (0..60).map(|n| format!("def function_{n}(x):\n    return x\n\n")).collect();
        let user: String = (0..60).map(|n| format!("value = function_{n}(value)\n")).collect();
        let questions = package(&[("tools.py", &tools), ("user.py", &user)]);
        assert_eq!(questions.len(), 3 * PER_PACKAGE);
        let ids: BTreeSet<(&str, &str)> = questions.iter().map(|of| (of.setting, of.id.as_str())).collect();
        assert_eq!(ids.len(), questions.len());
    }
}
