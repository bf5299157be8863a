//! The real server over its standard input and output: every request is answered, none from an old text, whatever is sent.

use crate::session::{all_offered, open, open_with_item, start, wait_until_loaded};
use anyhow::{Context, Result, ensure};
use multicoder_tests::client::{EXIT_PATIENCE, LanguageClient};
use multicoder_tests::editor::{Editor, Encoding};
use multicoder_tests::program::{kill, language_server};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const REQUEST_CANCELLED: i64 = -32800;

/// Python with a caret behind text that a model of code has something to say about.
const START: &str = "import os\n\n\ndef read_lines(path):\n    with open(path) as file:\n        return [line.strip() for line in file]\n\n\ndef main():\n    lines = read_lines(path)\n    for line in lines:\n        print(";

#[test]
fn a_completion_is_offered_at_the_caret() -> Result<()> {
    let (mut editor, item) = open_with_item()?;
    let position = editor.position(editor.text.len());
    ensure!(item.range == json!({"start": position, "end": position}), "{item:?}");
    ensure!(editor.client.shut_down()?.code() == Some(0));
    Ok(())
}

/// 300 requests, each behind a change, every third withdrawn: all are answered, and no answer belongs to another text than its own.
#[test]
fn a_flood_is_answered_and_nothing_is_stale() -> Result<()> {
    let mut editor = open("flood.py", "python", START)?;
    editor.complete()?;
    let typed = "line.split(sep)[0], end) # show it as it is, then go on\n        count += 1\n        print(";
    let mut asked = Vec::new();
    for index in 0..300 {
        let next = typed.as_bytes()[index % typed.len()] as char;
        editor.append(&next.to_string())?;
        let id = editor.ask(editor.text.len())?;
        let is_withdrawn = index % 3 == 1;
        if is_withdrawn {
            editor.cancel(id)?;
        }
        // Now and then the user stops for a moment and reads.
        let early = if index % 20 == 18 { Some(editor.client.response(id)?) } else { None };
        asked.push((id, is_withdrawn, editor.text.clone(), early));
    }
    let n_asked = asked.len();
    let mut shown = Vec::new();
    for (id, is_withdrawn, text, early) in asked {
        let response = early.map_or_else(|| editor.client.response(id), Ok)?;
        if response.get("error").is_some() {
            ensure!(is_withdrawn && response["error"]["code"] == REQUEST_CANCELLED, "{response}");
        } else if let Some(item) = response["result"]["items"].get(0) {
            shown.push((text, item["insertText"].as_str().context("insertText")?.to_owned()));
        } else {
            ensure!(response["result"]["items"].is_array(), "an empty list, not null: {response}");
        }
    }
    println!("{n_asked} requests answered, {} with an item", shown.len());
    let last = shown.last().map(|(text, _)| text.clone());
    let newest_is_answered = last.as_deref() == Some(&editor.text) || editor.complete()?.is_none();
    ensure!(newest_is_answered, "the newest request is not among those that got an item");
    for (text, inserted) in shown {
        ensure!(is_answer_to_it(&mut editor, &text, &inserted)?, "{inserted:?} is no answer to this text:\n{text}");
    }
    Ok(())
}

/// Would the server give this text, fresh, that answer? Or is it what remains of the answer to an earlier text, of which the
/// user has typed a part since?
fn is_answer_to_it(editor: &mut Editor, text: &str, inserted: &str) -> Result<bool> {
    let whole = format!("{text}{inserted}");
    for n_typed in 0..12 {
        let earlier = &text[..text.len() - n_typed];
        editor.reopen("python", earlier)?;
        if editor.complete()?.is_some_and(|item| whole == format!("{earlier}{}", item.text)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Neovim withdraws nothing while the user types: a newer request takes the place of the older ones.
#[test]
fn a_newer_request_ends_the_older_ones() -> Result<()> {
    let mut editor = open("typed.py", "python", START)?;
    editor.complete()?;
    editor.append(" ")?;
    let mut ids = Vec::new();
    for typed in ["x", "y", "z", "w"] {
        editor.append(typed)?;
        ids.push(editor.ask(editor.text.len())?);
    }
    let newest = ids.pop().context("the newest")?;
    let expected = editor.answer(newest)?;
    let mut n_empty = 0;
    for id in ids {
        n_empty += usize::from(editor.answer(id)?.is_none());
    }
    ensure!(n_empty >= 2, "of three superseded requests {n_empty} got the empty list");
    let text = editor.text.clone();
    editor.reopen("python", &text)?;
    ensure!(editor.complete()? == expected, "the newest is answered as if it were alone");
    Ok(())
}

#[test]
fn a_withdrawn_request_is_answered_with_its_error() -> Result<()> {
    let mut editor = open("cancel.py", "python", START)?;
    editor.complete()?;
    editor.append("o")?;
    let id = editor.ask(editor.text.len())?;
    editor.cancel(id)?;
    let sent = Instant::now();
    let response = editor.client.response(id)?;
    ensure!(sent.elapsed() < Duration::from_secs(20), "answered after {:?}", sent.elapsed());
    ensure!(response["error"]["code"] == REQUEST_CANCELLED || response["result"]["items"].is_array(), "{response}");
    editor.cancel(987_654)?;
    editor.complete()?;
    Ok(())
}

/// What the user types out of the ghost text leaves the rest of it, without asking the model again.
#[test]
fn typing_along_keeps_the_rest() -> Result<()> {
    let (mut editor, item) = open_with_item()?;
    let mut rest = item.text;
    let typed: Vec<char> = rest.chars().take_while(|c| *c != '\n').take(4).collect();
    for character in typed.iter().take(rest.chars().count().saturating_sub(1)) {
        editor.append(&character.to_string())?;
        rest = rest[character.len_utf8()..].to_owned();
        if rest.trim().is_empty() {
            break;
        }
        let item = editor.complete()?.with_context(|| format!("the rest {rest:?}"))?;
        ensure!(item.text == rest, "{:?}, not {rest:?}", item.text);
    }
    Ok(())
}

/// Random edits in each encoding, with line ends and characters of every width: the server's copy stays the client's.
#[test]
fn edits_in_three_encodings_keep_the_document() -> Result<()> {
    let pieces = ["x", "é", "👩‍💻", "\r\n", "\n", "print(", "e\u{301}", "    ", "日本", "\t", "value = "];
    for encoding in [Encoding::Utf8, Encoding::Utf16, Encoding::Utf32] {
        let capabilities =
            json!({"general": {"positionEncodings": [encoding.name()]}, "textDocument": {"inlineCompletion": {}}});
        let (mut client, answer) = start(language_server()?, capabilities, all_offered())?;
        ensure!(answer["capabilities"]["positionEncoding"] == encoding.name(), "{answer}");
        wait_until_loaded(&mut client)?;
        let mut editor = Editor::open(client, "edits.py", "python", START)?;
        editor.encoding = encoding;
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..150 {
            let boundaries: Vec<usize> =
                editor.text.char_indices().map(|(offset, _)| offset).chain([editor.text.len()]).collect();
            let boundaries: Vec<usize> =
                boundaries.into_iter().filter(|at| !splits_line_end(&editor.text, *at)).collect();
            let start = next(boundaries.len());
            let end = (start + [0, 0, 1, 3][next(4)]).min(boundaries.len() - 1);
            editor.replace(boundaries[start]..boundaries[end], pieces[next(pieces.len())])?;
        }
        let end = "\nfor line in lines:\n    print(";
        editor.append(end)?;
        let edited = editor.complete()?.map(|item| item.text);
        let text = editor.text.clone();
        editor.reopen("python", &text)?;
        ensure!(
            editor.complete()?.map(|item| item.text) == edited,
            "{encoding:?}: the edited copy differs from\n{text:?}"
        );
    }
    Ok(())
}

fn splits_line_end(text: &str, offset: usize) -> bool {
    offset > 0 && text.as_bytes()[offset - 1] == b'\r' && text.as_bytes().get(offset) == Some(&b'\n')
}

#[test]
fn secrets_are_not_completed() -> Result<()> {
    for name in [".env", ".env.local", "id_rsa", "server.pem", "private.key"] {
        let mut editor = open(name, "python", START)?;
        ensure!(editor.complete()?.is_none(), "something is offered in {name}");
        let status = editor.client.call("multicoder/status", Value::Null)?;
        ensure!(status["lastDecision"]["code"] == "excluded_file", "{name}: {status}");
    }
    Ok(())
}

/// No engine of ours opens a socket, not even a local one.
#[test]
fn no_socket_is_open() -> Result<()> {
    let mut editor = open("quiet.py", "python", START)?;
    editor.complete()?;
    let (Ok(inherited), Ok(open)) = (sockets("self"), sockets(&editor.client.process_id().to_string())) else {
        multicoder_tests::skipped("no_socket_is_open", "this system has no /proc");
        return Ok(());
    };
    let opened: Vec<_> = open.difference(&inherited).collect();
    ensure!(opened.is_empty(), "{opened:?}");
    Ok(())
}

/// The sockets that a process holds. Its standard streams do not count: whoever starts the tests may have made them sockets.
fn sockets(process: &str) -> std::io::Result<BTreeSet<PathBuf>> {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd"))?.flatten();
    let others = descriptors.filter(|entry| !["0", "1", "2"].iter().any(|standard| entry.file_name() == *standard));
    let targets = others.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Ok(targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect())
}

#[test]
fn the_process_ends_with_its_editor() -> Result<()> {
    let exit_without_shutdown = |client: &mut LanguageClient| client.notify("exit", Value::Null);
    let close = |client: &mut LanguageClient| {
        client.close_input();
        Ok(())
    };
    type Ending<'a> = &'a dyn Fn(&mut LanguageClient) -> Result<()>;
    for (name, ending) in [("exit", &exit_without_shutdown as Ending), ("closed input", &close)] {
        let mut editor = open("end.py", "python", START)?;
        // In the middle of a generation, too.
        editor.append("a")?;
        editor.ask(editor.text.len())?;
        ending(&mut editor.client)?;
        let status = editor.client.wait_for_exit(EXIT_PATIENCE).context(name)?;
        ensure!(status.code() == Some(1), "{name} without shutdown: {status}");
    }
    let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn()?;
    let mut client = LanguageClient::start(&mut language_server()?)?;
    client.call("initialize", json!({"processId": child.id(), "rootUri": null, "capabilities": {}}))?;
    client.notify("initialized", json!({}))?;
    kill(&mut child)?;
    client.wait_for_exit(EXIT_PATIENCE).context("the editor's process is gone")?;
    Ok(())
}
