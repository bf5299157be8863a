//! Puts the questions of a suite to one answerer and keeps every answer, so that a run that was stopped goes on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::Suite;
use super::ahead::Ahead;
use super::answer::{Answer, Answerer};
use super::check::Checker;
use super::question::Question;
use super::score::{self, Score};
use crate::corpus::lines;
use crate::evaluate::progress_bar;

/// One line of the file of answers.
#[derive(Serialize, Deserialize)]
struct Kept {
    suite: String,
    /// Which weights answered.
    model: String,
    setting: String,
    id: String,
    /// Hash of all that was asked.
    question: String,
    max_new_tokens: usize,
    /// For the reader; not read back.
    truth: String,
    #[serde(flatten)]
    answer: Answer,
    #[serde(flatten)]
    score: Score,
}

/// What tells one run of a suite from another.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// What is asked.
    pub suite: &'a Suite,
    /// Identity of the weights.
    pub model: &'a str,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Where answers are kept and looked up; none keeps nothing.
    pub answers: Option<&'a Path>,
}

/// Answers and their scores, one a question, in order.
///
/// # Errors
/// Those of the answerer and of `checker`, which runs answers where there are tests; a file of answers that cannot be read or written.
pub fn run(
    run: &Run<'_>,
    questions: &[Question],
    answerer: &mut dyn Answerer,
    checker: Option<&mut Checker>,
) -> Result<Vec<(Answer, Score)>> {
    let mut ask = |kept: &Answers, at: usize| {
        let question: &Question = &questions[at];
        let before = at.checked_sub(1).map(|before| &questions[before]).filter(|of| of.id == question.id);
        // What is not scored is timed, and what an answer leaves behind for the next one about the same text is gone with its run.
        if let Some(before) = before.filter(|of| of.truth.is_empty() && kept.contains_key(&identity(of))) {
            answerer.answer(before, run.max_new_tokens).with_context(|| format!("question `{}`", before.id))?;
        }
        answerer.answer(question, run.max_new_tokens)
    };
    collect(run, questions, &mut ask, checker)
}

/// The same of several who answer at once: none knows what the others were asked before.
///
/// # Errors
/// As of [`run`].
pub fn run_together(
    run: &Run<'_>,
    questions: &[Question],
    clients: Vec<impl Answerer + Send>,
    checker: Option<&mut Checker>,
) -> Result<Vec<(Answer, Score)>> {
    std::thread::scope(|scope| {
        let (mut clients, mut ahead) = (Some(clients), None);
        let mut ask = |kept: &Answers, at: usize| {
            let start = || {
                let unknown =
                    questions.iter().enumerate().filter(|(_, of)| !kept.contains_key(&identity(of))).collect();
                Ahead::start(scope, clients.take().unwrap_or_default(), unknown, run.max_new_tokens)
            };
            ahead.get_or_insert_with(start).take(at)
        };
        collect(run, questions, &mut ask, checker)
    })
}

/// Answers of those that are kept, else by `ask`, which is told them and the number of the question.
fn collect(
    run: &Run<'_>,
    questions: &[Question],
    ask: &mut dyn FnMut(&Answers, usize) -> Result<Answer>,
    mut checker: Option<&mut Checker>,
) -> Result<Vec<(Answer, Score)>> {
    let (mut file, kept) = match run.answers {
        Some(path) => {
            let kept = read(path, run)?;
            let file = OpenOptions::new().create(true).append(true).open(path);
            (Some(BufWriter::new(file.with_context(|| path.display().to_string())?)), kept)
        }
        None => (None, Answers::new()),
    };
    let bar = progress_bar(questions.len() as u64, "questions");
    let mut answers = Vec::with_capacity(questions.len());
    for (at, question) in questions.iter().enumerate() {
        let known = kept.get(&identity(question));
        let answer = match known {
            Some((answer, _)) => answer.clone(),
            None => {
                bar.set_message(format!("{}, {}", question.language, question.setting));
                ask(&kept, at).with_context(|| format!("question `{}`", question.id))?
            }
        };
        let mut score = score::score(question, &answer.text, run.suite.is_exact);
        if let Some(checker) = &mut checker {
            let known = known.and_then(|(_, is_passing)| *is_passing);
            score.is_passing = known.map_or_else(|| checker.passes(question, &answer.text), |known| Ok(Some(known)))?;
        }
        if let (None, Some(file), Some(path)) = (known, &mut file, run.answers) {
            write(file, run, question, &answer, score).with_context(|| path.display().to_string())?;
        }
        answers.push((answer, score));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(answers)
}

/// Answers, and whether their programs passed where they were run, by the identity of their questions.
type Answers = BTreeMap<String, (Answer, Option<bool>)>;

/// Hash of all that a question asks.
fn identity(question: &Question) -> String {
    format!("{:032x}", xxh3_128(format!("{question:?}").as_bytes()))
}

/// The answers of an earlier run like this one. The end of a line that was cut off when that run was killed is removed from the file, once
/// all lines before it have been found to be answers.
fn read(path: &Path, run: &Run<'_>) -> Result<Answers> {
    let mut answers = Answers::new();
    if !path.exists() {
        return Ok(answers);
    }
    let name = || path.display().to_string();
    let bytes = fs::read(path).with_context(name)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    for (at, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let kept: Kept = serde_json::from_slice(line).map_err(|error| {
            anyhow!("{}: line {}: expected an answer: {}", name(), at + 1, lines::json_error(&error))
        })?;
        let is_like_this = kept.suite == run.suite.name && kept.model == run.model;
        if is_like_this && kept.max_new_tokens == run.max_new_tokens {
            answers.insert(kept.question, (kept.answer, kept.score.is_passing));
        }
    }
    if whole < bytes.len() {
        let has_answers = whole > 0 || bytes.starts_with(b"{\"suite\"");
        ensure!(has_answers, "{}: line 1: expected an answer", name());
        OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(whole as u64)).with_context(name)?;
    }
    Ok(answers)
}

fn write(file: &mut BufWriter<File>, run: &Run<'_>, question: &Question, answer: &Answer, score: Score) -> Result<()> {
    let kept = Kept {
        suite: run.suite.name.to_owned(),
        model: run.model.to_owned(),
        setting: question.setting.to_owned(),
        id: question.id.clone(),
        question: identity(question),
        max_new_tokens: run.max_new_tokens,
        truth: question.truth.clone(),
        answer: answer.clone(),
        score,
    };
    serde_json::to_writer(&mut *file, &kept)?;
    file.write_all(b"\n")?;
    Ok(file.flush()?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::SUITES;
    use super::super::question::tests::question;
    use super::*;

    /// Says its number, and fails at one of its answers.
    struct Counting {
        n: usize,
        fails_at: usize,
    }

    impl Answerer for Counting {
        fn answer(&mut self, _: &Question, _: usize) -> Result<Answer> {
            self.n += 1;
            anyhow::ensure!(self.n != self.fails_at, "pulled the plug");
            Ok(Answer { text: self.n.to_string(), ..Answer::default() })
        }
    }

    /// Says what it was asked, after a while that differs.
    struct Echo(Arc<AtomicUsize>);

    impl Answerer for Echo {
        fn answer(&mut self, question: &Question, _: usize) -> Result<Answer> {
            let n = self.0.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(if n.is_multiple_of(3) { 8 } else { 1 }));
            anyhow::ensure!(question.id != "17", "pulled the plug");
            Ok(Answer { text: question.id.clone(), ..Answer::default() })
        }
    }

    #[test]
    fn several_who_answer_at_once_have_their_answers_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let run = Run { suite: &SUITES[0], model: "echo", max_new_tokens: 8, answers: Some(&path) };
        let of =
            |n: usize| (0..n).map(|i| Question { id: i.to_string(), ..question("", "lua", "a") }).collect::<Vec<_>>();
        let asked = Arc::new(AtomicUsize::new(0));
        let clients = || (0..4).map(|_| Echo(asked.clone())).collect::<Vec<Echo>>();
        let error = format!("{:#}", run_together(&run, &of(40), clients(), None).unwrap_err());
        assert!(error.contains("question `17`") && error.contains("pulled the plug"), "{error}");
        let n_asked = asked.load(Ordering::Relaxed);
        assert!((18..40).contains(&n_asked), "all stop after one has failed: {n_asked}");
        let kept = fs::read_to_string(&path).unwrap().lines().count();
        assert_eq!(kept, 17, "those before it are kept");
        let answers = run_together(&run, &of(17), clients(), None).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), n_asked, "and not asked again");
        let texts: Vec<&str> = answers.iter().map(|(answer, _)| answer.text.as_str()).collect();
        assert_eq!(texts, (0..17).map(|i| i.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_run_that_was_stopped_goes_on_and_asks_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let questions: Vec<Question> = (0..5).map(|n| question(&n.to_string(), "lua", "infill")).collect();
        let first = Run { suite: &SUITES[0], model: "a", max_new_tokens: 9, answers: Some(&path) };
        let error = run(&first, &questions, &mut Counting { n: 0, fails_at: 4 }, None).unwrap_err();
        assert!(format!("{error:#}").contains("question `3`: pulled the plug"), "{error:#}");
        // Killed within a line.
        let mut text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        text.truncate(text.len() - 5);
        std::fs::write(&path, text).unwrap();
        let mut rest = Counting { n: 100, fails_at: 0 };
        let answers = run(&first, &questions, &mut rest, None).unwrap();
        let texts: Vec<&str> = answers.iter().map(|(answer, _)| answer.text.as_str()).collect();
        assert_eq!(texts, ["1", "2", "101", "102", "103"]);
        assert_eq!(answers.iter().filter(|(_, score)| score.is_exact).count(), 1);
        // The same id may ask something else.
        let mut other = questions.clone();
        other[0].prefix += "y + ";
        let mut asked = Counting { n: 0, fails_at: 0 };
        run(&first, &other, &mut asked, None).unwrap();
        assert_eq!(asked.n, 1);
        // Other weights and other settings answer for themselves.
        for other in [Run { model: "b", ..first }, Run { max_new_tokens: 8, ..first }] {
            let mut asked = Counting { n: 0, fails_at: 0 };
            run(&other, &questions, &mut asked, None).unwrap();
            assert_eq!(asked.n, 5);
        }
    }

    #[test]
    fn a_run_that_stopped_between_two_questions_about_one_text_asks_the_first_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let questions: Vec<Question> = ["afresh", "after a key"]
            .map(|setting| Question { truth: String::new(), ..question("same", "lua", setting) })
            .to_vec();
        let first = Run { suite: &SUITES[0], model: "a", max_new_tokens: 9, answers: Some(&path) };
        run(&first, &questions, &mut Counting { n: 0, fails_at: 2 }, None).unwrap_err();
        let answers = run(&first, &questions, &mut Counting { n: 10, fails_at: 0 }, None).unwrap();
        let texts: Vec<&str> = answers.iter().map(|(answer, _)| answer.text.as_str()).collect();
        assert_eq!(texts, ["1", "12"], "the first answer stays, and was asked for once more");
        let scored: Vec<Question> = questions.into_iter().map(|of| Question { truth: "1".to_owned(), ..of }).collect();
        run(&first, &scored, &mut Counting { n: 0, fails_at: 2 }, None).unwrap_err();
        let mut asked = Counting { n: 0, fails_at: 0 };
        run(&first, &scored, &mut asked, None).unwrap();
        assert_eq!(asked.n, 1, "nothing is timed there");
    }

    #[test]
    fn a_file_that_holds_no_answers_is_an_error_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let stale = Run { suite: &SUITES[0], model: "a", max_new_tokens: 9, answers: Some(&path) };
        for text in ["{\"suite\": 3}\n", "weights without a line end", "one line\nand the beginning of another"] {
            std::fs::write(&path, text).unwrap();
            let error = run(&stale, &[], &mut Counting { n: 0, fails_at: 0 }, None).unwrap_err().to_string();
            assert!(error.contains("answers.jsonl: line 1: expected an answer"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is left as it was");
        }
    }
}
