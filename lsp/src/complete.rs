//! One completion: from a document and a caret to an answer, or a reason for silence. No types of the protocol are named here.

use std::cell::Cell;
use std::time::{Duration, Instant};

use multicoder_grammars::LanguageId;

use crate::completer::{Ask, Completer, CompleterError, Finish, Written};
use crate::config::Settings;
use crate::documents::Snapshot;
use crate::prompt::{self, Window};
use crate::reason::{Reason, Silence};
use crate::trim::{self, Around};

/// What the settings say of one completion.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub max_lines: usize,
    pub max_tokens: usize,
    pub timeout: Duration,
    /// `0..=1`.
    pub min_probability: f32,
}

impl From<&Settings> for Options {
    fn from(settings: &Settings) -> Options {
        Options {
            max_lines: settings.max_lines,
            max_tokens: settings.max_tokens,
            timeout: Duration::from_millis(settings.timeout_ms),
            min_probability: settings.min_probability,
        }
    }
}

/// A completion to be made; holds only the text near the caret.
#[derive(Clone, Debug)]
pub struct Request {
    /// The document's uri.
    pub document: String,
    /// Which state of the document this is, see [`Snapshot::revision`].
    pub revision: u64,
    pub language: Option<LanguageId>,
    /// The caret, in bytes from the document's start.
    pub caret_byte: usize,
    pub window: Window,
    /// What ends the document's lines.
    pub line_end: &'static str,
    pub options: Options,
    /// When somebody began to wait for it.
    pub asked: Instant,
}

/// An answer worth showing.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What to insert at the caret, with the document's line ends.
    pub text: String,
    pub language: Option<&'static str>,
    pub expert: Option<String>,
    pub tokens: usize,
    pub prompt_tokens: usize,
    pub prefilled_tokens: usize,
    /// Geometric mean of the tokens' probabilities, `0..=1`.
    pub probability: f32,
    pub elapsed: Duration,
    /// Whether it is the rest of an earlier answer, made without the model.
    pub is_reused: bool,
}

/// The request for a completion of `snapshot` at `caret_char`.
///
/// # Errors
/// The reason for which this document or place is left alone.
pub fn request(snapshot: &Snapshot, caret_char: usize, settings: &Settings) -> Result<Request, Silence> {
    allowed(snapshot, settings)?;
    let caret_byte = snapshot.text.char_to_byte(caret_char.min(snapshot.text.len_chars()));
    let window = prompt::window(&snapshot.text, caret_byte);
    if window.prefix.trim().is_empty() && window.suffix.trim().is_empty() {
        return Err(Reason::NothingToContinue.into());
    }
    Ok(Request {
        document: snapshot.uri.clone(),
        revision: snapshot.revision,
        language: snapshot.language,
        caret_byte,
        window,
        line_end: line_end(snapshot),
        options: settings.into(),
        asked: Instant::now(),
    })
}

/// Whether a document may be read at all.
///
/// # Errors
/// The reason for which it is left alone.
pub fn allowed(snapshot: &Snapshot, settings: &Settings) -> Result<(), Silence> {
    if !settings.enable {
        return Err(Reason::Disabled.into());
    }
    if let Some(pattern) = settings.exclusions.excludes(&snapshot.path) {
        return Err(Reason::ExcludedFile.because(pattern));
    }
    let language_name = snapshot.language.map(LanguageId::name);
    match settings.disabled_languages.iter().find(|name| Some(name.as_str()) == language_name) {
        Some(name) => Err(Reason::DisabledLanguage.because(name)),
        None => Ok(()),
    }
}

/// What ends the first line of a document.
fn line_end(snapshot: &Snapshot) -> &'static str {
    let line = snapshot.text.line(0);
    let mut end = line.chars_at(line.len_chars());
    match (end.prev(), end.prev()) {
        (Some('\n'), Some('\r')) => "\r\n",
        (Some('\r'), _) => "\r",
        _ => "\n",
    }
}

/// Makes the completion.
///
/// # Errors
/// The reason for silence. After `Cancelled` and `EngineFailed` the completer may be used again.
pub fn run(request: &Request, completer: &mut dyn Completer, cancelled: &dyn Fn() -> bool) -> Result<Answer, Silence> {
    let options = &request.options;
    let around = Around { prefix: &request.window.prefix, suffix: &request.window.suffix, language: request.language };
    let ask = Ask {
        language: request.language.and_then(|language| language.served_as(&completer.info().languages)),
        prefix: around.prefix,
        suffix: around.suffix,
        max_new_tokens: options.max_tokens,
        timeout: options.timeout,
    };
    let (is_late, has_begun) = (|| request.asked.elapsed() > options.timeout, Cell::new(false));
    let timed_out = Cell::new(false);
    if is_late() && !cancelled() {
        return Err(Reason::UnfinishedLine.because("out of time"));
    }
    let mut enough = |bytes: &[u8]| {
        has_begun.set(true);
        timed_out.set(is_late());
        timed_out.get() || trim::is_enough(bytes, &around, options.max_lines)
    };
    // A prompt that takes too long is given up between two layers; what is computed of it stays for the next request. Once something is
    // written, the token that is late is finished, so that the whole lines before it are an answer.
    let cancelled_or_late = || cancelled() || !has_begun.get() && is_late();
    let mut written = completer.write(&ask, &mut enough, &cancelled_or_late).map_err(|error| match error {
        CompleterError::Cancelled if !cancelled() => Reason::UnfinishedLine.because("out of time"),
        CompleterError::Cancelled => Silence::from(Reason::Cancelled),
        CompleterError::Failed(why) => Reason::EngineFailed.because(why),
    })?;
    if timed_out.get() {
        written.finish = Finish::Exhausted;
    }
    let text = trim::trim(&written.bytes, written.finish, &around, options.max_lines)
        .map_err(|reason| reason.because(format_args!("{:?}", String::from_utf8_lossy(&written.bytes))))?;
    let answer = answer(request, written, &text, request.asked.elapsed());
    if answer.probability < options.min_probability {
        return Err(Reason::LowConfidence.because(format_args!("{:.3}: {:?}", answer.probability, answer.text)));
    }
    Ok(answer)
}

fn answer(request: &Request, written: Written, text: &str, elapsed: Duration) -> Answer {
    Answer {
        text: text.replace('\n', request.line_end),
        language: request.language.map(LanguageId::name),
        expert: written.expert,
        tokens: written.logprobs.len(),
        prompt_tokens: written.prompt_tokens,
        prefilled_tokens: written.prefilled_tokens,
        probability: probability(&written.logprobs),
        elapsed,
        is_reused: false,
    }
}

/// The geometric mean of the probabilities with these logarithms; 0 of none.
fn probability(logprobs: &[f32]) -> f32 {
    if logprobs.is_empty() {
        return 0.0;
    }
    (logprobs.iter().sum::<f32>() / logprobs.len() as f32).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::Scripted;
    use serde_json::json;
    use std::path::PathBuf;

    fn at(source: &str, name: &str) -> (Snapshot, usize) {
        let (prefix, _) = source.split_once('|').unwrap();
        let snapshot = Snapshot::from_file(PathBuf::from(name), &source.replacen('|', "", 1));
        (snapshot, prefix.chars().count())
    }

    fn complete(source: &str, name: &str, written: &str) -> Result<Answer, Silence> {
        let (snapshot, caret) = at(source, name);
        let request = request(&snapshot, caret, &Settings::standard())?;
        run(&request, &mut Scripted::always(written), &|| false)
    }

    #[test]
    fn an_answer_is_one_whole_line() {
        let answer = complete("def f(x):\n    return |\n", "a.py", "x + 1\nprint").unwrap();
        assert_eq!((answer.text.as_str(), answer.language), ("x + 1", Some("python")));
        assert!(answer.probability > 0.0 && answer.probability <= 1.0);
    }

    #[test]
    fn answers_have_the_documents_line_ends() {
        let answer = complete("fn f() {|\r\n\r\n}\r\n", "a.rs", "\n    g();\n").unwrap();
        assert_eq!(answer.text, "\r\n    g();");
        let answer = complete("fn f() {|\r\r}\r", "a.rs", "\n    g();\n").unwrap();
        assert_eq!(answer.text, "\r    g();", "lone carriage returns");
    }

    #[test]
    fn silences_have_their_reason() {
        let silence = |source, name, written| complete(source, name, written).unwrap_err().reason;
        assert_eq!(silence("A=|", "/p/.env", "1\n"), Reason::ExcludedFile);
        assert_eq!(silence(" |\n", "a.py", "1\n"), Reason::NothingToContinue);
        assert_eq!(silence("f(1|", "a.py", ")\n"), Reason::OnlyClosers);
        assert_eq!(silence("x = |", "a.py", "no end"), Reason::UnfinishedLine);
    }

    #[test]
    fn settings_decide() {
        let (snapshot, caret) = at("x = |", "a.py");
        let mut settings = Settings::standard();
        settings.merge(&json!({"minProbability": 1.0}));
        let request = super::request(&snapshot, caret, &settings).unwrap();
        let silence = run(&request, &mut Scripted::always("1\n"), &|| false).unwrap_err();
        assert_eq!(silence.reason, Reason::LowConfidence);
        settings.merge(&json!({"disabledLanguages": ["python"]}));
        assert_eq!(super::request(&snapshot, caret, &settings).unwrap_err().reason, Reason::DisabledLanguage);
        settings.merge(&json!({"enable": false}));
        assert_eq!(super::request(&snapshot, caret, &settings).unwrap_err().reason, Reason::Disabled);
    }

    #[test]
    fn whole_lines_that_are_there_when_time_is_up_are_the_answer() {
        let (snapshot, caret) = at("x = |", "a.py");
        let mut settings = Settings::standard();
        settings.merge(&json!({"maxLines": 4, "timeoutMs": 1000}));
        let request = request(&snapshot, caret, &settings).unwrap();
        let mut slow = Scripted::always("f(1)\ny = g(2)\n").pausing("f(1)\n".len(), Duration::from_millis(1100));
        assert_eq!(run(&request, &mut slow, &|| false).unwrap().text, "f(1)");
        assert_eq!(run(&request, &mut slow, &|| true).unwrap_err().reason, Reason::Cancelled);
    }

    /// A request that had waited for another one, or for the model, had all of its time again.
    #[test]
    fn who_has_waited_too_long_gets_nothing() {
        let (snapshot, caret) = at("x = |", "a.py");
        let mut request = request(&snapshot, caret, &Settings::standard()).unwrap();
        request.options.timeout = Duration::from_millis(1);
        std::thread::sleep(Duration::from_millis(5));
        let silence = run(&request, &mut Scripted::always("1\n"), &|| false).unwrap_err();
        assert_eq!(silence, Reason::UnfinishedLine.because("out of time"));
        request.asked = Instant::now();
        request.options.timeout = Duration::from_secs(60);
        assert!(run(&request, &mut Scripted::always("1\n"), &|| false).is_ok());
    }

    #[test]
    fn cancelling_and_failing_are_told_apart() {
        let (snapshot, caret) = at("x = |", "a.py");
        let request = request(&snapshot, caret, &Settings::standard()).unwrap();
        let mut scripted = Scripted::always("1\n");
        assert_eq!(run(&request, &mut scripted, &|| true).unwrap_err().reason, Reason::Cancelled);
        assert!(run(&request, &mut scripted, &|| false).is_ok());
        let mut failing = Scripted::new(|_| Err("no".to_string()));
        assert_eq!(run(&request, &mut failing, &|| false).unwrap_err(), Reason::EngineFailed.because("no"));
    }
}
