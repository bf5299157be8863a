//! Documents made from tables are current, and the links of the others lead somewhere. (`docs/languages.md` is held by the
//! tests of `grammars/`.)
//!
//! `UPDATE_EXPECT=1 cargo test --release -p multicoder-tests --test tidy` writes it anew.

use expect_test::expect_file;
use multicoder_tests::repository_root;
use multicoder_tests::source::{SourceFile, files};

#[test]
fn methods_document_is_current() {
    expect_file!["../../docs/methods.md"].assert_eq(&multicoder_model::table_markdown().unwrap());
}

#[test]
fn suites_document_has_the_table_of_suites() {
    let page = std::fs::read_to_string(repository_root().join("docs/suites.md")).unwrap();
    let table = multicoder_training::suites::table_markdown();
    assert!(page.contains(&table), "docs/suites.md: expected this table:\n{table}");
}

/// Targets of `[text](target)` in a line that are files, without the `#section`.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let targets = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    targets.filter_map(|target| target.split('#').next()).filter(|target| !target.is_empty())
}

#[test]
fn links_lead_somewhere() {
    let root = repository_root();
    let broken = |file: &SourceFile| {
        let folder = root.join(&file.path).parent().map(ToOwned::to_owned).unwrap_or_default();
        let missing = |target: &&str| !folder.join(target).exists();
        let report = |(number, line): (usize, &str)| {
            let missing: Vec<_> = link_targets(line).filter(missing).collect();
            (!missing.is_empty()).then(|| format!("{}:{number}: no such file: {}", file.path, missing.join(", ")))
        };
        file.lines().filter_map(report).collect::<Vec<_>>()
    };
    let errors: Vec<String> = files(&root, &[".md"]).iter().flat_map(broken).collect();
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}
