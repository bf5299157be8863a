//! Which files a corpus keeps. Pure functions of a path and its text; every refusal has a name that the report counts.
//!
//! Thresholds are those of The Stack and StarCoder (longest line 1000, mean line 100, a quarter alphanumeric) with the
//! additions that a corpus of published packages needs: built, vendored, generated and declaration files.

use std::path::Path;

use multicoder_grammars::syntax::UNHURRIED;
use multicoder_grammars::{LanguageId, SyntaxTree};
use serde::{Deserialize, Serialize};

use super::licence::Allowed;
use crate::data::lines::floor_char;

/// Files above this size in bytes are data, not source that anyone wrote.
pub const MAX_FILE_BYTES: u64 = 1_000_000;
/// Longest line, in characters.
const MAX_LINE_CHARS: usize = 1000;
/// Mean line, in characters.
const MAX_MEAN_LINE_CHARS: f64 = 100.0;
/// Least share of letters and digits.
const MIN_ALPHANUMERIC_FRAC: f64 = 0.25;
/// Fewest words of a file; a shorter one has no 5-gram to compare.
const MIN_WORDS: usize = 5;
/// Largest share of bytes inside syntax errors: files of another dialect, templates, compilers' negative tests.
const MAX_ERROR_FRAC: f64 = 0.05;

/// Why a file is not in the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drop {
    /// Larger than 1 MB.
    TooLarge,
    /// Not UTF-8, or holds NUL bytes.
    Encoding,
    /// In a folder of other people's code.
    Vendored,
    /// Output of a bundler or compiler, or minified.
    Built,
    /// TypeScript declarations without code.
    Declarations,
    /// Test data of compilers: deliberate errors.
    TestData,
    /// Says that a program wrote it.
    Generated,
    /// Lines too long.
    LongLines,
    /// Too few letters and digits.
    NotAlphanumeric,
    /// Fewer than five words.
    TooShort,
    /// Its own header states a licence that is not allowed.
    Licence,
    /// Too much of it does not parse.
    SyntaxErrors,
    /// The package has given as much of this language as its budget could take.
    OverPackageLimit,
    /// Same text as another file.
    ExactDuplicate,
    /// Nearly the same text as another file.
    NearDuplicate,
    /// Shares a passage with a benchmark.
    Benchmark,
    /// The language's budget is spent.
    OverBudget,
}

impl Drop {
    /// As people read it: `near duplicate`.
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned));
        name.unwrap_or_default().replace('_', " ")
    }
}

#[rustfmt::skip]
const VENDORED_FOLDERS: &[&str] = &[
    "node_modules", "bower_components", "vendor", "vendored", "_vendor", "third_party", "third-party", "thirdparty",
    "3rdparty", "3rd_party", "external", "externals", "extern", "contrib", "deps", "godeps", "_vendored_packages",
];
/// Folders of built files, in packages of the JavaScript family only.
#[rustfmt::skip]
const BUILT_FOLDERS: &[&str] = &["dist", "build", "umd", "cjs", "esm", "_cjs", "_esm", "es5", "bundles", "min", "out", "amd"];
#[rustfmt::skip]
const TEST_DATA_FOLDERS: &[&str] = &["testdata", "test-data", "test_data", "testsuite", "testsuites", "fixtures", "neg", "snapshots", "__snapshots__"];
#[rustfmt::skip]
const TEST_FOLDERS: &[&str] = &["test", "tests", "spec", "specs", "testing", "__tests__", "t", "androidtest"];

/// Languages whose grammar stumbles over good code (macros, formats), with the share of error bytes that is allowed.
const WEAK_GRAMMARS: &[(&str, f64)] =
    &[("c", 0.35), ("cpp", 0.35), ("perl", 0.2), ("commonlisp", 1.0), ("prolog", 0.2), ("d", 0.2), ("kotlin", 0.1)];

/// Judges by the path alone.
pub fn check_path(path: &str, language: LanguageId) -> Result<(), Drop> {
    let lower = path.to_lowercase();
    let family = matches!(language.name(), "javascript" | "typescript" | "tsx");
    let (folders, name) = lower.rsplit_once('/').unwrap_or(("", &lower));
    let within = |list: &[&str]| folders.split('/').any(|folder| list.contains(&folder));
    if within(VENDORED_FOLDERS) {
        return Err(Drop::Vendored);
    }
    let minified = name.contains(".min.") || name.contains("-min.") || name.contains(".bundle.");
    if family && (within(BUILT_FOLDERS) || minified) {
        return Err(Drop::Built);
    }
    if [".d.ts", ".d.mts", ".d.cts"].iter().any(|end| name.ends_with(end)) {
        return Err(Drop::Declarations);
    }
    if within(TEST_DATA_FOLDERS) { Err(Drop::TestData) } else { Ok(()) }
}

/// Whether a file is a test: kept, but the last to be taken when a budget is short.
pub fn is_test_material(path: &str) -> bool {
    let lower = path.to_lowercase();
    let (folders, name) = lower.rsplit_once('/').unwrap_or(("", &lower));
    let stem = name.split('.').next().unwrap_or(name);
    folders.split('/').any(|folder| TEST_FOLDERS.contains(&folder) || folder.ends_with("_tests"))
        || stem.starts_with("test_")
        || ["_test", "_tests", "_spec", "test_suite", "_suite"].iter().any(|end| stem.ends_with(end))
        || [".test.", ".spec."].iter().any(|mark| name.contains(mark))
}

/// UTF-8 text of a file's bytes, without a byte order mark, with `\n` line ends.
pub fn decode(bytes: &[u8]) -> Result<String, Drop> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.contains(&0) {
        return Err(Drop::Encoding);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Drop::Encoding)?;
    Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.to_owned() })
}

/// Judges by the text, cheap questions first; the parse is last.
pub fn check_text(text: &str, language: LanguageId, allowed: &Allowed) -> Result<(), Drop> {
    check_lines(text)?;
    check_characters(text)?;
    let head = head(text, 5);
    if is_generated(head) {
        return Err(Drop::Generated);
    }
    if matches!(language.name(), "javascript" | "typescript") && is_compiled(text) {
        return Err(Drop::Built);
    }
    if allowed.forbid(self::head(text, 40)) {
        return Err(Drop::Licence);
    }
    check_syntax(text, language)
}

/// The first `n_lines` lines.
fn head(text: &str, n_lines: usize) -> &str {
    let end = text.match_indices('\n').nth(n_lines - 1).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

fn check_lines(text: &str) -> Result<(), Drop> {
    let (mut n_lines, mut n_chars) = (0usize, 0usize);
    for line in text.lines() {
        let length = line.chars().count();
        if length > MAX_LINE_CHARS {
            return Err(Drop::LongLines);
        }
        n_lines += 1;
        n_chars += length;
    }
    let mean = n_chars as f64 / n_lines.max(1) as f64;
    if mean > MAX_MEAN_LINE_CHARS { Err(Drop::LongLines) } else { Ok(()) }
}

fn check_characters(text: &str) -> Result<(), Drop> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    if words.take(MIN_WORDS).count() < MIN_WORDS {
        return Err(Drop::TooShort);
    }
    let (n_good, n_all) =
        text.chars().fold((0usize, 0usize), |(good, all), c| (good + usize::from(c.is_alphanumeric()), all + 1));
    if (n_good as f64) < MIN_ALPHANUMERIC_FRAC * n_all as f64 { Err(Drop::NotAlphanumeric) } else { Ok(()) }
}

fn is_generated(head: &str) -> bool {
    let lower = head.to_lowercase();
    #[rustfmt::skip]
    let marks = ["generated by", "do not edit", "don't edit", "@generated", "autogenerated", "auto-generated", "automatically generated", "machine generated"];
    marks.iter().any(|mark| lower.contains(mark))
}

/// JavaScript that a compiler or bundler wrote.
fn is_compiled(text: &str) -> bool {
    let head = head(text, 60);
    #[rustfmt::skip]
    let marks = ["\"__esModule\"", "'__esModule'", "__importDefault", "__createBinding", "__webpack_require__", "_interopRequire", "//#region node_modules"];
    marks.iter().any(|mark| head.contains(mark)) || text.contains("\n//# sourceMappingURL=")
}

fn check_syntax(text: &str, language: LanguageId) -> Result<(), Drop> {
    let limit = WEAK_GRAMMARS.iter().find(|(name, _)| *name == language.name()).map_or(MAX_ERROR_FRAC, |(_, l)| *l);
    if limit >= 1.0 {
        return Ok(());
    }
    // What is kept must not depend on how busy the machine is.
    let Some(tree) = SyntaxTree::parse_within(language, text, UNHURRIED) else { return Ok(()) };
    let error_frac = tree.error_bytes() as f64 / text.len().max(1) as f64;
    if error_frac > limit { Err(Drop::SyntaxErrors) } else { Ok(()) }
}

/// The beginning of a text, `n` bytes at most, whole characters.
pub fn head_bytes(text: &str, n: usize) -> &str {
    &text[..floor_char(text, n)]
}

/// The language of a file, if it is one of `accepted`; `prior` decides between languages that share an extension.
pub fn language_of(path: &str, text: &str, prior: Option<LanguageId>) -> Option<LanguageId> {
    multicoder_grammars::detect_with_prior(None, Path::new(path), text, prior)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(name: &str) -> LanguageId {
        LanguageId::by_name(name).unwrap()
    }

    #[test]
    fn heads_end_between_characters() {
        assert_eq!([0, 1, 2, 3, 9].map(|n| head_bytes("aéx", n)), ["", "a", "a", "aé", "aéx"]);
    }

    #[test]
    fn paths() {
        let (js, py) = (language("javascript"), language("python"));
        assert_eq!(check_path("a/node_modules/b/c.js", js), Err(Drop::Vendored));
        assert_eq!(check_path("src/Vendor/x.py", py), Err(Drop::Vendored));
        assert_eq!(check_path("dist/x.js", js), Err(Drop::Built));
        assert_eq!(check_path("dist/x.py", py), Ok(()));
        assert_eq!(check_path("lib/jquery.min.js", js), Err(Drop::Built));
        assert_eq!(check_path("src/a.d.ts", language("typescript")), Err(Drop::Declarations));
        assert_eq!(check_path("go/testdata/x.go", language("go")), Err(Drop::TestData));
        assert_eq!(check_path("src/vendors.py", py), Ok(()));
        assert!(is_test_material("src/test/java/A.java") && is_test_material("a/b_test.go"));
        assert!(!is_test_material("src/latest/contest.py"));
    }

    #[test]
    fn bytes() {
        assert_eq!(decode(b"\xef\xbb\xbfa\r\nb\rc"), Ok("a\nb\nc".to_owned()));
        assert_eq!(decode(b"caf\xe9"), Err(Drop::Encoding));
        assert_eq!(decode(b"a\0b"), Err(Drop::Encoding));
    }

    #[test]
    fn texts() {
        let py = language("python");
        let check_text = |text: &str, language| super::check_text(text, language, &Allowed::default());
        let good = "def area(width, height):\n    return width * height\n";
        assert_eq!(check_text(good, py), Ok(()));
        assert_eq!(check_text(&format!("x = '{}'\n{good}", "a".repeat(1001)), py), Err(Drop::LongLines));
        assert_eq!(check_text(&format!("x = '{}'\n", "a ".repeat(99)).repeat(3), py), Err(Drop::LongLines));
        assert_eq!(check_text("# one two\n", py), Err(Drop::TooShort));
        assert_eq!(check_text(&format!("a b c d e {}", "+-*/ ".repeat(9)), py), Err(Drop::NotAlphanumeric));
        assert_eq!(check_text(&format!("# Generated by protoc. DO NOT EDIT\n{good}"), py), Err(Drop::Generated));
        let gpl = format!("# This file is under the GNU General Public License\n{good}");
        assert_eq!(check_text(&gpl, py), Err(Drop::Licence));
        let broken = "def f(((:\n  ]] return class while } one two three\n= = = for in in\n";
        assert_eq!(check_text(broken, py), Err(Drop::SyntaxErrors));
        let built = "\"use strict\";\nObject.defineProperty(exports, \"__esModule\", { value: true });\n";
        assert_eq!(check_text(built, language("javascript")), Err(Drop::Built));
    }
}
