//! SQL in strings, known by its first two keywords. English begins sentences with the same words, so that what is not in capitals
//! needs to look like a query in more than these.

use super::string::{inside, strings, written};
use super::{Region, Source};
use crate::language::LanguageId;

/// How much of a string is looked at, in bytes.
const HEAD_BYTES: usize = 600;

/// First words of queries.
const VERBS: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "WITH", "ALTER", "DROP", "MERGE"];

/// What `CREATE`, `ALTER` and `DROP` speak of, and what may stand before it.
const OBJECTS: &[&str] = &[
    "TABLE",
    "INDEX",
    "VIEW",
    "TRIGGER",
    "FUNCTION",
    "PROCEDURE",
    "DATABASE",
    "SCHEMA",
    "TYPE",
    "SEQUENCE",
    "EXTENSION",
];
const QUALIFIERS: &[&str] = &["OR", "REPLACE", "TEMP", "TEMPORARY", "UNIQUE", "MATERIALIZED", "VIRTUAL", "UNLOGGED"];

/// Words of English that are no names of tables and columns.
const ARTICLES: &[&str] = &["a", "an", "the", "this", "these", "that", "your"];

/// Whether something that begins like a query stands after a quote.
pub(super) fn may_have(text: &str) -> bool {
    VERBS.iter().any(|verb| {
        [verb.to_string(), verb.to_ascii_lowercase()].iter().any(|verb| {
            text.match_indices(verb.as_str()).any(|(at, _)| {
                let before = text[..at].trim_end_matches([' ', '\t', '\r', '\n']);
                before.ends_with(['"', '\'', '`', '[', '(', '{', '|', '/', '!']) && is_query(&text[at..])
            })
        })
    })
}

/// Strings that are queries, without what is filled in.
pub(super) fn in_strings(source: &Source, found: &mut Vec<Region>) {
    let (Some(sql), Some(tree)) = (LanguageId::by_name("sql"), source.tree()) else { return };
    for node in strings(tree) {
        let Some(span) = inside(&source.text[node.byte_range()], node.start_byte()) else { continue };
        if !begins_with_verb(&source.text[span.clone()]) {
            continue;
        }
        let parts = written(&node, &span);
        // A placeholder for what is filled in: it may be a table's name.
        let query = parts.iter().map(|part| &source.text[part.clone()]).collect::<Vec<_>>().join("x");
        if is_query(&query) {
            found.extend(parts.into_iter().map(|span| Region { span, language: sql }));
        }
    }
}

fn begins_with_verb(text: &str) -> bool {
    let text = text.trim_start();
    VERBS.iter().any(|verb| text.get(..verb.len()).is_some_and(|word| word.eq_ignore_ascii_case(verb)))
}

/// The beginning of a text that may be a query.
struct Query<'a> {
    text: &'a str,
    /// Words and where each begins.
    words: Vec<(usize, &'a str)>,
    /// Whether keywords are in capitals; else all of them are small.
    in_capitals: bool,
}

/// Whether `text` begins with a query.
fn is_query(text: &str) -> bool {
    let text = text.trim_start();
    let end = (0..=HEAD_BYTES.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    // As written in a program, a line may end in two characters that would else stick to the next word.
    let text = ["\\n", "\\t", "\\r"].iter().fold(text[..end].to_owned(), |text, escape| text.replace(escape, "  "));
    let words = words(&text);
    let Some((_, verb)) = words.first().copied() else { return false };
    let in_capitals = verb.chars().all(|c| c.is_ascii_uppercase());
    let is_small = verb.chars().all(|c| c.is_ascii_lowercase());
    (in_capitals || is_small) && Query { text: &text, words, in_capitals }.is_complete(&verb.to_ascii_uppercase())
}

fn words(text: &str) -> Vec<(usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let starts = text.char_indices().filter(|&(at, c)| is_word(c) && !text[..at].ends_with(is_word));
    starts.map(|(at, _)| (at, text[at..].split(|c| !is_word(c)).next().unwrap_or_default())).collect()
}

impl Query<'_> {
    /// Whether what follows the verb makes a query of it.
    fn is_complete(&self, verb: &str) -> bool {
        if !self.in_capitals && !self.text.contains(['*', '=', '(', ',', '?', ';']) {
            return false;
        }
        match verb {
            "SELECT" => {
                self.find("FROM", usize::MAX).is_some_and(|from| self.has_columns(from) && self.is_name(from + 1))
            }
            "INSERT" => ["INTO", "OR", "IGNORE", "OVERWRITE"].iter().any(|word| self.is(word, 1)),
            "UPDATE" => self.is_name(1) && self.find("SET", 6).is_some(),
            "DELETE" => self.is("FROM", 1) && self.is_name(2),
            "WITH" => self.find("AS", usize::MAX).is_some() && self.find("SELECT", usize::MAX).is_some(),
            "MERGE" => self.is("INTO", 1) && self.is_name(2),
            "CREATE" | "ALTER" | "DROP" => {
                let mut rest = 1..self.words.len();
                let object = rest.find(|&idx| !QUALIFIERS.iter().any(|word| self.is(word, idx)));
                object.is_some_and(|idx| OBJECTS.iter().any(|word| self.is(word, idx)) && self.is_name(idx + 1))
            }
            _ => false,
        }
    }

    /// Whether the word at `idx` is this keyword, in the query's capitals or small letters.
    fn is(&self, keyword: &str, idx: usize) -> bool {
        self.words.get(idx).is_some_and(|(_, word)| match self.in_capitals {
            true => *word == keyword,
            false => word.eq_ignore_ascii_case(keyword),
        })
    }

    /// The first keyword of this name after the verb, among as many words.
    fn find(&self, keyword: &str, n_words: usize) -> Option<usize> {
        (1..self.words.len().min(n_words)).find(|&idx| self.is(keyword, idx))
    }

    fn is_name(&self, idx: usize) -> bool {
        self.words.get(idx).is_some_and(|(_, word)| !ARTICLES.iter().any(|article| word.eq_ignore_ascii_case(article)))
    }

    /// Whether columns stand between the verb and the word at `from`, and not the object of a sentence.
    fn has_columns(&self, from: usize) -> bool {
        let columns = self.text[..self.words[from].0].get(self.words[0].1.len()..).unwrap_or_default();
        let is_column = |column: &str| {
            let is_expression = column.contains(['(', ')', '*']) || column.to_ascii_lowercase().contains(" as ");
            is_expression || column.split_whitespace().count() == 1 || column.trim_start().starts_with("distinct ")
        };
        self.in_capitals || columns.split(',').all(is_column)
    }
}
