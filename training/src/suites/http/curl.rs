//! Requests through the program `curl`.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

/// What a server answered that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {curl} {said}")]
pub(super) struct Refused {
    url: String,
    /// Of `curl`, with the number of the error.
    curl: String,
    /// Of the server.
    pub(super) said: String,
}

/// Longest time of one answer, in seconds.
const LIMIT_S: &str = "300";

/// Reads JSON.
///
/// # Errors
/// [`Refused`]; an answer that is no JSON.
pub(super) fn get(url: &str) -> Result<Value> {
    let mut found = None;
    request(url, None, &mut |value| {
        found = Some(value);
        Ok(false)
    })?;
    found.with_context(|| format!("{url}: expected JSON, got nothing"))
}

/// Posts `body` and passes on what comes, event by event, until `hear` has enough. A server that sends no events is heard once.
///
/// # Errors
/// As of [`get`]; those of `hear`.
pub(super) fn post(url: &str, body: &Value, hear: &mut dyn FnMut(Value) -> Result<bool>) -> Result<()> {
    request(url, Some(body), hear)
}

fn request(url: &str, body: Option<&Value>, hear: &mut dyn FnMut(Value) -> Result<bool>) -> Result<()> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "--no-buffer", "--max-time", LIMIT_S]);
    curl.args(["--noproxy", "localhost,127.0.0.1,::1"]);
    if body.is_some() {
        curl.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]);
    }
    curl.arg(url).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = curl.spawn().context("curl does not start; is it installed?")?;
    // The input is closed at the end of this block; a server that answers early leaves curl deaf.
    if let (Some(mut input), Some(body)) = (child.stdin.take(), body) {
        let _ = input.write_all(body.to_string().as_bytes());
    }
    let heard = listen(url, &mut child, hear);
    // Nothing is left to be heard: after an error or enough of it the connection is cut.
    let _ = child.kill();
    let _ = child.wait();
    heard
}

fn listen(url: &str, child: &mut Child, hear: &mut dyn FnMut(Value) -> Result<bool>) -> Result<()> {
    let parsed = |text: &str| serde_json::from_str(text).map_err(|error| anyhow!("{url}: expected JSON: {error}"));
    let mut plain = String::new();
    let mut has_events = false;
    for line in BufReader::new(child.stdout.take().context("curl has no output")?).lines() {
        let line = line.with_context(|| url.to_owned())?;
        has_events |= line.starts_with("data:");
        match line.strip_prefix("data:").map(str::trim) {
            Some("[DONE]") => break,
            Some(event) if hear(parsed(event)?)? => return Ok(()),
            Some(_) => {}
            // Comments and other fields of events.
            None if has_events || line.starts_with(':') || line.starts_with("event:") => {}
            None => plain += &line,
        }
    }
    let mut said = String::new();
    child.stderr.take().context("curl has no output")?.read_to_string(&mut said)?;
    if !child.wait()?.success() {
        let (url, curl, said) = (url.to_owned(), said.trim().to_owned(), plain.trim().to_owned());
        return Err(Refused { url, curl, said }.into());
    }
    if !plain.is_empty() {
        hear(parsed(&plain)?)?;
    }
    Ok(())
}
