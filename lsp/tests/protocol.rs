//! The server as an editor sees it, over pipes in memory, with a completer that follows a script.

mod support;

use std::sync::atomic::Ordering;

use multicoder_lsp::completer::Completer;
use multicoder_lsp::lifecycle::Ended;
use multicoder_lsp::scripted::Scripted;
use serde_json::{Value, json};
use support::{Client, echo, inline_params, scripted, texts};

const URI: &str = "file:///p/main.py";

/// Replaces the number in the document's only line.
async fn set_number(client: &mut Client, version: i32, old_digits: u32, number: i32) {
    client.change(URI, version, [0, 1, 0, 1 + old_digits], &number.to_string()).await;
}

fn digits(number: i32) -> u32 {
    number.to_string().len() as u32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_requests_changes_and_cancels_is_answered_and_never_stale() {
    let (completer, gate) = echo().gated();
    let mut client = Client::ready(scripted(completer)).await;
    client.open(URI, "python", "x0 = \n").await;
    let mut asked = Vec::new();
    for number in 1..=301 {
        set_number(&mut client, number, digits(number - 1), number).await;
        let id = client.ask_inline(URI, 0, 4 + digits(number)).await;
        if number % 3 == 0 {
            client.cancel(id).await;
        }
        if number % 50 == 0 {
            // The model writes nothing yet, and messages are read all the same.
            client.status().await;
        }
        asked.push((number, id));
    }
    drop(gate);
    let mut shown = Vec::new();
    for (number, id) in asked {
        let answer = client.answer(id).await;
        match answer["error"]["code"].as_i64() {
            Some(code) => assert!(code == -32800 && number % 3 == 0, "{answer}"),
            None => shown.extend(texts(&answer).into_iter().map(|text| (number, text))),
        }
    }
    assert!(shown.iter().all(|(number, text)| *text == format!("seen({number})")), "{shown:?}");
    assert_eq!(client.inline(URI, 0, 7).await, ["seen(301)"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hundred_interleaved_edits_and_requests_have_no_stale_answer() {
    let mut client = Client::ready(scripted(echo())).await;
    client.open(URI, "python", "x0 = \n").await;
    let mut asked = Vec::new();
    for number in 1..=400 {
        set_number(&mut client, number, digits(number - 1), number).await;
        asked.push((number, client.ask_inline(URI, 0, 4 + digits(number)).await));
        if number % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for (number, id) in asked {
        let texts = texts(&client.answer(id).await);
        assert!(texts.is_empty() || texts == [format!("seen({number})")], "{number}: {texts:?}");
    }
    for number in 401..=500 {
        set_number(&mut client, number, 3, number).await;
        assert_eq!(client.inline(URI, 0, 7).await, [format!("seen({number})")]);
    }
}

#[tokio::test]
async fn a_newer_request_supersedes_without_a_cancel() {
    let (completer, gate) = Scripted::always("123456789012345678901234\n").gated();
    let (_, finished) = completer.counters();
    let mut client = Client::ready(scripted(completer)).await;
    client.open(URI, "python", "x = \n").await;
    let mut last = client.ask_inline(URI, 0, 4).await;
    for column in [3, 2, 1, 4] {
        let newer = client.ask_inline(URI, 0, column).await;
        assert_eq!(client.answer(last).await["result"], json!({"items": []}));
        last = newer;
    }
    drop(gate);
    assert_eq!(texts(&client.answer(last).await), ["123456789012345678901234"]);
    assert_eq!(finished.load(Ordering::SeqCst), 1, "only the last ran to its end");
    assert_eq!(client.status().await["decisions"]["superseded"], 4);
}

#[tokio::test]
async fn a_cancelled_request_is_answered_at_once_and_stops_the_model() {
    let (completer, gate) = Scripted::always("word\n").gated();
    let (_, finished) = completer.counters();
    let mut client = Client::ready(scripted(completer)).await;
    client.open(URI, "python", "x = \n").await;
    let id = client.ask_inline(URI, 0, 4).await;
    client.cancel(id).await;
    assert_eq!(client.answer(id).await["error"]["code"], -32800);
    assert_eq!(client.status().await["lastDecision"]["code"], "cancelled");
    drop(gate);
    client.open("file:///p/other.py", "python", "x = \n").await;
    assert_eq!(client.inline("file:///p/other.py", 0, 4).await, ["word"]);
    assert_eq!(finished.load(Ordering::SeqCst), 1, "the cancelled one never came to its end");
}

#[tokio::test]
async fn an_answer_for_an_older_version_is_withdrawn() {
    let (completer, gate) = echo().gated();
    let mut client = Client::ready(scripted(completer)).await;
    client.open(URI, "python", "x1 = \n").await;
    let id = client.ask_inline(URI, 0, 5).await;
    set_number(&mut client, 1, 1, 2).await;
    client.status().await;
    drop(gate);
    assert_eq!(client.answer(id).await["result"], json!({"items": []}));
    assert_eq!(client.status().await["lastDecision"]["code"], "stale");
}

#[tokio::test]
async fn an_answer_from_before_closing_is_not_shown_in_the_document_opened_again() {
    let (completer, gate) = echo().gated();
    let mut client = Client::ready(scripted(completer)).await;
    client.open(URI, "python", "x1 = \n").await;
    let id = client.ask_inline(URI, 0, 5).await;
    client.close_and_reopen(URI).await;
    assert_eq!(client.answer(id).await["result"], json!({"items": []}), "answered while the model still stands");
    drop(gate);
    assert_eq!(client.inline(URI, 0, 4).await, ["seen()"]);
    let decisions = client.status().await["decisions"].clone();
    assert!(decisions["superseded"] == 1 || decisions["stale"] == 1, "{decisions}");
}

#[tokio::test]
async fn typing_through_an_answer_asks_no_model() {
    let completer = Scripted::always("call(1, 2)\n");
    let (calls, _) = completer.counters();
    let mut client = Client::ready(scripted(completer)).await;
    client.open(URI, "python", "x = \n").await;
    for (i, typed) in "call(1, 2".chars().enumerate() {
        assert_eq!(client.inline(URI, 0, 4 + i as u32).await, [&"call(1, 2)"[i..]]);
        client.change(URI, i as i32 + 1, [0, 4 + i as u32, 0, 4 + i as u32], &typed.to_string()).await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn malformed_messages_get_an_error_and_the_server_lives() {
    let mut client = Client::ready(scripted(Scripted::always("1\n"))).await;
    client.open(URI, "python", "x = \n").await;
    for body in ["{\"jsonrpc\":\"2.0\",", "[]", "\u{1}", "{}", "{\"jsonrpc\":\"1.0\",\"method\":\"x\"}"] {
        client.send_bytes(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
        let code = client.error_without_id().await["error"]["code"].as_i64();
        assert!(matches!(code, Some(-32700 | -32600)), "{body}: {code:?}");
    }
    client.send_bytes(b"Content-Length: many\r\n\r\n").await;
    assert_eq!(client.error_without_id().await["error"]["code"], -32700);
    client.send_bytes(b"Content-Length: 2\r\n\r\n\xff\xfe").await;
    assert_eq!(client.error_without_id().await["error"]["code"], -32700);
    let unknown = client.request("no/suchMethod", json!({})).await;
    assert_eq!(unknown["error"]["code"], -32601);
    let wrong = client.request("textDocument/inlineCompletion", json!({"position": 3})).await;
    assert_eq!(wrong["error"]["code"], -32602);
    assert_eq!(client.inline(URI, 0, 4).await, ["1"]);
}

#[tokio::test]
async fn half_a_character_in_a_change_does_not_lose_the_document() {
    let mut client = Client::ready(scripted(echo())).await;
    client.open(URI, "python", "x1 = \n").await;
    let lone = r#"{"jsonrpc":"2.0","method":"textDocument/didChange","params":{"textDocument":{"uri":"file:///p/main.py","version":1},
        "contentChanges":[{"range":{"start":{"line":0,"character":2},"end":{"line":0,"character":2}},"text":"\ud83d7"}]}}"#;
    client.send_bytes(format!("Content-Length: {}\r\n\r\n{lone}", lone.len()).as_bytes()).await;
    assert_eq!(client.inline(URI, 0, 7).await, ["seen(17)"]);
}

#[tokio::test]
async fn a_document_of_five_megabytes_is_served() {
    let mut client = Client::ready(scripted(echo())).await;
    let line = "value = compute(1, 2, 3)  # \u{e9}\u{1f600}\r\n";
    let n_lines = 5_000_000 / line.len();
    client.open(URI, "python", &(line.repeat(n_lines) + "x1 = ")).await;
    for number in 2..=9 {
        client.change(URI, number, [n_lines as u32, 1, n_lines as u32, 2], &number.to_string()).await;
        assert_eq!(client.inline(URI, n_lines as u32, 5).await, [format!("seen({number})")]);
    }
    client.change(URI, 20, [0, 0, n_lines as u32, 0], "").await;
    assert_eq!(client.inline(URI, 0, 5).await, ["seen(9)"]);
}

#[tokio::test]
async fn line_ends_and_columns_are_the_documents_and_the_editors() {
    for (encoding, column) in [("utf-8", 12), ("utf-16", 10), ("utf-32", 9)] {
        let mut client = Client::start(scripted(Scripted::always("\n  g()\n")));
        let capabilities =
            json!({"general": {"positionEncodings": [encoding]}, "textDocument": {"inlineCompletion": {}}});
        let result = client.initialize(capabilities, Value::Null).await;
        assert_eq!(result["capabilities"]["positionEncoding"], encoding);
        client.open(URI, "javascript", "\u{1f600}\r\nf('\u{1f600}')  {\r\n\r\n}\r\n").await;
        assert_eq!(client.inline(URI, 1, column).await, ["\r\n  g()"], "{encoding}");
    }
}

#[tokio::test]
async fn items_carry_a_range_and_the_command_of_acceptance() {
    let mut client = Client::ready(scripted(Scripted::always("1\n"))).await;
    client.open(URI, "python", "x = \n").await;
    let answer = client.request("textDocument/inlineCompletion", inline_params(URI, 0, 4)).await;
    let item = &answer["result"]["items"][0];
    assert_eq!(item["range"], json!({"start": {"line": 0, "character": 4}, "end": {"line": 0, "character": 4}}));
    assert_eq!(item["command"]["command"], "multicoder.accepted");
    let accepted = client.request("workspace/executeCommand", item["command"].clone()).await;
    assert_eq!(accepted["result"], Value::Null);
    assert_eq!(client.status().await["accepted"], 1);
    let unknown = client.request("workspace/executeCommand", json!({"command": "rm"})).await;
    assert!(unknown["error"]["message"].as_str().unwrap().contains("multicoder.accepted"));
}

#[tokio::test]
async fn an_answer_continues_the_selected_item_of_the_menu() {
    let mut client = Client::ready(scripted(echo())).await;
    client.open(URI, "python", "x1 = co\n").await;
    let range = json!({"start": {"line": 0, "character": 5}, "end": {"line": 0, "character": 7}});
    let mut params = inline_params(URI, 0, 7);
    params["context"]["selectedCompletionInfo"] = json!({"range": range, "text": "count2"});
    let answer = client.request("textDocument/inlineCompletion", params).await;
    assert_eq!(texts(&answer), ["count2seen(12)"]);
    assert_eq!(answer["result"]["items"][0]["range"], range);
}

#[tokio::test]
async fn editors_without_inline_completion_get_menu_items() {
    let mut client = Client::start(scripted(Scripted::always("mpute(1)\n")));
    let result = client.initialize(json!({}), Value::Null).await;
    assert!(result["capabilities"]["completionProvider"].is_object());
    client.open(URI, "python", "x = co\n").await;
    let place = json!({"textDocument": {"uri": URI}, "position": {"line": 0, "character": 6}});
    let answer = client.request("textDocument/completion", place.clone()).await;
    let item = &answer["result"]["items"][0];
    assert_eq!(item["label"], "compute(1)");
    let range = json!({"start": {"line": 0, "character": 4}, "end": {"line": 0, "character": 6}});
    assert_eq!(item["textEdit"], json!({"range": range, "newText": "compute(1)"}));

    let mut inline = Client::ready(scripted(Scripted::always("mpute(1)\n"))).await;
    inline.open(URI, "python", "x = co\n").await;
    let answer = inline.request("textDocument/completion", place).await;
    assert_eq!(answer["result"]["items"], json!([]));
}

#[tokio::test]
async fn secrets_are_left_alone_and_the_status_says_why() {
    let completer = Scripted::always("1\n");
    let (calls, _) = completer.counters();
    let mut client = Client::ready(scripted(completer)).await;
    client.open("file:///p/.env.local", "shellscript", "KEY=\n").await;
    assert!(client.inline("file:///p/.env.local", 0, 4).await.is_empty());
    assert!(client.inline("file:///p/never-opened.py", 0, 4).await.is_empty());
    let status = client.status().await;
    assert_eq!((&status["decisions"]["excluded_file"], &status["decisions"]["not_open"]), (&json!(1), &json!(1)));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn settings_come_three_ways_and_unknown_keys_are_reported() {
    let mut client = Client::start(scripted(Scripted::always("1\n2\n3\n")));
    client.configuration = json!({"maxLines": 2});
    let capabilities = json!({
        "textDocument": {"inlineCompletion": {}},
        "workspace": {"configuration": true, "didChangeConfiguration": {"dynamicRegistration": true}},
    });
    client.initialize(capabilities, json!({"maxLine": 3, "minProbability": "high"})).await;
    let says = |what: &'static str| {
        move |message: &Value| message["params"]["message"].as_str().is_some_and(|text| text.contains(what))
    };
    let unknown = client.notification(says("multicoder.maxLine: unknown")).await;
    assert!(unknown["params"]["message"].as_str().unwrap().contains("maxLines"));
    client.notification(says("multicoder.minProbability: got \"high\"")).await;
    client.open(URI, "python", "x = \n").await;
    while !client.asked.contains(&"workspace/configuration".to_string()) {
        client.status().await;
    }
    while client.inline(URI, 0, 4).await != ["1\n2"] {
        client.close_and_reopen(URI).await;
    }
    assert!(client.asked.contains(&"client/registerCapability".to_string()));
    client.configuration = Value::Null;
    client.notify("workspace/didChangeConfiguration", json!({"settings": null})).await;
    client
        .notify("workspace/didChangeConfiguration", json!({"settings": {"multicoder": {"maxLines": 1, "x": 1}}}))
        .await;
    assert_eq!(client.inline(URI, 0, 4).await, ["1"]);
    client.notification(says("multicoder.x: unknown")).await;
    client.notify("workspace/didChangeConfiguration", json!({"settings": {"enable": false}})).await;
    assert!(client.inline(URI, 0, 4).await.is_empty());
}

#[tokio::test]
async fn a_panic_of_the_model_costs_one_answer() {
    let mut n_calls = 0;
    let completer = Scripted::new(move |_| {
        n_calls += 1;
        assert!(n_calls > 1, "the first time");
        Ok("1\n".to_string())
    });
    let mut client = Client::ready(scripted(completer)).await;
    client.open(URI, "python", "x = \n").await;
    assert!(client.inline(URI, 0, 4).await.is_empty());
    let is_said =
        |message: &Value| message["params"]["message"].as_str().is_some_and(|text| text.contains("the first time"));
    assert_eq!(client.notification(is_said).await["params"]["type"], 1);
    assert_eq!(client.inline(URI, 0, 4).await, ["1"]);
}

#[tokio::test]
async fn loading_shows_progress_and_requests_wait_for_it() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let mut client = Client::start(Box::new(move || {
        let _ = released.recv();
        Ok(Box::new(Scripted::always("1\n")) as Box<dyn Completer>)
    }));
    let capabilities = json!({"window": {"workDoneProgress": true}, "textDocument": {"inlineCompletion": {}}});
    client.initialize(capabilities, Value::Null).await;
    client.open(URI, "python", "x = \n").await;
    assert_eq!(client.status().await["loaded"], "loading");
    drop(release);
    assert_eq!(client.inline(URI, 0, 4).await, ["1"]);
    let is_of_kind = |kind: &'static str| move |message: &Value| message["params"]["value"]["kind"] == kind;
    client.notification(is_of_kind("begin")).await;
    client.notification(is_of_kind("end")).await;
    assert_eq!(client.status().await["loaded"], "ready");
    assert_eq!(client.asked, ["window/workDoneProgress/create"]);
}

#[tokio::test]
async fn without_a_model_the_editor_learns_why() {
    let mut client = Client::ready(Box::new(|| Err("/m.gguf: corrupt".to_string()))).await;
    client.open(URI, "python", "x = \n").await;
    assert!(client.inline(URI, 0, 4).await.is_empty());
    client.notification(|message| message["params"]["message"] == "no completions: /m.gguf: corrupt").await;
    let status = client.status().await;
    assert_eq!((&status["loaded"], &status["error"]), (&json!("failed"), &json!("/m.gguf: corrupt")));
}

#[tokio::test]
async fn shutdown_and_exit_end_it_whatever_the_model_does() {
    // The gates stay closed: the model would never come to an end.
    let mut gates = Vec::new();
    let mut busy = || {
        let (completer, gate) = Scripted::always("word\n").gated();
        gates.push(gate);
        scripted(completer)
    };

    let mut client = Client::ready(busy()).await;
    client.open(URI, "python", "x = \n").await;
    let pending = client.ask_inline(URI, 0, 4).await;
    assert_eq!(client.request("shutdown", Value::Null).await["result"], Value::Null);
    assert_eq!(client.answer(pending).await["result"], json!({"items": []}));
    client.notify("exit", Value::Null).await;
    assert_eq!(client.ended().await, Ended::Exit { after_shutdown: true });

    let mut client = Client::ready(busy()).await;
    client.open(URI, "python", "x = \n").await;
    client.ask_inline(URI, 0, 4).await;
    client.notify("exit", Value::Null).await;
    assert_eq!(client.ended().await, Ended::Exit { after_shutdown: false });

    let mut client = Client::ready(busy()).await;
    client.open(URI, "python", "x = \n").await;
    client.ask_inline(URI, 0, 4).await;
    client.close_input();
    assert_eq!(client.ended().await, Ended::InputClosed);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dead_editor_ends_it() {
    let mut editor = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let mut client = Client::start(scripted(Scripted::always("1\n")));
    client.request("initialize", json!({"processId": editor.id(), "capabilities": {}})).await;
    client.notify("initialized", json!({})).await;
    assert_eq!(client.status().await["documents"], 0);
    editor.kill().unwrap();
    assert_eq!(client.ended().await, Ended::EditorGone);
    editor.wait().unwrap();
}

#[tokio::test]
async fn requests_before_initialize_are_refused() {
    let mut client = Client::start(scripted(Scripted::always("1\n")));
    let early = client.request("textDocument/inlineCompletion", inline_params(URI, 0, 0)).await;
    assert_eq!(early["error"]["code"], -32002);
    client.initialize(json!({}), Value::Null).await;
    client.open(URI, "python", "x = \n").await;
    assert_eq!(client.inline(URI, 0, 4).await, ["1"]);
}
