//! The form of files: a headline on each, bounded sizes, no unfinished work, nothing of the machine it was written on.

use multicoder_tests::source::{files, functions};
use multicoder_tests::{repository_root, skipped};
use std::path::PathBuf;
use std::process::Command;

const MAX_FILE_LINES: usize = 400;
const MAX_FUNCTION_LINES: usize = 80;

/// Files that may be longer, and why: long and flat is fine, long and deep is not.
const LONG_FILES: &[(&str, &str)] = &[("grammars/src/table.rs", "the table of languages, one row each")];

/// Functions that may be longer, and why.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

/// What must not be found in code, and what to do instead. Written in halves so that this file passes its own test.
const FORBIDDEN_CODE: &[(&str, &str)] = &[
    (concat!("todo", "!("), "write it, or open an issue"),
    (concat!("unimplemented", "!("), "write it, or return an error"),
    (concat!("#[ig", "nore"), "assert today's answer and say why, or skip with a printed reason"),
    (concat!("#[should_", "panic"), "return an error and assert it"),
    (concat!("dbg", "!("), "log through tracing"),
    (concat!("FIX", "ME"), "fix it, or open an issue"),
];

/// Places of one machine, which mean nothing on another.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/var/", "tmp"), concat!("/tm", "p/")];

fn fail_with(errors: &[String]) {
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}

#[test]
fn every_rust_file_says_what_it_is() {
    let sources = files(&repository_root(), &[".rs"]);
    let silent = sources.iter().filter(|file| !file.text.starts_with("//! "));
    fail_with(
        &silent.map(|file| format!("{}: the first line must be a `//! ` headline", file.path)).collect::<Vec<_>>(),
    );
}

#[test]
fn files_are_short() {
    let sources = files(&repository_root(), &[".rs"]);
    let allowed = |path: &str| LONG_FILES.iter().any(|(long, _)| *long == path);
    // Unit tests at the end of a file are not counted.
    let n_lines = |text: &str| text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    let long = sources.iter().filter(|file| n_lines(&file.text) > MAX_FILE_LINES && !allowed(&file.path));
    let errors = long.map(|file| format!("{}: {} lines, at most {MAX_FILE_LINES}", file.path, n_lines(&file.text)));
    fail_with(&errors.collect::<Vec<_>>());
}

#[test]
fn functions_are_short() {
    let mut errors = Vec::new();
    for file in files(&repository_root(), &[".rs"]) {
        let allowed = |name: &str| LONG_FUNCTIONS.iter().any(|(path, long, _)| *path == file.path && *long == name);
        let long = functions(&file.text).into_iter().filter(|f| f.n_lines > MAX_FUNCTION_LINES && !allowed(&f.name));
        errors.extend(long.map(|f| {
            format!("{}:{}: `{}` has {} lines, at most {MAX_FUNCTION_LINES}", file.path, f.line, f.name, f.n_lines)
        }));
    }
    fail_with(&errors);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut errors = Vec::new();
    for file in files(&repository_root(), &[".rs"]) {
        for (word, instead) in FORBIDDEN_CODE {
            let lines = file.lines().filter(|(_, line)| line.contains(word));
            errors.extend(lines.map(|(number, _)| format!("{}:{number}: `{word}`: {instead}", file.path)));
        }
    }
    fail_with(&errors);
}

#[test]
fn documents_are_filled_in() {
    let mut errors = Vec::new();
    for file in files(&repository_root(), &[".md"]) {
        let gaps = file.lines().filter(|(_, line)| line.contains("<!-- FILL"));
        errors.extend(gaps.map(|(number, line)| format!("{}:{number}: {line}", file.path)));
    }
    fail_with(&errors);
}

#[test]
fn no_path_of_one_machine() {
    let mut errors = Vec::new();
    for file in files(&repository_root(), &[".rs", ".md", ".toml", ".py", ".sh", ".lua", ".el", ".ci/run", ".json"]) {
        for (number, line) in file.lines() {
            let found = MACHINE_PATHS.iter().find(|path| names_place(line, path));
            errors.extend(found.map(|path| format!("{}:{number}: `{path}` is a place of one machine", file.path)));
        }
    }
    fail_with(&errors);
}

/// Does the line name `place` itself, not a longer path that has it inside (`../work/`)?
fn names_place(line: &str, place: &str) -> bool {
    let before = |index: usize| line[..index].chars().next_back();
    let inside = |character: char| character.is_alphanumeric() || ['.', '_', '-', '}', '*', '/'].contains(&character);
    line.match_indices(place).any(|(index, _)| !before(index).is_some_and(inside))
}

/// `cargo fmt` does not see modules that a macro declares; they are checked by path.
#[test]
fn files_behind_macros_are_formatted() {
    let root = repository_root();
    let sources = files(&root, &[".rs"]);
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in ["router", "modifier", "experts", "adapters"].map(|name| format!("model/src/{name}")) {
        let before = paths.len();
        paths.extend(sources.iter().filter(|file| file.is_under(&folder)).map(|file| root.join(&file.path)));
        assert!(paths.len() > before, "{folder}/ holds the rows of a table, one file each");
    }
    let output =
        Command::new("rustfmt").args(["--check", "--edition", "2024"]).args(&paths).current_dir(&root).output();
    match output {
        Err(error) => skipped("files_behind_macros_are_formatted", &format!("rustfmt does not start: {error}")),
        Ok(output) => {
            let differences = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success(),
                "run `rustfmt --edition 2024 model/src/{{router,modifier,experts,adapters}}/*.rs`\n{differences}"
            );
        }
    }
}
