//! Starting the real server for a test, with its model loaded.

use anyhow::{Context, Result, ensure};
use multicoder_tests::client::{LanguageClient, PATIENCE};
use multicoder_tests::editor::{Editor, Item};
use multicoder_tests::program::language_server;
use multicoder_tests::repository_root;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Instant;

/// Bytes of a line, without its indentation, that stand before the caret of [`sample_cuts`].
const CARET_BYTES: usize = 7;

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

/// Options for a server that offers all that it has, likely or not, however long it takes: these tests do not depend on how good
/// the model is, nor on how loaded the machine is.
pub(crate) fn all_offered() -> Value {
    json!({"minProbability": 0.0, "timeoutMs": 60_000})
}

/// A server with its model loaded, the options [`all_offered`] and one document open.
pub(crate) fn open(file_name: &str, language: &str, text: &str) -> Result<Editor> {
    let capabilities = json!({"textDocument": {"inlineCompletion": {"dynamicRegistration": false}}});
    let (mut client, _) = start(language_server()?, capabilities, all_offered())?;
    wait_until_loaded(&mut client)?;
    Editor::open(client, file_name, language, text)
}

/// An open document with an answer at its end.
pub(crate) fn open_with_item() -> Result<(Editor, Item)> {
    let mut editor = open("sample.py", "python", "")?;
    let item = find_item(&mut editor)?;
    Ok((editor, item))
}

/// Texts at whose end a reader knows what comes next.
const BEGINNINGS: [&str; 5] = [
    "def add(left, right):\n    return left + ",
    "import os\n\n\ndef read(path):\n    with open(path) as file:\n        return file.",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y =",
    "def main():\n    lines = read_lines(path)\n    for line in lines:\n        print(",
    "for i in range(10):\n    if i ",
];

/// Samples of `grammars/samples` with their language, whose lines are tried after the beginnings.
pub(crate) const SAMPLES: [(&str, &str); 6] = [
    ("python.py", "python"),
    ("rust.rs", "rust"),
    ("javascript.js", "javascript"),
    ("c.c", "c"),
    ("go.go", "go"),
    ("lua.lua", "lua"),
];

/// Reopens the document with one text after another until there is an answer at the end of one.
pub(crate) fn find_item(editor: &mut Editor) -> Result<Item> {
    let mut texts: Vec<(&str, String)> = BEGINNINGS.iter().map(|text| ("python", (*text).to_owned())).collect();
    for (name, language) in SAMPLES {
        texts.extend(sample_cuts(name)?.into_iter().map(|(before, typed)| (language, before + &typed)));
    }
    for (language, text) in &texts {
        editor.reopen(language, text)?;
        if let Some(item) = editor.complete()? {
            return Ok(item);
        }
    }
    anyhow::bail!("the model has no answer at any of {} places", texts.len())
}

/// For each line of a sample that is long enough: the text before the line, and the line up to a caret behind its first word.
pub(crate) fn sample_cuts(name: &str) -> Result<Vec<(String, String)>> {
    let path = repository_root().join("grammars/samples").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut cuts = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end();
        let n_indentation = content.len() - content.trim_start().len();
        let caret = content.char_indices().map(|(at, _)| at).find(|at| *at >= n_indentation + CARET_BYTES);
        cuts.extend(caret.map(|caret| (text[..start].to_owned(), content[..caret].to_owned())));
        start += line.len();
    }
    Ok(cuts)
}
