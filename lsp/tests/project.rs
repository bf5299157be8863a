//! Which files the server reads beside the one that is worked at, as an editor decides it by its folders and settings.

mod support;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use multicoder_lsp::scripted::{Reading, Scripted};
use multicoder_lsp::uri;
use serde_json::{Value, json};
use support::{Client, scripted};

/// Asks in the document, which is changed each time, until the texts that are read are `expected`.
async fn wait_until_read(client: &mut Client, read: &Mutex<Vec<Reading>>, uri: &str, expected: &[&str]) {
    read.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let last = || read.lock().unwrap_or_else(PoisonError::into_inner).last().map(|(_, uris)| uris.clone());
    for _ in 0..10_000 {
        client.close_and_reopen(uri).await;
        client.inline(uri, 0, 4).await;
        if last().as_deref().is_some_and(|uris| uris == expected) {
            return;
        }
    }
    panic!("{:?}, expected {expected:?}", last());
}

fn initialize(folder: &Path, root_alone: bool) -> Value {
    let folder = uri::of_path(folder);
    let mut params = json!({"processId": null, "capabilities": {"textDocument": {"inlineCompletion": {}}}});
    if root_alone {
        params["rootUri"] = folder.into();
    } else {
        (params["rootUri"], params["workspaceFolders"]) = (Value::Null, json!([{"uri": folder, "name": "p"}]));
    }
    params
}

#[tokio::test]
async fn files_of_the_open_folders_are_read_until_these_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("a.py", "x = \n"), ("b.py", "y = 1\n"), (".env", "A=1\n"), ("c.rs", "fn main() {}\n")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let [a, b] = ["a.py", "b.py"].map(|name| uri::of_path(&folder.path().join(name)));
    for root_alone in [false, true] {
        let completer = Scripted::always("1\n");
        let read = completer.read();
        let mut client = Client::start(scripted(completer));
        let result = client.request("initialize", initialize(folder.path(), root_alone)).await;
        assert_eq!(result["result"]["capabilities"]["workspace"]["workspaceFolders"]["changeNotifications"], true);
        client.notify("initialized", json!({})).await;
        client.open(&a, "python", "x = \n").await;
        wait_until_read(&mut client, &read, &a, &[&a, &b]).await;
        client.open(&b, "python", "y = 2\n").await;
        wait_until_read(&mut client, &read, &a, &[&a, &b]).await;
        client.notify("textDocument/didClose", json!({"textDocument": {"uri": b}})).await;
        wait_until_read(&mut client, &read, &a, &[&a, &b]).await;
        let folders = json!([{"uri": uri::of_path(folder.path()), "name": "p"}]);
        let event = json!({"event": {"added": [], "removed": folders}});
        client.notify("workspace/didChangeWorkspaceFolders", event).await;
        wait_until_read(&mut client, &read, &a, &[&a]).await;
    }
}

#[tokio::test]
async fn nothing_of_a_folder_is_read_once_that_is_off() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("b.py"), "y = 1\n").unwrap();
    let [a, b] = ["a.py", "b.py"].map(|name| uri::of_path(&folder.path().join(name)));
    let completer = Scripted::always("1\n");
    let read = completer.read();
    let mut client = Client::start(scripted(completer));
    client.request("initialize", initialize(folder.path(), false)).await;
    client.notify("initialized", json!({})).await;
    client.open(&a, "python", "x = \n").await;
    wait_until_read(&mut client, &read, &a, &[&a, &b]).await;
    let off = json!({"settings": {"multicoder": {"readProject": false}}});
    client.notify("workspace/didChangeConfiguration", off).await;
    wait_until_read(&mut client, &read, &a, &[&a]).await;
    let n = read.lock().unwrap().len();
    for _ in 0..20 {
        client.close_and_reopen(&a).await;
        client.inline(&a, 0, 4).await;
    }
    let later = read.lock().unwrap()[n..].to_vec();
    assert!(later.iter().all(|(_, uris)| *uris == [a.as_str()]), "{later:?}");
}
