//! Starting the real server for a test, with its model loaded.

use anyhow::{Context, Result, ensure};
use multicoder_tests::client::{LanguageClient, PATIENCE};
use multicoder_tests::editor::Editor;
use multicoder_tests::program::language_server;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Instant;

/// Starts and initializes a server; returns its answer to `initialize` too.
pub(crate) fn start(mut command: Command, capabilities: Value, options: Value) -> Result<(LanguageClient, Value)> {
    let mut client = LanguageClient::start(&mut command)?;
    let answer = client.initialize(capabilities, options)?;
    Ok((client, answer))
}

/// Waits until the server says that its model is ready.
pub(crate) fn wait_until_loaded(client: &mut LanguageClient) -> Result<Value> {
    let started = Instant::now();
    loop {
        let status = client.call("multicoder/status", Value::Null)?;
        match status["loaded"].as_str().with_context(|| status.to_string())? {
            "ready" => return Ok(status),
            "loading" => ensure!(started.elapsed() < PATIENCE, "the model does not load: {status}"),
            _ => anyhow::bail!("no model: {status}"),
        }
    }
}

/// A server with its model loaded and one document open. It offers all that it has, likely or not, so that these tests do
/// not depend on how good the model is.
pub(crate) fn open(file_name: &str, language: &str, text: &str) -> Result<Editor> {
    let capabilities = json!({"textDocument": {"inlineCompletion": {"dynamicRegistration": false}}});
    let (mut client, _) = start(language_server()?, capabilities, json!({"minProbability": 0.0}))?;
    wait_until_loaded(&mut client)?;
    Editor::open(client, file_name, language, text)
}
