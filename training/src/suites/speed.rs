//! How long an answer takes, by the text that stands before and after the caret: asked afresh, and once more after one key.
//!
//! Nothing is scored: an answer has as many tokens as are allowed, unless the model ends it. What the asked keeps between two questions
//! shows in the second of each pair.

use anyhow::Result;
use multicoder_grammars::LanguageId;

use super::Packages;
use super::question::{Ending, Question};
use crate::data::lines::floor_char;

/// Text on both sides of the caret, in bytes, and the names of both questions.
const SIZES: [(usize, &str, &str); 3] = [
    (1_000, "1 kB, afresh", "1 kB, after a key"),
    (3_000, "3 kB, afresh", "3 kB, after a key"),
    (9_000, "9 kB, afresh", "9 kB, after a key"),
];
/// Of that text, the part before the caret.
const BEFORE: f64 = 0.75;
/// Carets of a language.
const CARETS: usize = 20;

/// The questions of the packages, each pair in a row.
///
/// # Errors
/// Missing or broken shards.
pub fn questions(packages: &Packages<'_>) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for sample in packages.samples(50 * CARETS)? {
        let Some(language) = LanguageId::by_name(&sample.language) else { continue };
        for (n_bytes, afresh, after_a_key) in SIZES {
            let (n_before, n_after) = ((BEFORE * n_bytes as f64) as usize, ((1.0 - BEFORE) * n_bytes as f64) as usize);
            let carets = sample.lines.iter().filter_map(|case| {
                let (before, line, after) = sample.parts(case);
                let key = line.chars().next()?;
                let before = &before[floor_char(before, before.len().checked_sub(n_before)?)..];
                Some((case, before, key, &after[..floor_char(after, n_after)]))
            });
            for (case, before, key, after) in carets.filter(|(.., after)| after.len() + 4 > n_after).take(CARETS) {
                questions.extend([(afresh, String::new()), (after_a_key, key.to_string())].map(|(setting, typed)| {
                    Question {
                        id: format!("{}/{}:{}", sample.language, case.text, case.caret),
                        language: language.name(),
                        setting,
                        prefix: format!("{before}{typed}"),
                        suffix: after.to_owned(),
                        fragments: Vec::new(),
                        truth: String::new(),
                        ending: Ending::Text,
                        tests: None,
                    }
                }));
            }
        }
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::{Document, ShardWriter};

    #[test]
    fn each_caret_is_asked_about_twice_with_as_much_text_as_its_setting_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "test", "lua").unwrap();
        let text: String = (0..600).map(|n| format!("local é{n} = f({n}, y)\n")).collect();
        let (path, package) = ("a.lua".to_owned(), "a".to_owned());
        let (language, split) = ("lua".to_owned(), "test".to_owned());
        writer.push(Document { text, language, path, package, split, ..Document::default() }).unwrap();
        writer.finish().unwrap();
        let questions = questions(&Packages { shards: dir.path(), split: "test", languages: &[], seed: 1 }).unwrap();
        assert_eq!(questions.len(), 2 * CARETS * SIZES.len());
        for pair in questions.chunks(2) {
            let (first, second) = (&pair[0], &pair[1]);
            assert_eq!((&first.id, &first.suffix), (&second.id, &second.suffix));
            assert!(first.setting.ends_with("afresh") && second.setting.ends_with("key"));
            let typed = second.prefix.strip_prefix(first.prefix.as_str()).unwrap();
            assert_eq!(typed.chars().count(), 1);
            let n_bytes = 1000.0 * f64::from(first.setting.as_bytes()[0] - b'0');
            let n = (first.prefix.len() + first.suffix.len()) as f64;
            assert!((n - n_bytes).abs() < 8.0, "{}: {n}", first.setting);
        }
    }
}
