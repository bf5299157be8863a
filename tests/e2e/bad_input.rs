//! What no well-behaved client sends: a clear answer, and the server lives on.

use crate::session::{open, start, wait_until_loaded};
use anyhow::{Context, Result, ensure};
use multicoder_tests::client::EXIT_PATIENCE;
use multicoder_tests::editor::Editor;
use multicoder_tests::program::language_server;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TEXT: &str = "def add(left, right):\n    return ";

fn frame(body: &str) -> Vec<u8> {
    format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The server still answers a status request and a completion request.
fn check_alive(editor: &mut Editor, after: &str) -> Result<()> {
    editor.client.call("multicoder/status", Value::Null).context(after.to_owned())?;
    editor.complete().context(after.to_owned())?;
    Ok(())
}

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;

/// Messages that are no requests, with the code of the error that answers each; `None` for those that need no answer:
/// notifications, and what the library reads as an answer to nothing.
const MALFORMED: [(&str, Option<i64>); 11] = [
    ("{", Some(PARSE_ERROR)),
    ("", Some(PARSE_ERROR)),
    ("\u{1}", Some(PARSE_ERROR)),
    ("[]", Some(INVALID_REQUEST)),
    ("null", Some(INVALID_REQUEST)),
    ("\"text\"", Some(INVALID_REQUEST)),
    ("{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"x\"}", Some(INVALID_REQUEST)),
    ("{\"jsonrpc\":\"2.0\",\"method\":17}", Some(INVALID_REQUEST)),
    ("{\"jsonrpc\":\"2.0\"}", Some(INVALID_REQUEST)),
    ("{\"jsonrpc\":\"2.0\",\"method\":\"textDocument/didChange\",\"params\":{\"textDocument\":7}}", None),
    ("{\"jsonrpc\":\"2.0\",\"method\":\"no/such/method\",\"params\":{}}", None),
];

/// Each gets exactly one error without a request's number, of the right code, or none.
#[test]
fn malformed_messages_are_answered_and_survived() -> Result<()> {
    let mut editor = open("alive.py", "python", TEXT)?;
    let bad_headers =
        [&b"garbage\r\n\r\n"[..], b"Content-Length: -7\r\n\r\n", b"Content-Length: x\r\n\r\n", b"\xff\xfe\r\n\r\n"];
    let bodies = MALFORMED.iter().map(|(body, code)| (frame(body), *code));
    let headers = bad_headers.iter().map(|bytes| (bytes.to_vec(), Some(PARSE_ERROR)));
    let mut n_errors = 0;
    for (bytes, code) in bodies.chain(headers) {
        let message = String::from_utf8_lossy(&bytes).into_owned();
        editor.client.send_bytes(&bytes)?;
        if let Some(code) = code {
            n_errors += 1;
            let answer = editor.client.wait_for_unnumbered(n_errors).context(message.clone())?;
            ensure!(answer["id"].is_null() && answer["error"]["code"] == code, "{message}: {answer}, expected {code}");
        }
        check_alive(&mut editor, &message)?;
        let unnumbered = &editor.client.unnumbered;
        ensure!(unnumbered.len() == n_errors, "{message}: more answers than one: {unnumbered:?}");
    }
    Ok(())
}

/// Where a message that is no request of the protocol has a number, its error has it too.
#[test]
fn the_error_about_a_numbered_message_has_its_number() -> Result<()> {
    let mut editor = open("numbered.py", "python", TEXT)?;
    for (id, body) in [
        (777, "{\"jsonrpc\":\"1.0\",\"id\":777,\"method\":\"shutdown\"}"),
        (778, "{\"jsonrpc\":\"2.0\",\"id\":778,\"method\":17}"),
    ] {
        editor.client.send_bytes(&frame(body))?;
        let answer = editor.client.response(id).context(body)?;
        ensure!(answer["error"]["code"] == INVALID_REQUEST, "{body}: {answer}");
        check_alive(&mut editor, body)?;
    }
    Ok(())
}

#[test]
fn wrong_requests_get_an_error_or_nothing() -> Result<()> {
    let mut editor = open("wrong.py", "python", TEXT)?;
    let unknown = editor.client.request("no/such/request", json!({}))?;
    ensure!(editor.client.response(unknown)?["error"]["code"] == -32601, "an unknown method");
    let wrong = editor.client.request("textDocument/inlineCompletion", json!({"textDocument": 1}))?;
    ensure!(editor.client.response(wrong)?["error"]["code"] == -32602, "wrong parameters");
    let position = |line: u64, character: u64| json!({"line": line, "character": character});
    let uri = editor.uri.clone();
    let places = [
        (uri.as_str(), position(1_000_000, 0)),
        (uri.as_str(), position(0, 4_000_000_000)),
        (uri.as_str(), position(u64::from(u32::MAX), u64::from(u32::MAX))),
        ("file:///project/never_opened.py", position(0, 0)),
        ("untitled:Untitled-1", position(0, 0)),
        ("no uri at all", position(0, 0)),
    ];
    for (uri, position) in places {
        let parameters = json!({"textDocument": {"uri": uri}, "position": position, "context": {"triggerKind": 1}});
        let id = editor.client.request("textDocument/inlineCompletion", parameters)?;
        let response = editor.client.response(id)?;
        let is_list = response["result"]["items"].is_array();
        ensure!(is_list || response["error"]["code"] == -32602, "{uri} {position}: {response}");
    }
    check_alive(&mut editor, "wrong requests")
}

#[test]
fn edits_outside_the_document_are_survived() -> Result<()> {
    let mut editor = open("edges.py", "python", TEXT)?;
    let far = json!({"line": 99_999, "character": 99_999});
    let origin = json!({"line": 0, "character": 0});
    let ranges = [json!({"start": far, "end": far}), json!({"start": far, "end": origin})];
    for (index, range) in ranges.iter().enumerate() {
        let document = json!({"uri": editor.uri, "version": 100 + index});
        let changes = json!([{"range": range, "text": "x"}]);
        editor.client.notify("textDocument/didChange", json!({"textDocument": document, "contentChanges": changes}))?;
    }
    let unopened = json!({"uri": "file:///project/absent.py", "version": 1});
    editor
        .client
        .notify("textDocument/didChange", json!({"textDocument": unopened, "contentChanges": [{"text": "x"}]}))?;
    editor.client.notify("textDocument/didClose", json!({"textDocument": {"uri": "file:///project/absent.py"}}))?;
    editor.reopen("no-such-language", TEXT)?;
    check_alive(&mut editor, "edits outside the document")
}

/// A file of five megabytes, and one with a single line of that size: opened, edited and completed in time.
#[test]
fn a_file_of_five_megabytes_is_served() -> Result<()> {
    let line = "    total += values[index] * weights[index]  # weighted sum\n";
    let many_lines = format!("def f(values, weights):\n{}    return ", line.repeat(5_000_000 / line.len()));
    let one_line = format!("data = [{}", "12345, ".repeat(5_000_000 / 7));
    for text in [many_lines, one_line] {
        let mut editor = open("large.py", "python", &text)?;
        let started = Instant::now();
        editor.complete()?;
        editor.append("t")?;
        editor.complete()?;
        println!("{} bytes: two completions in {} ms", text.len(), started.elapsed().as_millis());
        ensure!(started.elapsed() < Duration::from_secs(60), "two completions took {:?}", started.elapsed());
        ensure!(editor.client.shut_down()?.code() == Some(0));
    }
    Ok(())
}

#[test]
fn wrong_settings_are_reported_and_the_rest_is_taken() -> Result<()> {
    let options = json!({"minProbability": 0.0, "timeoutMs": 60_000, "maxLine": 3, "maxTokens": "many"});
    let (mut client, _) = start(language_server()?, json!({"textDocument": {"inlineCompletion": {}}}), options)?;
    wait_until_loaded(&mut client)?;
    for word in ["maxLine:", "maxLines", "maxTokens", "many"] {
        let names_it = |messages: &[Value]| messages.iter().any(|message| message.to_string().contains(word));
        client.wait_for_notifications(names_it).with_context(|| format!("no message names {word}"))?;
    }
    client.notify("workspace/didChangeConfiguration", json!({"settings": null}))?;
    client.notify("workspace/didChangeConfiguration", json!({"settings": {"multicoder": {"enable": false}}}))?;
    let mut editor = Editor::open(client, "off.py", "python", TEXT)?;
    ensure!(editor.complete()?.is_none(), "switched off by a pushed setting");
    editor.client.notify("workspace/didChangeConfiguration", json!({"settings": {"enable": true}}))?;
    check_alive(&mut editor, "settings")
}

/// Before `initialize` there is an error; a second one is refused; after `shutdown` too.
#[test]
fn requests_out_of_turn_are_refused() -> Result<()> {
    let mut client = multicoder_tests::client::LanguageClient::start(&mut language_server()?)?;
    let early = client.request("textDocument/inlineCompletion", json!({}))?;
    ensure!(client.response(early)?["error"]["code"] == -32002, "before initialize");
    client.initialize(json!({}), Value::Null)?;
    let again = client.request("initialize", json!({"capabilities": {}}))?;
    ensure!(client.response(again)?["error"]["code"] == -32600, "a second initialize");
    client.call("shutdown", Value::Null)?;
    let late = client.request("multicoder/status", Value::Null)?;
    ensure!(client.response(late)?["error"]["code"] == -32600, "after shutdown");
    client.notify("exit", Value::Null)?;
    ensure!(client.wait_for_exit(EXIT_PATIENCE)?.code() == Some(0));
    Ok(())
}
