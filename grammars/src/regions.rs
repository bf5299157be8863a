//! Stretches of a file that are in another language than the file: scripts in pages, fenced code in documents, SQL in strings.
//!
//! Each rule of [`RULES`] has a cheap test for what must be in a text for it to find anything; a text without it is not parsed.
//! Regions inside regions are not looked for.

use std::cell::OnceCell;
use std::ops::Range;

use crate::language::LanguageId;
use crate::syntax::SyntaxTree;

mod fence;
mod heredoc;
mod markup;
mod sql;
mod string;

/// A stretch of a file in another language than the file's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Bytes of the file's text, without what encloses them: quotes, tags, fences.
    pub span: Range<usize>,
    /// What the stretch is written in; never the file's own language.
    pub language: LanguageId,
}

/// One kind of embedding.
struct Rule {
    /// The languages whose files have it; none means every one with a syntax tree.
    hosts: &'static [&'static str],
    /// Whether it is worth looking.
    may_have: fn(&str) -> bool,
    /// Adds what there is, in the order of the text.
    find: fn(&Source, &mut Vec<Region>),
}

const SCRIPTS: &[&str] = &["javascript", "tsx", "typescript"];
const HEREDOCS: &[&str] = &["bash", "perl", "php", "ruby"];
const DOC_COMMENTS: &[&str] = &["csharp", "dart", "rust", "swift", "zig"];

/// Where two rules find the same bytes, the one that stands first has them.
#[rustfmt::skip]
const RULES: &[Rule] = &[
    Rule { hosts: &["html", "svelte", "vue"], may_have: markup::may_have_elements, find: markup::elements },
    Rule { hosts: &["php"],    may_have: markup::may_have_markup_of_php, find: markup::markup_of_php },
    Rule { hosts: &["markdown"], may_have: fence::may_have,        find: fence::of_document },
    Rule { hosts: DOC_COMMENTS, may_have: fence::may_have,         find: fence::of_doc_comments },
    Rule { hosts: HEREDOCS,    may_have: heredoc::may_have,        find: heredoc::named_by_their_end },
    Rule { hosts: SCRIPTS,     may_have: string::may_have_tags,    find: string::tagged_templates },
    Rule { hosts: &[],         may_have: sql::may_have,            find: sql::in_strings },
];

/// The stretches of a file of `language` that are in other languages of the table, sorted and disjoint. A stretch that only holds
/// blanks is none.
pub fn embedded(language: LanguageId, text: &str) -> Vec<Region> {
    let source = Source { language, text, tree: OnceCell::new() };
    let mut regions = Vec::new();
    for rule in RULES {
        let is_host = rule.hosts.contains(&language.name()) || (rule.hosts.is_empty() && language.has_grammar());
        if is_host && (rule.may_have)(text) {
            let mut found = Vec::new();
            (rule.find)(&source, &mut found);
            regions = merged(regions, found);
        }
    }
    regions.retain(|region| region.language != language && !text[region.span.clone()].trim().is_empty());
    regions
}

/// A file, and its tree when a rule asks for it.
struct Source<'a> {
    language: LanguageId,
    text: &'a str,
    tree: OnceCell<Option<SyntaxTree>>,
}

impl Source<'_> {
    fn tree(&self) -> Option<&SyntaxTree> {
        self.tree.get_or_init(|| SyntaxTree::parse(self.language, self.text)).as_ref()
    }
}

/// Both in the order of the text, where `first` has what both have.
fn merged(first: Vec<Region>, second: Vec<Region>) -> Vec<Region> {
    let taken: Vec<Range<usize>> = first.iter().map(|region| region.span.clone()).collect();
    let mut all = first;
    let mut end = 0;
    for Region { span, language } in second {
        let span = span.start.max(end)..span.end;
        end = end.max(span.end);
        all.extend(without(&span, &taken).into_iter().map(|span| Region { span, language }));
    }
    all.sort_by_key(|region| region.span.start);
    all
}

/// What is left of `span` without the sorted, disjoint `holes`.
fn without(span: &Range<usize>, holes: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut left = Vec::new();
    let mut start = span.start;
    let first = holes.partition_point(|hole| hole.end <= span.start);
    for hole in holes[first..].iter().take_while(|hole| hole.start < span.end) {
        left.push(start..hole.start);
        start = hole.end;
    }
    left.push(start..span.end);
    left.retain(|part| part.start < part.end);
    left
}

/// The language that people call by this name, be it the table's, an editor's or an extension. Plain text is none.
fn language_called(name: &str) -> Option<LanguageId> {
    let name = name.to_ascii_lowercase();
    let name = match name.as_str() {
        "shell" | "console" | "shell-session" => "bash",
        "golang" => "go",
        other => other,
    };
    let found = LanguageId::by_name(name).or_else(|| LanguageId::by_lsp_id(name));
    found.or_else(|| LanguageId::by_extension(name)).filter(|id| id.name() != "plaintext")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Language and text of each region.
    fn found<'a>(language: &str, text: &'a str) -> Vec<(&'static str, &'a str)> {
        let regions = embedded(LanguageId::by_name(language).unwrap(), text);
        regions.into_iter().map(|region| (region.language.name(), &text[region.span])).collect()
    }

    #[test]
    fn scripts_and_styles_of_pages() {
        let page = "<style media=x>a { b: c }</style>\n<!-- <script>no()</script> -->\n<script src=\"x.js\"></script>\n\
                    <SCRIPT type=\"module\">\nif (a < b) f('</p>');\n</SCRIPT><script type='application/ld+json'>{}</script>\
                    <scripted>x</scripted>";
        assert_eq!(
            found("html", page),
            [("css", "a { b: c }"), ("javascript", "\nif (a < b) f('</p>');\n"), ("json", "{}")]
        );
        let component =
            "<script setup lang=\"ts\">let a: A</script>\n<template><p/></template>\n<style lang='scss'>a{}</style>";
        assert_eq!(found("vue", component), [("typescript", "let a: A"), ("scss", "a{}")]);
        assert_eq!(found("svelte", "<script>let a = 1;</script>\n{a}"), [("javascript", "let a = 1;")]);
        assert_eq!(found("html", "<script type='text/x-template'><p></p></script><p title='<style>'>x</p><style>"), []);
    }

    #[test]
    fn markup_around_php() {
        let page = "<h1><?php echo '?>'; ?></h1>\n<script>f(<?= $x ?>, 1)</script>\n<p>\n<?php f();";
        assert_eq!(
            found("php", page),
            [
                ("html", "<h1>"),
                ("html", "</h1>\n<script>"),
                ("javascript", "f("),
                ("javascript", ", 1)"),
                ("html", "</script>\n<p>\n"),
            ]
        );
        assert_eq!(found("php", "<?php\necho \"<script>x</script>\";\n"), []);
    }

    #[test]
    fn fenced_code_of_documents() {
        let text = "# a\n```py title=x\nx = 1\n```\n~~~~ c++\nint x;\n~~~\n~~~~\n```\nplain\n```\n  ```{.r}\n  x\n  ```\n```text\nno\n```\n````sh\nls\n";
        let expected = [("python", "x = 1\n"), ("cpp", "int x;\n~~~\n"), ("r", "  x\n"), ("bash", "ls\n")];
        assert_eq!(found("markdown", text), expected);
        assert_eq!(found("markdown", "A ```py x``` inline, and `x`.\n"), []);
    }

    #[test]
    fn fenced_code_of_doc_comments() {
        let text = "/// A\n/// ```toml\n/// a = 1\n///\n/// b = 2\n/// ```\n/// ```\n/// f();\n/// ```\n//! ```json\nfn f() {}\n/// {}\n";
        assert_eq!(found("rust", text), [("toml", "a = 1\n"), ("toml", "b = 2\n")]);
    }

    #[test]
    fn heredocs_whose_end_names_a_language() {
        assert_eq!(
            found("ruby", "x = run(<<~SQL, 1)\n  SELECT 1\nSQL\ny << SQL\nputs <<~EOS\n  a\nEOS\nrun <<CMD\nls\nCMD\n"),
            [("sql", "  SELECT 1\n")]
        );
        assert_eq!(found("bash", "cat <<'PY' | python\nprint(1)\nPY\n# a <<-SQL\n"), [("python", "print(1)\n")]);
        assert_eq!(found("bash", "bash <<BASH\nls\nBASH\n"), []);
        assert_eq!(found("php", "<?php\n$x = <<<'CSS'\na {}\n  CSS;\n"), [("css", "a {}\n")]);
        assert_eq!(found("perl", "my $x = <<\"HTML\";\n<p>\nHTML\n"), [("html", "<p>\n")]);
    }

    #[test]
    fn templates_with_a_tag() {
        let text = "const a = css`b { c: ${d}px }`, e = styled.div`f: g;`, h = styled(I)`j: k;`;\nconst q = gql`query { x }`;\n\
                    const s = /* sql */ `delete from t`; f(String.raw`x`, `html`, other`y`);\n";
        let expected = [
            ("css", "b { c: "),
            ("css", "px }"),
            ("css", "f: g;"),
            ("css", "j: k;"),
            ("graphql", "query { x }"),
            ("sql", "delete from t"),
        ];
        assert_eq!(found("javascript", text), expected);
        assert_eq!(found("tsx", "const a: A = html`<p>${b}</p>`;"), [("html", "<p>"), ("html", "</p>")]);
    }

    #[test]
    fn queries_in_strings_of_many_languages() {
        let query = "SELECT a, b FROM t WHERE c = 1";
        let rows = [
            ("python", "x = run(f\"$\")\n"),
            ("python", "x = r'''$'''\n"),
            ("javascript", "run(`$`);\n"),
            ("go", "package a\nvar x = `$`\n"),
            ("java", "class A { String x = \"$\"; }\n"),
            ("csharp", "class A { string x = @\"$\"; }\n"),
            ("rust", "const X: &str = r#\"$\"#;\n"),
            ("cpp", "auto x = R\"sql($)sql\";\n"),
            ("c", "char *x = \"$\";\n"),
            ("lua", "local x = [[$]]\n"),
            ("php", "<?php $x = '$';\n"),
            ("ruby", "x = run(\"$\")\n"),
            ("perl", "my $x = \"$\";\n"),
            ("kotlin", "val x = \"\"\"$\"\"\"\n"),
            ("scala", "val x = \"$\"\n"),
            ("swift", "let x = \"$\"\n"),
            ("bash", "psql -c \"$\"\n"),
            ("r", "x <- run(\"$\")\n"),
            ("elixir", "x = run(\"$\")\n"),
            ("haskell", "x = \"$\"\n"),
            ("julia", "x = \"$\"\n"),
            ("ocaml", "let x = \"$\"\n"),
            ("solidity", "contract A { string x = \"$\"; }\n"),
            ("erlang", "-module(a).\nx() -> \"$\".\n"),
        ];
        for (language, template) in rows {
            let (before, after) = template.rsplit_once('$').unwrap();
            let text = format!("{before}{query}{after}");
            assert_eq!(found(language, &text), [("sql", query)], "{language}: {text}");
        }
        assert_eq!(
            found("python", "f(f'INSERT INTO {t} VALUES (?)')\n"),
            [("sql", "INSERT INTO "), ("sql", " VALUES (?)")]
        );
    }

    #[test]
    fn statements_that_are_queries_and_sentences_that_are_not() {
        let queries = [
            "select * from users",
            "  insert into t (a) values (1)",
            "UPDATE users SET a = 1",
            "DELETE FROM t",
            "delete from t where id = ?",
            "CREATE UNIQUE INDEX i ON t (a)",
            "create table if not exists t (id int)",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "SELECT 1 AS a FROM (SELECT 2)",
            "DROP TABLE IF EXISTS t",
            r"SELECT a\nFROM b",
            "INSERT OR REPLACE INTO t VALUES (1)",
        ];
        let sentences = [
            "select a file",
            "select a file from the list",
            "Select one of these from the menu",
            "Update the settings",
            "update the value and set it",
            "delete from cart",
            "Create a table from the data",
            "create table",
            "with the best wishes, as always",
            "WITH GREAT POWER",
            "selection from",
            "SELECT",
            "insert into the list of values",
            "drop tables",
            r"CREATE DATABASE\n",
            "insert one into the list (again)",
        ];
        for query in queries {
            assert_eq!(found("python", &format!("x = '{query}'\n")), [("sql", query)]);
        }
        for sentence in sentences {
            assert_eq!(found("python", &format!("x = '{sentence}'\n")), []);
        }
        assert_eq!(found("python", "# 'SELECT a FROM b'\nselect = from_ = 'a'\n"), []);
    }

    #[test]
    fn regions_taken_before_are_left_out_of_later_ones() {
        let [html, css] = ["html", "css"].map(|name| LanguageId::by_name(name).unwrap());
        let region = |span, language| Region { span, language };
        let merged = merged(vec![region(2..4, css), region(6..8, css)], vec![region(0..7, html), region(7..9, html)]);
        let spans: Vec<_> = merged.iter().map(|region| (region.span.clone(), region.language.name())).collect();
        assert_eq!(spans, [(0..2, "html"), (2..4, "css"), (4..6, "html"), (6..8, "css"), (8..9, "html")]);
    }

    #[test]
    fn broken_texts_are_no_trouble() {
        let pieces = [
            "<script",
            "<style>",
            "</script",
            ">",
            "<!--",
            "<?php ",
            "?>",
            "```js\n",
            "~~~",
            "/// ```toml\n",
            "<<SQL",
            "\n",
            "SQL\n",
            "css`",
            "`",
            "${",
            "}",
            "\"SELECT a FROM b",
            "'",
            "\u{e9}\u{1f600}",
            "R\"(",
            "[[",
            "q{",
            " type=\"",
            "lang='",
        ];
        for language in LanguageId::all() {
            let mut state = 1u64;
            for _ in 0..40 {
                let text: String = (0..12)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        pieces[(state >> 33) as usize % pieces.len()]
                    })
                    .collect();
                let mut end = 0;
                for region in embedded(language, &text) {
                    assert!(end <= region.span.start && region.span.start < region.span.end, "{language}: {text:?}");
                    assert!(
                        text.get(region.span.clone()).is_some() && region.language != language,
                        "{language}: {text:?}"
                    );
                    end = region.span.end;
                }
            }
        }
    }
}
