//! A language client in this process: the whole server at the other end of two pipes, messages as an editor sends them.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::runtime::Runtime;

use super::Edit;
use crate::completer::Loader;
use crate::server;
use crate::uri;

const PIPE_BYTES: usize = 1 << 20;

/// A server and what it has said so far.
pub struct Client {
    runtime: Runtime,
    to_server: DuplexStream,
    from_server: BufReader<DuplexStream>,
    versions: HashMap<String, i64>,
    /// Answers that nobody has asked for yet.
    answers: HashMap<i64, Value>,
    last_id: i64,
}

impl Client {
    /// Starts the server and initializes it with the open `folders` and the settings that a user has who changes none.
    ///
    /// # Errors
    /// No threads; a server that does not answer.
    pub fn start(load: Loader, folders: &[PathBuf]) -> anyhow::Result<Client> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
        let (to_server, input) = tokio::io::duplex(PIPE_BYTES);
        let (output, from_server) = tokio::io::duplex(PIPE_BYTES);
        runtime.spawn(async move { server::serve(input, output, load).await });
        let from_server = BufReader::new(from_server);
        let (versions, answers) = (HashMap::new(), HashMap::new());
        let mut client = Client { runtime, to_server, from_server, versions, answers, last_id: 0 };
        let capabilities =
            json!({"general": {"positionEncodings": ["utf-8"]}, "textDocument": {"inlineCompletion": {}}});
        let folder = |path: &PathBuf| json!({"uri": uri::of_path(path), "name": path.display().to_string()});
        let folders: Vec<Value> = folders.iter().map(folder).collect();
        let parameters = json!({"processId": null, "workspaceFolders": folders, "capabilities": capabilities});
        let id = client.request("initialize", parameters)?;
        client.result(id)?;
        client.notify("initialized", json!({}))?;
        Ok(client)
    }

    /// Opens a document.
    ///
    /// # Errors
    /// The server has ended.
    pub fn open(&mut self, uri: &str, text: &str) -> anyhow::Result<()> {
        self.versions.insert(uri.to_owned(), 1);
        let document = json!({"uri": uri, "languageId": "", "version": 1, "text": text});
        self.notify("textDocument/didOpen", json!({"textDocument": document}))
    }

    /// Changes a document.
    ///
    /// # Errors
    /// A document that was not opened; the server has ended.
    pub fn change(&mut self, uri: &str, edits: &[Edit]) -> anyhow::Result<()> {
        let version = self.versions.get_mut(uri).with_context(|| format!("{uri}: not open"))?;
        *version += 1;
        let change = |edit: &Edit| json!({"range": {"start": edit.start, "end": edit.end}, "text": edit.text});
        let changes: Vec<Value> = edits.iter().map(change).collect();
        let document = json!({"uri": uri, "version": *version});
        self.notify("textDocument/didChange", json!({"textDocument": document, "contentChanges": changes}))
    }

    /// Asks for a completion without waiting for it; returns the request's number.
    ///
    /// # Errors
    /// The server has ended.
    pub fn ask(&mut self, uri: &str, position: Value) -> anyhow::Result<i64> {
        let parameters = json!({"textDocument": {"uri": uri}, "position": position, "context": {"triggerKind": 2}});
        self.request("textDocument/inlineCompletion", parameters)
    }

    /// Waits for the answer to a request: the text to insert, if there is one.
    ///
    /// # Errors
    /// An error as the answer; the server has ended.
    pub fn answer(&mut self, id: i64) -> anyhow::Result<Option<String>> {
        let result = self.result(id)?;
        Ok(result["items"][0]["insertText"].as_str().map(str::to_owned))
    }

    /// Ends the server as an editor does.
    ///
    /// # Errors
    /// The server has ended already.
    pub fn shut_down(&mut self) -> anyhow::Result<()> {
        let id = self.request("shutdown", Value::Null)?;
        self.result(id)?;
        self.notify("exit", Value::Null)
    }

    fn request(&mut self, method: &str, parameters: Value) -> anyhow::Result<i64> {
        self.last_id += 1;
        self.send(&json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": parameters}))?;
        Ok(self.last_id)
    }

    fn notify(&mut self, method: &str, parameters: Value) -> anyhow::Result<()> {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": parameters}))
    }

    fn send(&mut self, message: &Value) -> anyhow::Result<()> {
        let body = message.to_string();
        let frame = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.runtime.block_on(self.to_server.write_all(frame.as_bytes())).context("the server has ended")
    }

    fn result(&mut self, id: i64) -> anyhow::Result<Value> {
        loop {
            if let Some(mut response) = self.answers.remove(&id) {
                ensure!(response.get("error").is_none(), "the server answered {response}");
                return Ok(response["result"].take());
            }
            let message = self.runtime.block_on(read_message(&mut self.from_server)).context("the server has ended")?;
            match (message["id"].as_i64(), message["method"].as_str()) {
                (Some(id), None) => _ = self.answers.insert(id, message),
                // It asks for what this client does not have.
                (Some(id), Some(_)) => self.send(&json!({"jsonrpc": "2.0", "id": id, "result": null}))?,
                (None, Some(_)) => {}
                (None, None) => bail!("the server sent {message}"),
            }
        }
    }
}

async fn read_message(from: &mut BufReader<DuplexStream>) -> io::Result<Value> {
    let mut n_bytes = 0;
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let field = line.trim_end().to_ascii_lowercase();
        match field.strip_prefix("content-length:") {
            Some(length) => n_bytes = length.trim().parse().map_err(io::Error::other)?,
            None if field.is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; n_bytes];
    from.read_exact(&mut body).await?;
    serde_json::from_slice(&body).map_err(io::Error::other)
}
