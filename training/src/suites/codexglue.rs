//! CodeXGLUE's code completion (Lu et al. 2021, arXiv 2102.04664, §3.2): the rest of a line, and every single token, in Python (PY150) and
//! Java (JavaCorpus).
//!
//! The data is the user's own copy, as the benchmark's scripts make it: `py150/` and `javaCorpus/`, in each `line_completion/test.json`
//! (lines of JSON with `id`, `input`, `gt`), `token_completion/test.txt` (a file a line), or both. Text is asked for as the data has it,
//! signs apart by spaces, but with its literals put back as the published evaluator does (`<NUM_LIT>` is 0, `<STR_LIT:x>` is x).
#![allow(non_snake_case)]

use std::path::Path;

use anyhow::{Result, ensure};
use multicoder_model::copy::next_token_probs;
use multicoder_model::{CodeLm, Tokenizer};
use serde::{Deserialize, Serialize};

use super::question::{Ending, Question};
use super::read;
use crate::corpus::lines;
use crate::evaluate::neural::each_token;
use crate::evaluate::progress_bar;

/// Each folder, its language, and where its lines end.
const CORPORA: [(&str, &str, Ending); 2] =
    [("javaCorpus", "java", Ending::Statement), ("py150", "python", Ending::CaretLine)];
const LINES: &str = "line_completion/test.json";
const TOKENS: &str = "token_completion/test.txt";
/// Words of the data that are nobody's code.
const START: &str = "<s>";
const END: &str = "</s>";
const LINE_END: &str = "<EOL>";

#[derive(Deserialize)]
struct Record {
    id: u64,
    input: String,
    gt: String,
}

/// The questions of the folder `dir`.
///
/// # Errors
/// As of [`read::records`]; data without right answers, or none at all.
pub fn questions(dir: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (folder, language, ending) in &CORPORA {
        let path = dir.join(folder).join(LINES);
        if !path.exists() {
            continue;
        }
        for (place, record) in read::records::<Record>(&path)? {
            ensure!(!record.gt.trim().is_empty(), "{place}: gt: expected the right answer, got none");
            questions.push(Question {
                id: format!("{language}/{}", record.id),
                language,
                setting: "line",
                prefix: prefix(&record.input),
                suffix: String::new(),
                fragments: Vec::new(),
                truth: with_literals(record.gt.trim()),
                ending: ending.clone(),
                tests: None,
            });
        }
    }
    let has_tokens = CORPORA.iter().any(|(folder, ..)| dir.join(folder).join(TOKENS).exists());
    let [first, second] = CORPORA.map(|(folder, ..)| folder);
    ensure!(
        has_tokens || !questions.is_empty(),
        "{}: codexglue: expected {LINES} or {TOKENS} in {first} or {second}",
        dir.display()
    );
    Ok(questions)
}

/// Text before the caret, with the space that parts it from what follows.
fn prefix(input: &str) -> String {
    let text = Words::of(input).text;
    if text.is_empty() || text.ends_with('\n') { text } else { text + " " }
}

/// Single tokens of one corpus.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenAccuracy {
    /// Name of the language.
    pub language: &'static str,
    /// Files.
    pub n_files: usize,
    /// Tokens that count: all words but `<s>`, `</s>` and `<EOL>`.
    pub n_tokens: usize,
    /// Percent of them whose every piece was the likeliest, given all before it.
    pub accuracy: f64,
}

/// The share of tokens that the model says right, of the first files, at most `limit`, of each corpus of a wanted language that has a file
/// of tokens.
///
/// # Errors
/// A file that cannot be read; errors of the tokenizer and the model.
pub fn token_accuracy(
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    dir: &Path,
    (languages, limit): (&[String], Option<usize>),
) -> Result<Vec<TokenAccuracy>> {
    let mut accuracies = Vec::new();
    for (folder, language, _) in CORPORA {
        let path = dir.join(folder).join(TOKENS);
        let is_wanted = languages.is_empty() || languages.iter().any(|wanted| wanted == language);
        if !path.exists() || !is_wanted {
            continue;
        }
        let bar = progress_bar(limit.unwrap_or(0) as u64, language);
        let (mut n_files, mut n_tokens, mut n_right) = (0, 0, 0);
        for line in lines::open(&path)?.take(limit.unwrap_or(usize::MAX)) {
            let (n, right) = tokens_right(lm, tokenizer, language, &Words::of(&line?.1))?;
            (n_files, n_tokens, n_right) = (n_files + 1, n_tokens + n, n_right + right);
            bar.inc(1);
        }
        bar.finish_and_clear();
        ensure!(n_tokens > 0, "{}: expected files of tokens", path.display());
        let accuracy = 100.0 * n_right as f64 / n_tokens as f64;
        accuracies.push(TokenAccuracy { language, n_files, n_tokens, accuracy });
    }
    Ok(accuracies)
}

/// How many words there are, and of how many the model says every piece.
fn tokens_right(lm: &CodeLm, tokenizer: &Tokenizer, language: &str, words: &Words) -> Result<(usize, usize)> {
    let ids = tokenizer.encode(&words.text)?;
    let mut is_right = vec![false; ids.len()];
    each_token(lm, tokenizer, (language, true), &ids, &mut |at, logits_V| {
        let probs_V = next_token_probs(logits_V, &ids[..at], lm.config().copy.as_ref());
        is_right[at] = probs_V.iter().all(|&other| other <= probs_V[ids[at] as usize]);
    })?;
    let mut wrong = Vec::new();
    let mut start = 0;
    for (id, is_right) in ids.iter().zip(is_right) {
        let end = start + tokenizer.bytes_of(*id).len();
        if !is_right {
            wrong.push(start..end);
        }
        start = end;
    }
    let is_whole = |word: &&std::ops::Range<usize>| {
        let next = wrong.partition_point(|piece| piece.end <= word.start);
        wrong.get(next).is_none_or(|piece| piece.start >= word.end)
    };
    Ok((words.ranges.len(), words.ranges.iter().filter(is_whole).count()))
}

/// A text of words, and where in it those stand that count.
struct Words {
    text: String,
    ranges: Vec<std::ops::Range<usize>>,
}

impl Words {
    fn of(line: &str) -> Words {
        let (mut text, mut ranges) = (String::new(), Vec::new());
        for word in line.split_whitespace().filter(|&word| word != START && word != END) {
            if word == LINE_END {
                text.push('\n');
                continue;
            }
            if !text.is_empty() && !text.ends_with('\n') {
                text.push(' ');
            }
            let start = text.len();
            text += &with_literals(word);
            // A literal of one sign that is empty, such as a character's, leaves nothing to say.
            ranges.extend((text.len() > start).then_some(start..text.len()));
        }
        Words { text, ranges }
    }
}

/// Literals as they stand in the published evaluator's comparison.
fn with_literals(code: &str) -> String {
    let mut text = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "");
    for kind in ["STR", "NUM", "CHAR"] {
        let opening = format!("<{kind}_LIT:");
        while let Some(start) = text.find(&opening) {
            let Some(length) = text[start..].find('>') else { break };
            let literal = text[start + opening.len()..start + length].to_owned();
            text.replace_range(start..=start + length, &literal);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use multicoder_model::ModelConfig;
    use multicoder_model::tokenizer::TokenizerOptions;

    fn write(dir: &Path, path: &str, text: &str) {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn lines_are_asked_for_with_their_literals_and_end_where_the_benchmark_says() {
        let dir = tempfile::tempdir().unwrap();
        let line = r#"{"id": 7, "input": "<s> int x = <NUM_LIT:3> ; log ( \"<STR_LIT>\" ) ; int start", "gt": "= <NUM_LIT> ;"}"#;
        write(dir.path(), "javaCorpus/line_completion/test.json", line);
        let line = r#"{"id": 8, "input": "<s> import os <EOL> x", "gt": "= <STR_LIT:a> "}"#;
        write(dir.path(), "py150/line_completion/test.json", line);
        let questions = questions(dir.path()).unwrap();
        let of = |n: usize| (questions[n].prefix.as_str(), questions[n].truth.as_str());
        assert_eq!(of(0), ("int x = 3 ; log ( \"\" ) ; int start ", "= 0 ;"));
        assert_eq!(of(1), ("import os\nx ", "= a"));
        for (said, cut) in
            [("= 0 ; int y", "= 0 ;"), ("x ) { return", "x ) "), ("} }", "}"), ("= \"a;b\" ; x", "= \"a;b\" ;")]
        {
            assert_eq!(questions[0].ending.cut(said), cut);
            assert!(questions[0].ending.is_enough(said.as_bytes()));
        }
        assert!(!questions[0].ending.is_enough(b"= 0") && !questions[0].ending.is_enough(b"= \"a;b"));
        assert_eq!(prefix("<s> import os <EOL>"), "import os\n");
        write(dir.path(), "py150/line_completion/test.json", r#"{"id": 8, "input": "x", "gt": ""}"#);
        let error = super::questions(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("gt"), "{error}");
    }

    #[test]
    fn words_are_where_they_stand_in_the_text() {
        let words = Words::of("<s> x = \"<STR_LIT:a b>\" <EOL> y = '<CHAR_LIT>' <CHAR_LIT> </s>");
        let counted: Vec<&str> = words.ranges.iter().map(|range| &words.text[range.clone()]).collect();
        assert_eq!(counted, ["x", "=", "\"<STR_LIT:a", "b>\"", "y", "=", "''"]);
        assert_eq!(with_literals("<STR_LIT:a>+<NUM_LIT:1>-<NUM_LIT>"), "a+1-0");
    }

    #[test]
    fn a_token_is_right_where_all_its_pieces_are_the_likeliest() {
        let options =
            TokenizerOptions { vocab_size: 300, languages: vec!["python".to_owned()], ..TokenizerOptions::default() };
        let tokenizer = Tokenizer::train(["x = y\n"].into_iter(), &options).unwrap();
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": tokenizer.vocab_size(), "d_model": 32, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1,
            "d_head": 32, "d_ff": 32, "context_tokens": 64, "languages": ["python"],
        }))
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "py150/token_completion/test.txt", "<s> abc = abd <EOL> e </s>\n<s> f </s>\n");
        let lm = CodeLm::init(&config, 1, &Device::Cpu).unwrap();
        let found = token_accuracy(&lm, &tokenizer, dir.path(), (&[], None)).unwrap();
        assert_eq!((found[0].language, found[0].n_files, found[0].n_tokens), ("python", 2, 5));
        let few = token_accuracy(&lm, &tokenizer, dir.path(), (&[], Some(1))).unwrap();
        assert_eq!((few.len(), few[0].n_tokens), (1, 4));
        // With all weights zero every token is as likely as the likeliest.
        for (_, parameter) in lm.parameters() {
            parameter.set(&parameter.zeros_like().unwrap()).unwrap();
        }
        assert_eq!(token_accuracy(&lm, &tokenizer, dir.path(), (&[], None)).unwrap()[0].accuracy, 100.0);
        assert!(token_accuracy(&lm, &tokenizer, dir.path(), (&["java".to_owned()], None)).unwrap().is_empty());
        // A bias towards one piece: the words that consist of it are right, and no others.
        let e = tokenizer.encode("e").unwrap()[0] as usize;
        for (name, parameter) in lm.parameters() {
            let mut rows = parameter.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            match name.as_str() {
                "model.norm.weight" => rows.fill(1.0),
                // All states are those of `e`, the only embedding with anything in it along with every other's first number.
                "model.embed_tokens.weight" => {
                    rows.iter_mut().step_by(32).for_each(|first| *first = 1.0);
                    rows[32 * e] = 2.0;
                }
                _ => continue,
            }
            parameter.set(&candle_core::Tensor::from_vec(rows, parameter.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        let one = &token_accuracy(&lm, &tokenizer, dir.path(), (&[], None)).unwrap()[0];
        assert_eq!((one.n_tokens, one.accuracy), (5, 20.0));
    }
}
