//! Large, deep and hostile inputs: an answer or a refusal in bounded time, never a crash.

use std::path::Path;
use std::time::{Duration, Instant};

use multicoder_grammars::{LanguageId, SyntaxTree, detect};

use crate::samples::{languages_with_grammar, sample_of};

fn language(name: &str) -> LanguageId {
    LanguageId::by_name(name).unwrap()
}

/// Asks every question once, so that no walk overflows the stack.
fn ask_everything(tree: &SyntaxTree) {
    let offset = tree.text().len() / 2;
    _ = (tree.error_count(), tree.error_bytes(), tree.in_string(offset), tree.in_comment(offset));
    _ = (tree.enclosing_block(offset), tree.identifiers_in_scope(offset), tree.node_spans(16).count());
}

#[test]
fn five_megabytes_are_parsed_or_refused_in_time() {
    for name in ["rust", "python", "javascript", "c"] {
        let (_, sample) = sample_of(language(name));
        let text = sample.repeat(5_000_000 / sample.len() + 1);
        let started = Instant::now();
        if let Some(tree) = SyntaxTree::parse_within(language(name), &text, Duration::from_secs(3)) {
            ask_everything(&tree);
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{name}: {:?}", started.elapsed());
    }
}

#[test]
fn deep_nesting_overflows_nothing() {
    for id in languages_with_grammar() {
        for (open, close) in [("(", ")"), ("[", "]"), ("{", "}"), ("if x then ", "")] {
            let text = open.repeat(10_000) + &close.repeat(10_000);
            let started = Instant::now();
            if let Some(tree) = SyntaxTree::parse_within(id, &text, Duration::from_millis(500)) {
                ask_everything(&tree);
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{id} {open:?}: {:?}", started.elapsed());
        }
    }
}

#[test]
fn a_budget_of_nothing_is_refused_and_a_text_too_long_too() {
    let (_, text) = sample_of(language("rust"));
    assert!(SyntaxTree::parse_within(language("rust"), &text.repeat(50), Duration::ZERO).is_none());
    let too_long = " ".repeat(multicoder_grammars::syntax::MAX_TEXT_BYTES + 1);
    assert!(SyntaxTree::parse(language("rust"), &too_long).is_none());
    assert!(SyntaxTree::parse(language("nim"), "echo 1").is_none(), "no grammar, no tree");
}

#[test]
fn empty_text_and_zero_bytes_parse() {
    for id in languages_with_grammar() {
        ask_everything(&SyntaxTree::parse(id, "").unwrap());
        ask_everything(&SyntaxTree::parse(id, "a\0b \u{feff} \r\n\r\r").unwrap());
    }
}

#[test]
fn detection_of_long_and_strange_texts_is_quick() {
    let one_line = "x=1;".repeat(1_500_000);
    let japanese = "日本語\n".repeat(500_000);
    let started = Instant::now();
    for (name, text) in [("a.h", &one_line), ("a.m", &japanese), ("a.pl", &one_line), ("noext", &japanese)] {
        _ = detect(None, Path::new(name), text);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}
