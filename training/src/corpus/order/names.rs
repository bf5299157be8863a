//! What a text imports, found by scanning for the words that begin an import; one row of [`FAMILIES`] a family of languages.
//!
//! Nothing is parsed: a name in a comment or a string is taken for an import too, and means nothing unless the package has such
//! a file.

use std::collections::BTreeSet;

use multicoder_grammars::LanguageId;

mod read;
mod table;

pub(super) use table::{FAMILIES, Family};
use table::{Names, Statement};

/// From where a name is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Base {
    /// Anywhere in the package.
    Anywhere,
    /// This many folders above the file's own.
    Folder(usize),
    /// This many parts above the file's own path, taken for a folder.
    Module(usize),
}

/// A name that a text imports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Import {
    pub(super) base: Base,
    /// As [`part`] makes them.
    pub(super) parts: Vec<String>,
}

/// The row of a language in [`FAMILIES`].
pub(super) fn family_of(language: LanguageId) -> Option<usize> {
    FAMILIES.iter().position(|family| family.languages.contains(&language.name()))
}

/// A part of a path or of a name as it is compared: languages differ in how they write a module's name and its file's
/// (`UserName` and `user_name.ex`, `Wire` and `wire.ml`).
pub(super) fn part(written: &str) -> String {
    let is_kept = |(at, c): &(usize, char)| *at == 0 || !matches!(c, '_' | '-');
    written.char_indices().filter(is_kept).map(|(_, c)| c.to_ascii_lowercase()).collect()
}

/// Everything that `text` imports, sorted.
pub(super) fn imports(language: LanguageId, text: &str) -> BTreeSet<Import> {
    let Some(family) = family_of(language).map(|idx| &FAMILIES[idx]) else { return BTreeSet::new() };
    let found = family.statements.iter().flat_map(|statement| {
        let places = text.match_indices(statement.opening).map(|(at, _)| at);
        places.filter(|&at| is_statement(statement, text, at)).flat_map(|at| read::names(family, statement, text, at))
    });
    found.collect()
}

/// Whether what is at `at` begins a statement: some stand at the beginning of a line, others wherever their word does.
fn is_statement(statement: &Statement, text: &str, at: usize) -> bool {
    let before = &text[..at];
    match statement.names {
        Names::Words(_) | Names::PythonFrom | Names::Bare => {
            let line = before.trim_end_matches([' ', '\t']);
            line.is_empty() || line.ends_with('\n') || line.ends_with('\u{feff}')
        }
        Names::Quoted(_) | Names::Listed(_) | Names::Capital => {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            !statement.opening.starts_with(is_word) || !before.ends_with(is_word)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_of_a_family_is_in_the_table_of_languages_and_in_no_other_family() {
        let names: Vec<&str> = FAMILIES.iter().flat_map(|family| family.languages).copied().collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(distinct.len(), names.len());
        names.iter().for_each(|name| assert!(LanguageId::by_name(name).is_some(), "{name}"));
    }

    fn shown(language: &str, text: &str) -> Vec<String> {
        let found = imports(LanguageId::by_name(language).unwrap(), text);
        found.iter().map(|import| format!("{:?} {}", import.base, import.parts.join("/"))).collect()
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(shown("python", "from ..a.b import (c, d as e)\n"), ["Folder(1) a/b/c", "Folder(1) a/b/d"]);
        assert_eq!(shown("python", "import a.b as c, d\nreimport x\n"), ["Anywhere a/b", "Anywhere d"]);
        assert_eq!(shown("rust", "use super::super::x::{Y, self};\n"), ["Module(2) x", "Module(2) x/y"]);
        assert_eq!(shown("javascript", "x = require('./a.min.js'), y = require('fs')"), ["Folder(0) a.min"]);
        assert_eq!(shown("c", "#include <a/b.h> // \"c.h\"\n"), ["Anywhere a/b.h"]);
        assert_eq!(shown("haskell", "import Data.Wire (x, y)\n"), ["Anywhere data/wire"]);
        assert_eq!(shown("pascal", "uses\n  Wire, Deep.Frame;\n"), ["Anywhere deep/frame", "Anywhere wire"]);
        assert_eq!(shown("nim", "import ../a/[b, c]\n"), ["Folder(1) a/b", "Folder(1) a/c"]);
        assert_eq!(
            shown("ocaml", "open Deep.Wire\nlet _ = List.map, x.field, 1.5"),
            ["Anywhere deep", "Anywhere deep/wire", "Anywhere list"]
        );
    }

    #[test]
    fn broken_and_endless_statements_are_no_trouble() {
        for language in LanguageId::all() {
            let statements = family_of(language).map_or(&[][..], |idx| FAMILIES[idx].statements);
            for Statement { opening, .. } in statements {
                for rest in
                    ["", "(", "\"", "\"\u{e9}", "'./", "{a, b", "../../..", "..", "\n", ";", "((((\u{1f600}", "a::{"]
                {
                    imports(language, &format!("{opening}{rest}"));
                }
                imports(language, &format!("{opening}{}", "\u{e9}(x\"".repeat(3_000)));
                imports(language, &opening.repeat(3_000));
            }
        }
    }
}
