//! What the tree answers about strings, comments, blocks, errors and edits, in every language with a grammar.

use std::time::Duration;

use multicoder_grammars::lexical::{LineContext, line_context};
use multicoder_grammars::{LanguageId, SyntaxTree};

use crate::samples::{languages_with_grammar, sample_of};

/// Language, and a text in which every word that begins with `quoted` is in a string, `remark` in a comment, and `plain` in
/// code.
#[rustfmt::skip]
const SNIPPETS: &[(&str, &str)] = &[
    ("bash", "plain1=\"quoted1 $(plain2) quoted2\" # remark1\necho 'quoted3' plain3\ncat <<EOF | plain4\nquoted4\nEOF\nplain5"),
    ("c", "int plain1 = 'q'; /* remark1 */ char *plain2 = \"quoted1\"; // remark2\nint plain3;"),
    ("cpp", "auto plain1 = R\"(quoted1 \")\"; /* remark1 */ auto plain2 = \"quoted2\"; // remark2\nint plain3;"),
    ("csharp", "var plain1 = $\"quoted1 {plain2} quoted2\"; /* remark1 */ var plain3 = @\"quoted3\"; // remark2\n/// remark3\nint plain4;"),
    ("elixir", "plain1 = \"quoted1 #{plain2} quoted2\" # remark1\nplain3 = ~s(quoted3)\nplain4 = 'quoted4'"),
    ("erlang", "plain1() -> \"quoted1\". % remark1\nplain2() -> plain3."),
    ("go", "package plain1\nvar plain2 = \"quoted1\" // remark1\nvar plain3 = `quoted2` /* remark2 */\n"),
    ("haskell", "plain1 = \"quoted1\" -- remark1\n{- remark2 -}\nplain2 = plain3\n-- | remark3\nplain4 = 1\n"),
    ("java", "class Plain1 { String plain2 = \"quoted1\"; /* remark1 */ // remark2\n/** remark3 */ int plain3; }"),
    ("javascript", "plain1 = `quoted1 ${plain2} quoted2`; // remark1\nplain3 = 'quoted3' /* remark2 */; plain4 = /quoted4/;"),
    ("julia", "plain1 = \"quoted1 $(plain2) quoted2\" # remark1\n#= remark2 =#\nplain3 = `quoted3`"),
    ("kotlin", "val plain1 = \"quoted1 ${plain2} quoted2\" // remark1\nval plain3 = \"\"\"quoted3\"\"\" /* remark2 */\nval plain4 = 1"),
    ("lua", "plain1 = 'quoted1' -- remark1\nplain2 = [[quoted2]] --[[ remark2 ]] plain3 = \"quoted3\""),
    ("ocaml", "let plain1 = \"quoted1\" (* remark1 *)\nlet plain2 = {|quoted2|}\nlet plain3 = plain1"),
    ("perl", "my $plain1 = \"quoted1\"; # remark1\nmy $plain2 = 'quoted2';\nmy $plain3 = q{quoted3};\n\n=pod\n\nremark2\n\n=cut\n\nmy $plain4 = 1;"),
    ("php", "<?php $plain1 = 'quoted1'; // remark1\n$plain2 = \"quoted2\"; /* remark2 */ # remark3\n$plain3 = <<<EOT\nquoted3\nEOT;\n$plain4 = 1;"),
    ("python", "plain1 = f'quoted1 {plain2} quoted2' # remark1\nplain3 = ('quoted3' 'quoted4') + plain4\nplain5 = b'quoted5'"),
    ("r", "plain1 <- \"quoted1\" # remark1\nplain2 <- 'quoted2'\nplain3 <- r\"(quoted3)\""),
    ("ruby", "plain1 = \"quoted1 #{plain2} quoted2\" # remark1\nplain3 = %w[quoted3]\nplain4 = <<~SQL\n  quoted4\nSQL\nplain5 = /quoted5/\n=begin\nremark2\n=end\nplain6 = `quoted6`"),
    ("rust", "fn plain1() { let plain2 = \"quoted1\"; /* remark1 */ // remark2\nlet plain3 = r#\"quoted2\"#; }\n/// remark3\nfn plain4() {}"),
    ("scala", "val plain1 = s\"quoted1 ${plain2} quoted2\" // remark1\nval plain3 = \"\"\"quoted3\"\"\" /* remark2 */"),
    ("solidity", "contract Plain1 { string plain2 = \"quoted1\"; /* remark1 */ // remark2\nuint plain3; }"),
    ("swift", "let plain1 = \"quoted1 \\(plain2) quoted2\" // remark1\nlet plain3 = \"\"\"\n  quoted3\n  \"\"\" /* remark2 */\nlet plain4 = 1"),
    ("tsx", "const plain1 = <Plain2 title=\"quoted1\">{plain3}</Plain2>; // remark1\nconst plain4 = `quoted2 ${plain5}`; /* remark2 */"),
    ("typescript", "const plain1: string = `quoted1 ${plain2} quoted2`; // remark1\nconst plain3: string = 'quoted3'; /* remark2 */"),
];

fn parse(name: &str, text: &str) -> SyntaxTree {
    SyntaxTree::parse(LanguageId::by_name(name).unwrap(), text).unwrap()
}

#[test]
fn strings_comments_and_code_are_told_apart() {
    let mut wrong = Vec::new();
    for (name, text) in SNIPPETS {
        let tree = parse(name, text);
        if tree.error_count() > 0 {
            wrong.push(format!("{name}: the snippet has errors: {}", tree.root().to_sexp()));
        }
        for (word, expected) in [("quoted", (true, false)), ("remark", (false, true)), ("plain", (false, false))] {
            for (start, _) in text.to_lowercase().match_indices(word) {
                let caret = start + 3;
                let found = (tree.in_string(caret), tree.in_comment(caret));
                if found != expected {
                    wrong.push(format!(
                        "{name}: {:?}: (string, comment) = {found:?}",
                        &text[start..start + word.len() + 1]
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_grammar_has_a_snippet() {
    for id in languages_with_grammar() {
        assert!(SNIPPETS.iter().any(|(name, _)| *name == id.name()), "SNIPPETS has no row for {id}");
    }
}

#[test]
fn edges_of_strings_and_comments() {
    let text = "x = 'ab'  # note\ny = 1\n";
    let tree = parse("python", text);
    let string = text.find('\'').unwrap();
    assert!(!tree.in_string(string), "before the opening quote");
    assert!(tree.in_string(string + 1), "after the opening quote");
    assert!(tree.in_string(string + 3), "before the closing quote");
    assert!(!tree.in_string(string + 4), "after the closing quote");
    let comment = text.find('#').unwrap();
    assert!(!tree.in_comment(comment));
    assert!(tree.in_comment(text.find('\n').unwrap()), "the end of a line comment is in it");
    assert!(!tree.in_comment(text.find('\n').unwrap() + 1));
    let tree = parse("c", "/* a */ int b;");
    assert!(tree.in_comment(3) && !tree.in_comment(7), "a block comment ends with its closer");
    let tree = parse("rust", "/// doc\nfn f() {}\n// end");
    assert!(tree.in_comment(7) && !tree.in_comment(8) && tree.in_comment(tree.text().len()));
}

#[test]
fn a_string_that_is_still_being_typed_is_a_string() {
    let unfinished = [
        ("python", "def f():\n    print(\"hello wor\n"),
        ("javascript", "function f() {\n  log('hello wor\n}\n"),
        ("rust", "fn f() {\n    let x = \"hello wor\n"),
        ("go", "package a\nfunc f() {\n\tx := \"hello wor\n}\n"),
        ("java", "class A { void f() {\n    log(\"hello wor\n  }\n}\n"),
        ("c", "int main(void) {\n    puts(\"hello wor\n}\n"),
    ];
    for (name, text) in unfinished {
        let tree = parse(name, text);
        assert!(tree.in_string(text.find("wor").unwrap() + 3), "{name}: at the end of the open string");
        assert!(!tree.in_string(text.find('\n').unwrap()), "{name}: before it");
    }
}

#[test]
fn lines_are_judged_alone_where_there_is_no_tree() {
    let judge = |name: &str, prefix| line_context(LanguageId::by_name(name).unwrap(), prefix);
    assert_eq!(judge("nim", "echo \"a # b"), LineContext::String);
    assert_eq!(judge("nim", "echo \"a\" # b"), LineContext::Comment);
    assert_eq!(judge("zig", "const a = \"\\\" // \"; b"), LineContext::Code);
    assert_eq!(judge("sql", "select 'it -- "), LineContext::String);
    assert_eq!(judge("clojure", "(quote 'a) ; don't"), LineContext::Comment);
    assert_eq!(judge("d", "auto é = \"日本"), LineContext::String);
}

#[test]
fn errors_are_counted_once_and_measured_in_bytes() {
    let tree = parse("python", "def f(:\n    return 1\n\nx = 2\n");
    assert!(tree.error_count() >= 1);
    assert!(tree.error_bytes() < 12, "{}", tree.error_bytes());
    let tree = parse("rust", "%%%% not rust at all %%%%");
    assert!(tree.error_bytes() > 10);
    let tree = parse("c", "int f(void) { return 1 }");
    assert_eq!((tree.error_count(), tree.error_bytes()), (1, 0), "a missing semicolon has no bytes");
}

#[test]
fn the_enclosing_block_follows_braces_and_indentation() {
    let text = "fn a() {\n    one();\n    if x {\n        two();\n    }\n}\n";
    let tree = parse("rust", text);
    let block = |needle: &str| &text[tree.enclosing_block(text.find(needle).unwrap() + 1)];
    assert!(block("two").starts_with("{\n        two") && block("two").ends_with("    }"));
    assert!(block("one").starts_with("{\n    one") && block("one").ends_with("}\n}"));
    assert_eq!(tree.enclosing_block(text.len()), 0..text.len());

    let text = "class A:\n    def f(self):\n        x = 1\n        \n    \ny = 2\n";
    let tree = parse("python", text);
    let in_function = text.find("        \n").unwrap() + 8;
    assert_eq!(&text[tree.enclosing_block(in_function)], "x = 1\n        ");
    let in_class = text.find("    \ny").unwrap() + 4;
    assert!(text[tree.enclosing_block(in_class)].starts_with("def f"));
    assert_eq!(tree.enclosing_block(text.len()), 0..text.len());
    let at_end_of_call = parse("python", "def f():\n    g()\n");
    assert_eq!(at_end_of_call.enclosing_block(16), 13..16, "a bracket of a call does not close the block");
}

#[test]
fn blocks_without_braces_are_seen_too() {
    let block = |name: &str, text: &str, needle: &str| {
        let range = parse(name, text).enclosing_block(text.find(needle).unwrap() + 1);
        text[range].to_owned()
    };
    let julia = "function f(x)\n    y = x\nend\n\nz = 1\n";
    assert_eq!(block("julia", julia, "y ="), "function f(x)\n    y = x\nend");
    assert_eq!(block("julia", julia, "z = 1"), julia);
    assert_eq!(block("ruby", "def f\n  one\nend\ntwo\n", "one"), "one");
    assert_eq!(block("ocaml", "let f x =\n  x + 1\n\nlet g = 2\n", "+ 1"), "f x =\n  x + 1");
    assert_eq!(block("haskell", "f x = do\n  y <- x\n  pure y\n", "pure"), "do\n  y <- x\n  pure y");
    assert_eq!(block("lua", "function f()\n  one()\nend\n", "one"), "one()");
}

#[test]
fn an_edited_tree_equals_a_fresh_one() {
    for id in languages_with_grammar() {
        let (path, text) = sample_of(id);
        let mut tree = SyntaxTree::parse(id, &text).unwrap();
        let middle = text[..text.len() / 2].rfind('\n').unwrap() + 1;
        let budget = Duration::from_secs(5);
        assert!(tree.edit(middle, middle, middle + 5, "x é\n", budget));
        assert!(tree.edit(0, text.find('\n').unwrap(), 0, "", budget));
        let fresh = SyntaxTree::parse(id, tree.text()).unwrap();
        assert_eq!(tree.root().to_sexp(), fresh.root().to_sexp(), "{}", path.display());
    }
}

#[test]
fn an_impossible_edit_changes_nothing() {
    let mut tree = parse("go", "package é\n");
    let budget = Duration::from_secs(1);
    assert!(!tree.edit(100, 101, 102, "xx", budget), "past the end");
    assert!(!tree.edit(9, 9, 10, "x", budget), "inside a character");
    assert!(!tree.edit(5, 3, 4, "x", budget), "backwards");
    assert!(!tree.edit(0, 0, 9, "x", budget), "a wrong new end");
    assert_eq!(tree.text(), "package é\n");
}

#[test]
fn questions_at_any_offset_have_an_answer() {
    for id in languages_with_grammar() {
        let tree = SyntaxTree::parse(id, "a é \" ' ( { [ 日本\n  # // -- ").unwrap();
        for offset in (0..60).chain([usize::MAX]) {
            _ = (tree.in_string(offset), tree.in_comment(offset), tree.identifiers_in_scope(offset));
            assert!(tree.text().get(tree.enclosing_block(offset)).is_some(), "{id} at {offset}");
        }
    }
}
