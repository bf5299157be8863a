//! The table of languages as the page `docs/languages.md`.

use std::fmt::Write;

use crate::language::{Language, LanguageId};

/// The page's text. A test holds the committed page equal to it.
pub fn languages_page() -> String {
    let mut page = String::from(PREFACE);
    let n_trees = LanguageId::all().filter(|id| id.has_grammar()).count();
    let n_languages = LanguageId::all().count();
    _ = writeln!(page, "{n_languages} languages, {n_trees} of them with a syntax tree.\n");
    page.push_str("| Language | Name | Tree | Editor ids | Extensions | File names | `#!` programs | Comments |\n");
    page.push_str("|---|---|---|---|---|---|---|---|\n");
    for id in LanguageId::all() {
        page.push_str(&table_line(id.row()));
    }
    page
}

const PREFACE: &str = "# Languages

<!-- Generated from grammars/src/table.rs. Renew with: UPDATE_DOCS=1 cargo test --release -p multicoder-grammars -->

A language is found from the editor's id first, then from a modeline, the `#!` line, the file name, the extension and the
content. A language without a tree is completed all the same; only what a tree answers (is the caret in a comment, where
does the block end, which names are in scope) is then judged from the line alone. An extension that several languages use
stands in the row that wins when the content of a file does not decide.

";

fn table_line(row: &Language) -> String {
    let tree = if row.grammar.is_some() { "yes" } else { "" };
    let comments = row.line_comment.into_iter().map(str::to_owned);
    let comments = comments.chain(row.block_comment.map(|(open, close)| format!("{open} {close}")));
    format!(
        "| {} | {} | {tree} | {} | {} | {} | {} | {} |\n",
        row.title(),
        row.name,
        code_list(row.lsp_ids.iter().map(|id| id.to_string())),
        code_list(row.extensions.iter().map(|extension| format!(".{extension}"))),
        code_list(row.filenames.iter().map(|name| name.to_string())),
        code_list(row.interpreters.iter().map(|program| program.to_string())),
        code_list(comments),
    )
}

/// Items in code quotes; a bar inside a cell would end it.
fn code_list(items: impl Iterator<Item = String>) -> String {
    let quoted: Vec<String> = items.map(|item| format!("`{}`", item.trim_end().replace('|', "\\|"))).collect();
    quoted.join(" ")
}
