//! The meaning of each column of a language's table row, and lookups into the table.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use crate::table::LANGUAGES;

/// One row of [`LANGUAGES`]: everything that this project knows about a language.
pub struct Language {
    /// The project's own name: lower-case ASCII letters and digits. Used in presets, corpora, tokens and reports.
    pub name: &'static str,
    /// Names in GitHub's Linguist data that mean this language; the first one is the display title.
    pub linguist: &'static [&'static str],
    /// Ids that editors send as `languageId` (VS Code, Neovim file types, Helix, Emacs lsp-mode).
    pub lsp_ids: &'static [&'static str],
    /// File extensions without the dot. An extension stands in one row only: the row that wins when the content of
    /// a file does not decide.
    pub extensions: &'static [&'static str],
    /// Whole file names, compared exactly.
    pub filenames: &'static [&'static str],
    /// Programs named in a `#!` line, without version numbers.
    pub interpreters: &'static [&'static str],
    /// The tree-sitter grammar; `None` means that the language is served without a tree.
    pub grammar: Option<fn() -> tree_sitter::Language>,
    /// What begins a comment that ends with the line.
    pub line_comment: Option<&'static str>,
    /// What begins and what ends a comment that may span lines.
    pub block_comment: Option<(&'static str, &'static str)>,
}

impl Language {
    /// Name for people: `C#` where [`Language::name`] is `csharp`.
    pub fn title(&self) -> &'static str {
        self.linguist.first().copied().unwrap_or(self.name)
    }
}

/// A language, as the index of its row in [`LANGUAGES`]. The index is not stable between versions: store names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LanguageId(u16);

impl LanguageId {
    /// The language whose [`Language::name`] is exactly `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        LANGUAGES.binary_search_by(|row| row.name.cmp(name)).ok().map(Self::from_row_idx)
    }

    /// The language that an editor means by `lsp_id`; capitals do not matter.
    pub fn by_lsp_id(lsp_id: &str) -> Option<Self> {
        static INDEX: LazyLock<HashMap<&str, LanguageId>> = LazyLock::new(|| index_of(|row| row.lsp_ids));
        INDEX.get(lsp_id.to_ascii_lowercase().as_str()).copied()
    }

    /// The language that owns a file extension, given without its dot.
    pub fn by_extension(extension: &str) -> Option<Self> {
        static INDEX: LazyLock<HashMap<&str, LanguageId>> = LazyLock::new(|| index_of(|row| row.extensions));
        INDEX.get(extension).copied().or_else(|| INDEX.get(extension.to_ascii_lowercase().as_str()).copied())
    }

    /// The language of a whole file name such as `Makefile`.
    pub fn by_filename(filename: &str) -> Option<Self> {
        static INDEX: LazyLock<HashMap<&str, LanguageId>> = LazyLock::new(|| index_of(|row| row.filenames));
        INDEX.get(filename).copied()
    }

    /// The language run by an interpreter; `python3.12` and `/usr/bin/python` name the same one.
    pub fn by_interpreter(program: &str) -> Option<Self> {
        static INDEX: LazyLock<HashMap<&str, LanguageId>> = LazyLock::new(|| index_of(|row| row.interpreters));
        let file_name = program.rsplit(['/', '\\']).next().unwrap_or(program);
        let file_name = file_name.strip_suffix(".exe").unwrap_or(file_name);
        let unversioned = file_name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
        INDEX.get(file_name).or_else(|| INDEX.get(unversioned)).copied()
    }

    /// The language known to Linguist under `linguist_name`.
    pub fn by_linguist_name(linguist_name: &str) -> Option<Self> {
        static INDEX: LazyLock<HashMap<&str, LanguageId>> = LazyLock::new(|| index_of(|row| row.linguist));
        INDEX.get(linguist_name).copied()
    }

    /// The row of this language.
    pub fn row(self) -> &'static Language {
        &LANGUAGES[usize::from(self.0)]
    }

    /// Short for `row().name`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Whether a syntax tree can be had for this language.
    pub fn has_grammar(self) -> bool {
        self.row().grammar.is_some()
    }

    /// All languages, in the order of their names.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..LANGUAGES.len()).map(Self::from_row_idx)
    }

    fn from_row_idx(row_idx: usize) -> Self {
        // The table holds some hundred rows, so its indices fit.
        Self(row_idx as u16)
    }
}

impl fmt::Debug for LanguageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "LanguageId({})", self.name())
    }
}

impl fmt::Display for LanguageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

fn index_of(column: fn(&'static Language) -> &'static [&'static str]) -> HashMap<&'static str, LanguageId> {
    LanguageId::all().flat_map(|id| column(id.row()).iter().map(move |&key| (key, id))).collect()
}
