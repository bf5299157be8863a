//! What is measured: whole files of a split, and lines of them with a caret inside. Seeded, and independent of any tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use multicoder_grammars::LanguageId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::data::lines::line_cut;
use crate::data::shard;
use crate::rng::Rng;

/// Lexical tokens (words, numbers, single signs) that a line needs to be asked for.
const MIN_LINE_TOKENS: usize = 3;
/// Longest line that is asked for, in bytes.
const MAX_LINE_BYTES: usize = 200;

/// What to draw from a split.
#[derive(Clone, Copy, Debug)]
pub struct SampleOptions<'a> {
    /// Only these languages; empty for all.
    pub languages: &'a [String],
    /// Text of one language, in bytes. A file takes at most a quarter of it and is cut at a line end beyond.
    pub max_bytes_per_language: usize,
    /// Line completions of one language.
    pub n_lines: usize,
    /// Of the order in which files and lines are drawn.
    pub seed: u64,
}

/// One language's part of the split.
#[derive(Clone, Debug, Default)]
pub struct LanguageSample {
    /// Name as in `multicoder_grammars::LANGUAGES`.
    pub language: String,
    /// Files, each whole or cut at a line end.
    pub texts: Vec<String>,
    /// Different packages among the files.
    pub n_packages: usize,
    /// Lines to complete.
    pub lines: Vec<LineCase>,
}

/// A caret in a line: given everything before it, and perhaps everything after the line, write the rest of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineCase {
    /// Index into [`LanguageSample::texts`].
    pub text: usize,
    /// Byte offset of the caret: before a lexical token drawn at random among those of the line.
    pub caret: usize,
    /// Byte offset of the line's end (its newline).
    pub line_end: usize,
}

impl LanguageSample {
    /// Text before the caret, the rest of the line, and text after the line, which begins with its newline.
    pub fn parts(&self, case: &LineCase) -> (&str, &str, &str) {
        let text = &self.texts[case.text];
        (&text[..case.caret], &text[case.caret..case.line_end], &text[case.line_end..])
    }

    /// UTF-8 bytes of all texts.
    pub fn n_bytes(&self) -> usize {
        self.texts.iter().map(String::len).sum()
    }
}

/// Draws from `shards`/`split`, by language name.
///
/// # Errors
/// Missing or broken shards; a wanted language that the split does not have.
pub fn draw(shards: &Path, split: &str, options: &SampleOptions<'_>) -> Result<Vec<LanguageSample>> {
    let mut files: BTreeMap<String, Vec<(u64, shard::Document)>> = BTreeMap::new();
    for document in shard::read_split(shards, split)? {
        let document = document?;
        let wanted = options.languages.is_empty() || options.languages.contains(&document.language);
        if wanted && !document.text.trim().is_empty() {
            let key = format!("{}\0{}", document.package, document.path);
            let rank = xxh3_64_with_seed(key.as_bytes(), options.seed);
            let drawn = files.entry(document.language.clone()).or_default();
            drawn.push((rank, document));
            forget(drawn, options.max_bytes_per_language);
        }
    }
    for language in options.languages {
        ensure!(files.contains_key(language), "{}/{split}: no file of language `{language}`", shards.display());
    }
    Ok(files.into_iter().map(|(language, files)| draw_language(language, files, options)).collect())
}

/// Drops what will not be drawn: what comes last, beyond twice as much text as is wanted.
fn forget(drawn: &mut Vec<(u64, shard::Document)>, max_bytes: usize) {
    if !drawn.len().is_power_of_two() {
        return;
    }
    drawn.sort_by_key(|(rank, _)| *rank);
    let mut n_bytes = 0;
    let enough = drawn.iter().position(|(_, document)| {
        n_bytes += line_cut(&document.text, max_bytes.div_ceil(4));
        n_bytes >= 2 * max_bytes
    });
    drawn.truncate(enough.map_or(drawn.len(), |at| at + 1));
}

fn draw_language(
    language: String,
    mut files: Vec<(u64, shard::Document)>,
    options: &SampleOptions<'_>,
) -> LanguageSample {
    files.sort_by_key(|(rank, _)| *rank);
    let mut packages = Vec::new();
    let mut sample = LanguageSample { language, ..LanguageSample::default() };
    let mut left = options.max_bytes_per_language;
    for (_, document) in files {
        if left == 0 {
            break;
        }
        let mut text = document.text;
        text.truncate(line_cut(&text, left.min(options.max_bytes_per_language.div_ceil(4))));
        left = left.saturating_sub(text.len());
        sample.texts.push(text);
        packages.push(document.package);
    }
    packages.sort_unstable();
    packages.dedup();
    sample.n_packages = packages.len();
    sample.lines = draw_lines(&sample, options);
    sample
}

fn draw_lines(sample: &LanguageSample, options: &SampleOptions<'_>) -> Vec<LineCase> {
    let comment = LanguageId::by_name(&sample.language).and_then(|id| id.row().line_comment);
    let mut cases: Vec<(u64, LineCase)> = Vec::new();
    for (text_idx, text) in sample.texts.iter().enumerate() {
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            // The last line may have been cut, or want its newline: not asked for.
            if let Some(body) = line.strip_suffix('\n')
                && is_code(body, comment)
            {
                let mut rng = Rng::keyed(options.seed, "line", &[text_idx as u64, start as u64]);
                let rank = rng.next_u64();
                let tokens = token_starts(body);
                let caret = start + tokens[rng.below(tokens.len())];
                cases.push((rank, LineCase { text: text_idx, caret, line_end: start + body.len() }));
            }
            start += line.len();
        }
    }
    cases.sort_by_key(|(rank, _)| *rank);
    cases.into_iter().take(options.n_lines).map(|(_, case)| case).collect()
}

/// Whether a line is long enough, short enough and code enough to be asked for; `comment` begins a comment in its language.
pub fn is_code(line: &str, comment: Option<&str>) -> bool {
    let code = line.trim();
    let in_comment = comment.is_some_and(|comment| code.starts_with(comment));
    line.len() <= MAX_LINE_BYTES
        && !in_comment
        && !code.starts_with("/*")
        && !code.starts_with("* ")
        && token_starts(line).len() >= MIN_LINE_TOKENS
}

/// Byte offsets of the lexical tokens of a line: runs of letters, digits and underscores, and single other signs.
fn token_starts(line: &str) -> Vec<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut starts = Vec::new();
    let mut in_word = false;
    for (at, c) in line.char_indices() {
        let goes_on = in_word && is_word(c);
        if !c.is_whitespace() && !goes_on {
            starts.push(at);
        }
        in_word = is_word(c);
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::{Document, ShardWriter};

    fn shards(dir: &Path) {
        for language in ["python", "ruby"] {
            let mut writer = ShardWriter::create(dir, "test", language).unwrap();
            for n in 0..40 {
                let text = format!("x_{n} = f({n}, y)\n# a comment of words\nend\n    return x_{n} + {n}\n").repeat(5);
                let document = Document {
                    text,
                    language: language.into(),
                    path: format!("{n}"),
                    package: format!("p{}", n % 3),
                    split: "test".into(),
                    ..Document::default()
                };
                writer.push(document).unwrap();
            }
            writer.finish().unwrap();
        }
    }

    #[test]
    fn sample_is_repeatable_within_its_budget_and_cases_are_lines_of_code() {
        let dir = tempfile::tempdir().unwrap();
        shards(dir.path());
        let options = SampleOptions { languages: &[], max_bytes_per_language: 4000, n_lines: 25, seed: 5 };
        let samples = draw(dir.path(), "test", &options).unwrap();
        assert_eq!(samples.iter().map(|s| s.language.as_str()).collect::<Vec<_>>(), ["python", "ruby"]);
        for sample in &samples {
            assert!(sample.n_bytes() <= 4000 && sample.n_bytes() > 3000);
            assert_eq!((sample.lines.len(), sample.n_packages), (25, 3));
            for case in &sample.lines {
                let (before, rest, after) = sample.parts(case);
                assert!(after.starts_with('\n') && !rest.trim().is_empty() && !rest.contains('\n'));
                let line = before.rsplit('\n').next().unwrap().to_owned() + rest;
                assert!(line.starts_with("x_") || line.starts_with("    return"), "{line}");
            }
        }
        let again = draw(dir.path(), "test", &options).unwrap();
        assert_eq!(again[0].lines, samples[0].lines);
        let other = draw(dir.path(), "test", &SampleOptions { seed: 6, ..options }).unwrap();
        assert_ne!(other[0].lines, samples[0].lines);
        let wanted = ["cobol".to_owned()];
        let error = draw(dir.path(), "test", &SampleOptions { languages: &wanted, ..options }).unwrap_err();
        assert!(error.to_string().contains("cobol"), "{error}");
    }

    #[test]
    fn lexical_tokens_begin_at_words_and_signs() {
        assert_eq!(token_starts("  a_1 += foo(2)"), [2, 6, 7, 9, 12, 13, 14]);
        assert_eq!(token_starts(""), [0usize; 0]);
    }
}
