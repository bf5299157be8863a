//! The table is sorted, and no key of a lookup stands in two rows.

use std::collections::BTreeMap;

use multicoder_grammars::{LANGUAGES, Language, LanguageId};

#[test]
fn rows_are_sorted_by_name_and_names_are_plain() {
    for pair in LANGUAGES.windows(2) {
        assert!(pair[0].name < pair[1].name, "{} must stand after {}", pair[0].name, pair[1].name);
    }
    for row in LANGUAGES {
        let plain = row.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        assert!(plain && !row.name.is_empty(), "name {:?} must be lower-case letters and digits", row.name);
        assert_eq!(LanguageId::by_name(row.name).map(LanguageId::name), Some(row.name));
        assert!(!row.lsp_ids.is_empty(), "{} has no editor id", row.name);
        assert!(!row.linguist.is_empty(), "{} has no Linguist name", row.name);
    }
}

#[test]
fn keys_stand_in_one_row_only() {
    assert_unique("editor id", |row| row.lsp_ids);
    assert_unique("extension", |row| row.extensions);
    assert_unique("file name", |row| row.filenames);
    assert_unique("interpreter", |row| row.interpreters);
    assert_unique("Linguist name", |row| row.linguist);
}

fn assert_unique(column: &str, keys: fn(&'static Language) -> &'static [&'static str]) {
    let mut owner_of = BTreeMap::new();
    for row in LANGUAGES {
        for &key in keys(row) {
            if let Some(owner) = owner_of.insert(key, row.name) {
                panic!("{column} {key:?} stands in the rows of {owner} and {}", row.name);
            }
        }
    }
}

#[test]
fn keys_have_the_form_that_lookups_compare() {
    for row in LANGUAGES {
        for id in row.lsp_ids {
            assert_eq!(*id, id.to_ascii_lowercase(), "editor ids are compared in lower case: {}", row.name);
        }
        for extension in row.extensions {
            assert!(!extension.starts_with('.') && *extension == extension.to_ascii_lowercase(), "{extension}");
        }
        for name in row.linguist {
            assert!(linguist::definitions::LANGUAGES.contains_key(*name), "Linguist knows no language {name:?}");
        }
    }
}

#[test]
fn every_grammar_loads() {
    for id in LanguageId::all() {
        let Some(grammar) = id.row().grammar else { continue };
        let mut parser = tree_sitter::Parser::new();
        parser.set_language(&grammar()).unwrap_or_else(|error| panic!("grammar of {id}: {error}"));
    }
}

#[test]
fn the_promised_languages_have_trees() {
    let promised = "python java javascript typescript tsx go php ruby rust c cpp csharp kotlin scala swift lua perl r julia \
                    haskell ocaml elixir erlang bash solidity";
    for name in promised.split_whitespace() {
        assert!(LanguageId::by_name(name).is_some_and(LanguageId::has_grammar), "{name} must have a tree");
    }
    for name in "nim crystal tcl groovy sql zig racket dart clojure d fortran commonlisp prolog".split_whitespace() {
        assert!(LanguageId::by_name(name).is_some(), "{name} must have a row");
    }
}

#[test]
fn lookups_of_unknown_names_find_nothing() {
    assert_eq!(LanguageId::by_name("cobol85"), None);
    assert_eq!(LanguageId::by_lsp_id(""), None);
    assert_eq!(LanguageId::by_extension("no such"), None);
    assert_eq!(LanguageId::by_interpreter(""), None);
}
