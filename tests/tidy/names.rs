//! Names: the shape suffixes of tensors, and the frozen list of command line flags.

use multicoder_tests::program::{binary, run};
use multicoder_tests::repository_root;
use multicoder_tests::source::files;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

/// Letters in the key at the top of `model/src/lib.rs`: capital letters that stand alone in its `//!` lines.
fn shape_key() -> BTreeSet<char> {
    let text = std::fs::read_to_string(repository_root().join("model/src/lib.rs")).expect("model/src/lib.rs");
    let header = text.lines().filter_map(|line| line.strip_prefix("//!"));
    let words = header.flat_map(|line| line.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() == 1));
    words.filter_map(|word| word.chars().next()).filter(char::is_ascii_uppercase).collect()
}

/// Identifiers of a line with a shape suffix: `w_up_EDF` gives (`w_up_EDF`, `EDF`). A dimension of one may be written `1`.
fn suffixed(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let code = line.split("//").next().unwrap_or_default();
    let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    words.filter_map(|word| {
        let (stem, suffix) = word.rsplit_once('_')?;
        let is_name = stem.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let is_shape = suffix.chars().any(|c| c.is_ascii_uppercase());
        let is_shape = is_shape && suffix.chars().all(|c| c.is_ascii_uppercase() || c == '1');
        (is_name && is_shape).then_some((word, suffix))
    })
}

#[test]
fn shape_letters_are_in_the_key() {
    let key = shape_key();
    for letter in "BLDHGKFEV".chars() {
        assert!(key.contains(&letter), "the shape key in model/src/lib.rs has {letter}; it lists {key:?}");
    }
    let mut errors = Vec::new();
    for file in
        files(&repository_root(), &[".rs"]).iter().filter(|file| file.is_under("model") || file.is_under("training"))
    {
        for (number, line) in file.lines() {
            let unknown = suffixed(line)
                .filter(|(_, suffix)| !suffix.chars().all(|letter| letter == '1' || key.contains(&letter)));
            errors.extend(
                unknown.map(|(word, _)| format!("{}:{number}: `{word}` has a letter outside the key", file.path)),
            );
        }
    }
    assert!(errors.is_empty(), "key {key:?}\n{}", errors.join("\n"));
}

/// A run is described by its preset and `--set path=value`, not by flags: a new flag is a decision, made here.
const TRAIN_FLAGS: &[&str] = &[
    "--config",
    "--device",
    "--dry-run",
    "--help",
    "--init-from",
    "--out",
    "--preset",
    "--resume",
    "--set",
    "--shards",
    "--tokenizer",
    "--version",
];

#[test]
fn training_flags_are_frozen() {
    let help =
        run(Command::new(binary("multicoder").expect("the binary")).args(["train", "--help"]), Duration::from_secs(30));
    let help = help.expect("multicoder train --help").stdout;
    let words = help.split(|c: char| c.is_whitespace() || [',', '=', '[', ']', '`', '(', ')'].contains(&c));
    let flags: BTreeSet<&str> = words.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert_eq!(flags, TRAIN_FLAGS.iter().copied().collect::<BTreeSet<_>>(), "flags of `multicoder train`\n{help}");
}
