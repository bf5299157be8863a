//! Which names a caret sees.

use multicoder_grammars::{LanguageId, SyntaxTree};

use crate::samples::{languages_with_grammar, sample_of};

/// Names in scope at the mark `|` of a text, which is taken out of it.
fn names_at(language: &str, marked: &str) -> Vec<String> {
    let offset = marked.find('|').unwrap();
    let text = marked.replacen('|', "", 1);
    SyntaxTree::parse(LanguageId::by_name(language).unwrap(), &text).unwrap().identifiers_in_scope(offset)
}

#[test]
fn nearest_names_come_first_and_closed_functions_hide_theirs() {
    let python = "import os\n\ndef other(hidden_arg):\n    hidden = 1\n\ndef f(arg, flag):\n    value = arg\n    total = value|\n\ndef later():\n    unseen = 1\n";
    let names = names_at("python", python);
    assert_eq!(names, ["total", "arg", "value", "flag", "f", "other", "os", "later"]);
}

#[test]
fn braces_hide_as_indentation_does() {
    let rust = "struct Point { x: f64 }\nfn other() { let hidden = 1; }\nfn f(first: Point) {\n    let second = first;\n    |\n}\n";
    let names = names_at("rust", rust);
    for visible in ["first", "second", "f", "other", "Point"] {
        assert!(names.iter().any(|name| name == visible), "{visible} is missing in {names:?}");
    }
    assert!(!names.iter().any(|name| name == "hidden"), "{names:?}");
    assert_eq!(names[0], "first", "the nearest name before the caret");
}

#[test]
fn parameters_and_locals_of_other_functions_are_hidden() {
    let cases = [
        (
            "c",
            "int other(int hidden_arg) { int hidden = 1; return hidden; }\nint f(int arg) {\n  int local = arg;\n  |\n}\n",
        ),
        (
            "java",
            "class A { int other(int hidden_arg) { int hidden = 1; return hidden; }\nint f(int arg) {\n  int local = arg;\n  |\n} }\n",
        ),
        ("go", "package a\nfunc other(hidden_arg int) { hidden := 1 }\nfunc f(arg int) {\n\tlocal := arg\n\t|\n}\n"),
        (
            "javascript",
            "function other(hidden_arg) { let hidden = 1; }\nfunction f(arg) {\n  let local = arg;\n  |\n}\n",
        ),
        ("julia", "function other(hidden_arg)\n  hidden = 1\nend\nfunction f(arg)\n  local_ = arg\n  |\nend\n"),
        ("r", "other <- function(hidden_arg) {\n  hidden <- 1\n}\nf <- function(arg) {\n  local <- arg\n  |\n}\n"),
        ("ocaml", "let other hidden_arg = let hidden = 1 in hidden\nlet f arg = let local = arg in |local\n"),
        ("elixir", "defmodule A do\n  def other(), do: 1\n  def f(arg) do\n    local = arg\n    |\n  end\nend\n"),
        ("kotlin", "fun other(hidden_arg: Int) { val hidden = 1 }\nfun f(arg: Int) {\n  val local = arg\n  |\n}\n"),
    ];
    for (language, marked) in cases {
        let names = names_at(language, marked);
        for visible in ["other", "f", "arg"] {
            assert!(names.iter().any(|name| name == visible), "{language}: {visible} is missing in {names:?}");
        }
        assert!(!names.iter().any(|name| name.starts_with("hidden")), "{language}: {names:?}");
    }
}

#[test]
fn every_language_has_names() {
    for id in languages_with_grammar() {
        let (path, text) = sample_of(id);
        let tree = SyntaxTree::parse(id, &text).unwrap();
        let names = tree.identifiers_in_scope(text.len() * 2 / 3);
        assert!(names.len() >= 5, "{}: {names:?}", path.display());
        assert!(names.iter().all(|name| !name.contains(char::is_whitespace)));
    }
}
