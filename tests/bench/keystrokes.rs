//! What a user waits for: cold start, memory and latency per keystroke of the real server, over a replay of typing.
//!
//! `cargo bench -p multicoder-tests --bench keystrokes -- [SAMPLE] [--keystrokes N] [--model PATH]`
//!
//! Opens a file with a stretch of N characters (200) taken out of its middle, types that stretch back one character at a time and asks
//! for a completion after each. Prints medians and 95th percentiles in milliseconds. Run it on a quiet machine.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use multicoder_tests::client::LanguageClient;
use multicoder_tests::{program, repository_root};
use serde_json::{Value, json};

struct Arguments {
    file: PathBuf,
    n_keystrokes: usize,
    model: Option<String>,
}

fn arguments() -> Result<Arguments> {
    let mut arguments =
        Arguments { file: repository_root().join("grammars/samples/python.py"), n_keystrokes: 200, model: None };
    let mut given = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = given.next() {
        let mut value = || given.next().with_context(|| format!("{argument}: expected a value"));
        match argument.as_str() {
            "--keystrokes" => arguments.n_keystrokes = value()?.parse().context("--keystrokes: expected a number")?,
            "--model" => arguments.model = Some(value()?),
            file => arguments.file = PathBuf::from(file),
        }
    }
    Ok(arguments)
}

/// A document that is typed into: where the caret is, and what is still to be typed.
struct Typist {
    client: LanguageClient,
    uri: String,
    version: i64,
    line: usize,
    character: usize,
}

impl Typist {
    fn position(&self) -> Value {
        json!({"line": self.line, "character": self.character})
    }

    fn complete(&mut self) -> Result<(Duration, String)> {
        let start = Instant::now();
        let parameters = json!({
            "textDocument": {"uri": self.uri}, "position": self.position(), "context": {"triggerKind": 2},
        });
        let answer = self.client.call("textDocument/inlineCompletion", parameters)?;
        let text = answer["items"][0]["insertText"].as_str().unwrap_or_default().to_string();
        Ok((start.elapsed(), text))
    }

    fn type_char(&mut self, c: char) -> Result<()> {
        self.version += 1;
        let at = self.position();
        let parameters = json!({
            "textDocument": {"uri": self.uri, "version": self.version},
            "contentChanges": [{"range": {"start": at, "end": at}, "text": c.to_string()}],
        });
        self.client.notify("textDocument/didChange", parameters)?;
        match c {
            '\n' => (self.line, self.character) = (self.line + 1, 0),
            _ => self.character += c.len_utf8(),
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let text = std::fs::read_to_string(&arguments.file).with_context(|| arguments.file.display().to_string())?;
    let mut command = Command::new(program::binary("multicoder-lsp")?);
    if let Some(model) = &arguments.model {
        command.args(["--model", model]);
    }
    let from = (text.len() / 3..).find(|&idx| text.is_char_boundary(idx)).unwrap_or(0);
    let typed: String = text[from..].chars().take(arguments.n_keystrokes).collect();
    let (before, after) = (&text[..from], &text[from + typed.len()..]);

    let start = Instant::now();
    let client = LanguageClient::start(&mut command)?;
    let uri = format!("file://{}", arguments.file.display());
    let line = before.matches('\n').count();
    let character = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1);
    let mut typist = Typist { client, uri, version: 1, line, character };
    let capabilities = json!({"general": {"positionEncodings": ["utf-8"]}, "textDocument": {"inlineCompletion": {}}});
    typist.client.initialize(capabilities, Value::Null)?;
    let document = json!({"textDocument": {
        "uri": typist.uri, "languageId": "", "version": 1, "text": format!("{before}{after}"),
    }});
    typist.client.notify("textDocument/didOpen", document)?;
    typist.complete()?;
    println!("cold start to the first answer: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    replay(&mut typist, &typed)?;
    for line in std::fs::read_to_string(format!("/proc/{}/status", typist.client.process_id()))?.lines() {
        if line.starts_with("VmRSS") || line.starts_with("VmHWM") {
            println!("{}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    typist.client.shut_down().map(|_| ())
}

/// Types `typed` and prints how long the answers took and how often they were right.
fn replay(typist: &mut Typist, typed: &str) -> Result<()> {
    let (mut times_ms, mut n_shown, mut n_right) = (Vec::new(), 0, 0);
    for (at, c) in typed.char_indices() {
        typist.type_char(c)?;
        let (elapsed, answer) = typist.complete()?;
        times_ms.push(elapsed.as_secs_f64() * 1e3);
        n_shown += usize::from(!answer.is_empty());
        n_right += usize::from(!answer.is_empty() && typed[at + c.len_utf8()..].starts_with(&answer));
    }
    times_ms.sort_by(f64::total_cmp);
    let at = |share: f64| times_ms[((times_ms.len() - 1) as f64 * share).round() as usize];
    println!(
        "{} keystrokes: p50 {:.1} ms, p95 {:.1} ms, longest {:.1} ms; {n_shown} answers shown, {n_right} of them right",
        times_ms.len(),
        at(0.5),
        at(0.95),
        at(1.0),
    );
    Ok(())
}
