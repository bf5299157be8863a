//! `complete FILE:LINE:COL`: one completion from the shell, by the way that an editor's request takes.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, bail};
use multicoder_lsp::complete::{self, Answer, Request};
use multicoder_lsp::config::Settings;
use multicoder_lsp::documents::Snapshot;
use multicoder_lsp::model_completer::{Choice, ModelCompleter};
use multicoder_lsp::reason::Silence;
use multicoder_lsp::trim::Around;
use serde_json::json;

/// Bytes at a file's start in which a zero byte says that it is no text.
const BINARY_PROBE_BYTES: usize = 8192;
/// Time for the whole completion, in milliseconds.
const TIMEOUT_MS: u64 = 60_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Lines count from 1, columns count characters from 1; the caret stands before that column.
    #[arg(value_name = "FILE:LINE:COL")]
    place: Place,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// The most lines with text to add.
    #[arg(long, value_name = "N", default_value_t = 1)]
    lines: usize,
}

/// A place in a file, as compilers print it.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    file: PathBuf,
    /// From 1.
    line: usize,
    /// From 1, in characters.
    column: usize,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let parts: Vec<&str> = text.rsplitn(3, ':').collect();
        let [column, line, file] = parts[..] else {
            return Err("expected FILE:LINE:COL, such as src/main.rs:10:5".to_string());
        };
        let number = |name: &str, text: &str| match text.parse::<usize>() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("{name} {text:?}: expected a whole number from 1")),
        };
        Ok(Place { file: file.into(), line: number("line", line)?, column: number("column", column)? })
    }
}

/// Completes and prints.
pub(crate) fn run(args: &Args, choice: &Choice) -> anyhow::Result<ExitCode> {
    let text = read_text(&args.place.file)?;
    let snapshot = Snapshot::from_file(std::path::absolute(&args.place.file)?, &text);
    let caret_char = caret(&args.place, &snapshot)?;
    let mut settings = Settings::standard();
    // The shell shows what there is and how likely it is; the one who reads decides.
    let problems = settings.merge(&json!({"minProbability": 0.0, "timeoutMs": TIMEOUT_MS, "maxLines": args.lines}));
    if let Some(problem) = problems.first() {
        bail!("--lines {}: {problem}", args.lines);
    }
    let outcome = complete::request(&snapshot, caret_char, &settings).map(|request| (caret_line(&request), request));
    let (line, outcome) = match outcome {
        Ok((line, request)) => {
            let mut completer = ModelCompleter::load(choice).map_err(anyhow::Error::msg)?;
            let request = Request { asked: Instant::now(), ..request };
            (line, complete::run(&request, &mut completer, &|| false))
        }
        Err(silence) => (CaretLine::default(), Err(silence)),
    };
    super::print(&if args.json { json_text(args, &outcome) } else { line_text(&line, &outcome) })?;
    Ok(ExitCode::SUCCESS)
}

/// The content of a text file; bytes that are not UTF-8 become replacement characters.
fn read_text(file: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
    if bytes.iter().take(BINARY_PROBE_BYTES).any(|&byte| byte == 0) {
        bail!("{}: a binary file (it has a zero byte); expected text in UTF-8", file.display());
    }
    String::from_utf8(bytes).or_else(|error| {
        let at = error.utf8_error().valid_up_to();
        eprintln!("multicoder-lsp: {}: not UTF-8 at byte {at}; such bytes are read as \u{fffd}", file.display());
        Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())
    })
}

/// The character index of a place that must be in the file.
fn caret(place: &Place, snapshot: &Snapshot) -> anyhow::Result<usize> {
    let text = &snapshot.text;
    let n_lines = text.len_lines();
    let file = place.file.display();
    if place.line > n_lines {
        bail!("{file}: line {} is past the end of the file, which has {n_lines} lines", place.line);
    }
    let line = text.line(place.line - 1).to_string();
    let n_chars = line.trim_end_matches(['\n', '\r']).chars().count();
    if place.column > n_chars + 1 {
        let (line, column) = (place.line, place.column);
        bail!(
            "{file}: line {line} has {n_chars} characters: expected a column from 1 to {}, got {column}",
            n_chars + 1
        );
    }
    Ok(text.line_to_char(place.line - 1) + place.column - 1)
}

/// The caret's line, as it is.
#[derive(Default)]
struct CaretLine {
    before: String,
    after: String,
}

fn caret_line(request: &Request) -> CaretLine {
    let around = Around { prefix: &request.window.prefix, suffix: &request.window.suffix, language: request.language };
    CaretLine { before: around.line_before().to_string(), after: around.line_after().to_string() }
}

fn json_text(args: &Args, outcome: &Result<Answer, Silence>) -> String {
    let place = &args.place;
    let mut object = json!({"file": place.file, "line": place.line, "column": place.column});
    let figures = match outcome {
        Ok(answer) => json!({
            "text": answer.text,
            "language": answer.language,
            "expert": answer.expert,
            "tokens": answer.tokens,
            "promptTokens": answer.prompt_tokens,
            "milliseconds": answer.elapsed.as_secs_f64() * 1e3,
            "probability": answer.probability,
        }),
        Err(silence) => json!({"text": null, "reason": silence.reason.code(), "detail": silence.detail}),
    };
    if let (Some(object), serde_json::Value::Object(figures)) = (object.as_object_mut(), figures) {
        object.extend(figures);
    }
    format!("{object:#}\n")
}

/// The completed line, and below it how it came about.
fn line_text(line: &CaretLine, outcome: &Result<Answer, Silence>) -> String {
    let CaretLine { before, after } = line;
    let answer = match outcome {
        Ok(answer) => answer,
        Err(silence) => return format!("{before}{after}\n-- no completion: {silence}\n"),
    };
    let (begin, end) = if std::io::stdout().is_terminal() { ("\x1b[3;36m", "\x1b[0m") } else { ("", "") };
    let expert = answer.expert.as_ref().map_or(String::new(), |expert| format!(" \u{b7} expert {expert}"));
    format!(
        "{before}{begin}{}{end}{after}\n-- {}{expert} \u{b7} {} tokens after {} \u{b7} {:.0} ms \u{b7} probability {:.2}\n",
        answer.text,
        answer.language.unwrap_or("unknown language"),
        answer.tokens,
        answer.prompt_tokens,
        answer.elapsed.as_secs_f64() * 1e3,
        answer.probability,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_compilers_print_them() {
        assert_eq!("a/b.rs:3:4".parse(), Ok(Place { file: "a/b.rs".into(), line: 3, column: 4 }));
        assert_eq!("c:/x.rs:3:4".parse::<Place>().unwrap().file, PathBuf::from("c:/x.rs"));
        assert!("a.rs:3".parse::<Place>().unwrap_err().contains("FILE:LINE:COL"));
        assert!("a.rs:0:1".parse::<Place>().unwrap_err().contains("line \"0\""));
        assert!("a.rs:1:x".parse::<Place>().unwrap_err().contains("column \"x\""));
    }

    #[test]
    fn a_place_outside_the_file_is_an_error_that_says_where_it_ends() {
        let snapshot = Snapshot::from_file("a.rs".into(), "\u{e9}\u{1f600}b\r\nlast");
        let at = |line, column| caret(&Place { file: "a.rs".into(), line, column }, &snapshot);
        assert_eq!((at(1, 1).unwrap(), at(1, 4).unwrap(), at(2, 5).unwrap()), (0, 3, 9));
        assert!(at(1, 5).unwrap_err().to_string().contains("has 3 characters: expected a column from 1 to 4"));
        assert!(at(9, 1).unwrap_err().to_string().contains("which has 2 lines"));
    }

    #[test]
    fn files_that_are_no_text_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.bin");
        std::fs::write(&file, b"\x7fELF\0").unwrap();
        assert!(read_text(&file).unwrap_err().to_string().contains("binary"));
        std::fs::write(&file, b"caf\xe9").unwrap();
        assert_eq!(read_text(&file).unwrap(), "caf\u{fffd}");
        let missing = format!("{:#}", read_text(&dir.path().join("none")).unwrap_err());
        assert!(missing.contains("none") && missing.contains("No such file"), "{missing}");
    }
}
