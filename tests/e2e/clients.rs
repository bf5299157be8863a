//! What known editors announce in `initialize`, and what the server must make of each.

use crate::session::{all_offered, find_item, start, wait_until_loaded};
use anyhow::{Context, Result, ensure};
use multicoder_tests::editor::{Editor, Encoding};
use multicoder_tests::program::language_server;
use serde_json::{Value, json};

struct Client {
    name: &'static str,
    capabilities: Value,
    encoding: Encoding,
    /// Shows ghost text; the others get items of the completion menu.
    is_inline: bool,
}

/// The parts of their capabilities that matter to this server (SERVER tests of each editor were the source).
fn clients() -> Vec<Client> {
    let inline = json!({"inlineCompletion": {"dynamicRegistration": false}});
    let client = |name, encodings: &[&str], text_document: &Value, workspace: Value, encoding, is_inline| Client {
        name,
        capabilities: json!({
            "general": {"positionEncodings": encodings}, "textDocument": text_document, "workspace": workspace,
            "window": {"workDoneProgress": true},
        }),
        encoding,
        is_inline,
    };
    let menu = json!({"completion": {"completionItem": {"snippetSupport": true}}});
    let asked = json!({"configuration": true, "didChangeConfiguration": {"dynamicRegistration": true}});
    let pushed = json!({"configuration": false, "didChangeConfiguration": {"dynamicRegistration": false}});
    vec![
        client("Neovim", &["utf-8", "utf-16", "utf-32"], &inline, asked.clone(), Encoding::Utf8, true),
        client("VS Code", &["utf-16"], &inline, asked.clone(), Encoding::Utf16, true),
        client("Emacs lsp-mode", &["utf-32", "utf-8", "utf-16"], &inline, asked, Encoding::Utf8, true),
        client("Helix", &["utf-8", "utf-32", "utf-16"], &menu, pushed, Encoding::Utf8, false),
        Client { name: "a bare client", capabilities: json!({}), encoding: Encoding::Utf16, is_inline: false },
    ]
}

#[test]
fn each_known_editor_is_served_in_its_way() -> Result<()> {
    for client in clients() {
        check(&client).context(client.name)?;
    }
    Ok(())
}

fn check(client: &Client) -> Result<()> {
    let (mut server, answer) = start(language_server()?, client.capabilities.clone(), all_offered())?;
    let capabilities = &answer["capabilities"];
    ensure!(capabilities["positionEncoding"] == client.encoding.name(), "{capabilities}");
    ensure!(capabilities["inlineCompletionProvider"] == true, "true, not an object: {capabilities}");
    ensure!(capabilities["completionProvider"].is_object() != client.is_inline, "{capabilities}");
    server.configuration = json!({"maxLines": 1});
    wait_until_loaded(&mut server)?;
    let mut editor = Editor::open(server, "sample.py", "python", "")?;
    editor.encoding = client.encoding;
    let inline = find_item(&mut editor)?;
    let position = editor.position(editor.text.len());
    let parameters = json!({"textDocument": {"uri": editor.uri}, "position": position});
    let menu = editor.client.call("textDocument/completion", parameters)?;
    let items = menu["items"].as_array().context("a list of items")?;
    ensure!(items.len() == usize::from(!client.is_inline), "{menu}");
    if let Some(item) = items.first() {
        let edit = &item["textEdit"];
        ensure!(edit["newText"].as_str().is_some_and(|text| text.ends_with(&inline.text)), "{item}");
        ensure!(edit["range"]["end"] == position, "{item}");
    }
    ensure!(editor.client.shut_down()?.code() == Some(0));
    Ok(())
}
