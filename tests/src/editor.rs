//! One open document of a language client: types into it, asks for inline completions, reads the answers.

use crate::client::LanguageClient;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// How a client counts the columns of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Utf8,
    Utf16,
    Utf32,
}

impl Encoding {
    /// Its name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Utf16 => "utf-16",
            Self::Utf32 => "utf-32",
        }
    }

    fn width(self, character: char) -> usize {
        match self {
            Self::Utf8 => character.len_utf8(),
            Self::Utf16 => character.len_utf16(),
            Self::Utf32 => 1,
        }
    }

    /// The protocol's position of a byte offset in `text`.
    pub fn position(self, text: &str, offset: usize) -> Value {
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let character: usize = before[line_start..].chars().map(|c| self.width(c)).sum();
        json!({"line": before.matches('\n').count(), "character": character})
    }
}

/// A client with one open document. `text` is what the server's copy must be.
pub struct Editor {
    pub client: LanguageClient,
    pub uri: String,
    pub text: String,
    pub encoding: Encoding,
    version: i64,
}

impl Editor {
    /// Opens a document in an initialized client.
    ///
    /// # Errors
    /// The server is gone.
    pub fn open(client: LanguageClient, file_name: &str, language: &str, text: &str) -> Result<Self> {
        let uri = format!("file:///project/{file_name}");
        let encoding = Encoding::Utf16;
        let mut editor = Self { client, uri, text: String::new(), encoding, version: 0 };
        editor.reopen(language, text)?;
        Ok(editor)
    }

    /// Opens the document (again) with another text.
    ///
    /// # Errors
    /// The server is gone.
    pub fn reopen(&mut self, language: &str, text: &str) -> Result<()> {
        if self.version > 0 {
            self.client.notify("textDocument/didClose", json!({"textDocument": {"uri": self.uri}}))?;
        }
        self.version += 1;
        text.clone_into(&mut self.text);
        let document = json!({"uri": self.uri, "languageId": language, "version": self.version, "text": text});
        self.client.notify("textDocument/didOpen", json!({"textDocument": document}))
    }

    /// Replaces a byte range of the document, here and by a notification with a range.
    ///
    /// # Errors
    /// The server is gone.
    pub fn replace(&mut self, range: std::ops::Range<usize>, with: &str) -> Result<()> {
        let (start, end) = (self.position(range.start), self.position(range.end));
        self.version += 1;
        self.text.replace_range(range, with);
        let change = json!({"range": {"start": start, "end": end}, "text": with});
        let document = json!({"uri": self.uri, "version": self.version});
        self.client.notify("textDocument/didChange", json!({"textDocument": document, "contentChanges": [change]}))
    }

    /// Types at the end of the document.
    ///
    /// # Errors
    /// The server is gone.
    pub fn append(&mut self, typed: &str) -> Result<()> {
        self.replace(self.text.len()..self.text.len(), typed)
    }

    /// Asks for an inline completion at a byte offset; returns the request's id.
    ///
    /// # Errors
    /// The server is gone.
    pub fn ask(&mut self, offset: usize) -> Result<i64> {
        let parameters = json!({
            "textDocument": {"uri": self.uri}, "position": self.position(offset), "context": {"triggerKind": 2},
        });
        self.client.request("textDocument/inlineCompletion", parameters)
    }

    /// Withdraws a request.
    ///
    /// # Errors
    /// The server is gone.
    pub fn cancel(&mut self, id: i64) -> Result<()> {
        self.client.notify("$/cancelRequest", json!({"id": id}))
    }

    /// The answer to a request: an item, or the empty list.
    ///
    /// # Errors
    /// No answer, an error as the answer, or an answer that is no list of items.
    pub fn answer(&mut self, id: i64) -> Result<Option<Item>> {
        let response = self.client.response(id)?;
        items(&response).with_context(|| response.to_string())
    }

    /// Asks at the end of the document and waits for the answer.
    ///
    /// # Errors
    /// As [`Editor::answer`].
    pub fn complete(&mut self) -> Result<Option<Item>> {
        let id = self.ask(self.text.len())?;
        self.answer(id)
    }

    /// The protocol's position of a byte offset.
    pub fn position(&self, offset: usize) -> Value {
        self.encoding.position(&self.text, offset)
    }
}

/// An inline completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub text: String,
    pub range: Value,
}

/// The item of a successful response; `None` for the empty list. Null is no answer: Neovim keeps its old ghost text then.
fn items(response: &Value) -> Result<Option<Item>> {
    ensure!(response.get("error").is_none(), "an error");
    let items = response["result"]["items"].as_array().context("no list of items")?;
    ensure!(items.len() <= 1, "more than one item for an automatic request");
    let Some(item) = items.first() else { return Ok(None) };
    let text = item["insertText"].as_str().context("insertText is a string")?.to_owned();
    ensure!(!text.is_empty(), "an empty item");
    Ok(Some(Item { text, range: item["range"].clone() }))
}
