//! A client of the protocol for tests: it speaks to the server in this process over two pipes in memory, answers what the server asks, and
//! waits for messages with a deadline, never for a time.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each suite uses a part of one driver")]

use std::collections::HashMap;
use std::time::Duration;

use multicoder_lsp::completer::{Completer, Loader};
use multicoder_lsp::lifecycle::Ended;
use multicoder_lsp::scripted::Scripted;
use multicoder_lsp::server;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// No answer takes longer, or the test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);
const PIPE_BYTES: usize = 1 << 16;

/// One editor.
pub struct Client {
    to_server: Option<DuplexStream>,
    from_server: mpsc::UnboundedReceiver<Value>,
    served: JoinHandle<std::io::Result<Ended>>,
    next_id: i64,
    responses: HashMap<i64, Value>,
    /// Notifications of the server that nobody has waited for yet.
    pub notifications: Vec<Value>,
    /// What the editor says its configuration is.
    pub configuration: Value,
    /// Methods of the server's own requests, in order.
    pub asked: Vec<String>,
}

/// A loader of a scripted completer.
pub fn scripted(completer: Scripted) -> Loader {
    Box::new(move || Ok(Box::new(completer) as Box<dyn Completer>))
}

/// A completer that repeats the number at the end of the text before the caret, so that an answer tells what text it was made from.
pub fn echo() -> Scripted {
    let script = |ask: &multicoder_lsp::completer::Ask<'_>| {
        let line = ask.prefix.rsplit('\n').next().unwrap_or_default();
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        Ok(format!("seen({digits})\n"))
    };
    Scripted::new(script)
}

impl Client {
    /// Starts a server; nothing is said yet.
    pub fn start(load: Loader) -> Client {
        let (to_server, input) = tokio::io::duplex(PIPE_BYTES);
        let (output, from_server) = tokio::io::duplex(PIPE_BYTES);
        let served = tokio::spawn(server::serve(input, output, load));
        let (send, receive) = mpsc::unbounded_channel();
        tokio::spawn(read_messages(from_server, send));
        Client {
            to_server: Some(to_server),
            from_server: receive,
            served,
            next_id: 0,
            responses: HashMap::new(),
            notifications: Vec::new(),
            configuration: Value::Null,
            asked: Vec::new(),
        }
    }

    /// Starts a server and initializes it as an editor that shows inline completions.
    pub async fn ready(load: Loader) -> Client {
        let mut client = Client::start(load);
        client.initialize(json!({"textDocument": {"inlineCompletion": {}}}), Value::Null).await;
        client
    }

    /// `initialize` and `initialized`; returns the result.
    pub async fn initialize(&mut self, capabilities: Value, options: Value) -> Value {
        let params =
            json!({"processId": null, "rootUri": null, "capabilities": capabilities, "initializationOptions": options});
        let answer = self.request("initialize", params).await;
        self.notify("initialized", json!({})).await;
        answer["result"].clone()
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.to_server.as_mut().unwrap().write_all(bytes).await.unwrap();
    }

    async fn send(&mut self, message: Value) {
        let body = message.to_string();
        self.send_bytes(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
    }

    /// Sends a notification.
    pub async fn notify(&mut self, method: &str, params: Value) {
        self.send(json!({"jsonrpc": "2.0", "method": method, "params": params})).await;
    }

    /// Sends a request and returns its id.
    pub async fn ask(&mut self, method: &str, params: Value) -> i64 {
        self.next_id += 1;
        let id = self.next_id;
        let message = match params {
            Value::Null => json!({"jsonrpc": "2.0", "id": id, "method": method}),
            params => json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}),
        };
        self.send(message).await;
        id
    }

    /// The whole answer to a request, an error included.
    pub async fn answer(&mut self, id: i64) -> Value {
        loop {
            if let Some(answer) = self.responses.remove(&id) {
                return answer;
            }
            self.receive().await;
        }
    }

    /// Sends a request and waits for its answer.
    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params).await;
        self.answer(id).await
    }

    /// Waits for a notification that `is_it` accepts.
    pub async fn notification(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some(at) = self.notifications.iter().position(&is_it) {
                return self.notifications.remove(at);
            }
            self.receive().await;
        }
    }

    /// Waits for the error that has no id.
    pub async fn error_without_id(&mut self) -> Value {
        self.notification(|message| message["id"].is_null() && message["error"].is_object()).await
    }

    /// Takes the next message in and answers it if it is a request.
    async fn receive(&mut self) {
        let message = timeout(DEADLINE, self.from_server.recv())
            .await
            .expect("the server says nothing")
            .expect("the server is gone");
        if message.get("method").is_some() && message.get("id").is_some() {
            let method = message["method"].as_str().unwrap_or_default().to_string();
            let result = if method == "workspace/configuration" { json!([self.configuration]) } else { Value::Null };
            self.asked.push(method);
            self.send(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).await;
        } else if let Some(id) = message["id"].as_i64() {
            assert!(self.responses.insert(id, message).is_none(), "request {id} was answered twice");
        } else {
            self.notifications.push(message);
        }
    }

    /// Opens a document at version 0.
    pub async fn open(&mut self, uri: &str, language: &str, text: &str) {
        let document = json!({"uri": uri, "languageId": language, "version": 0, "text": text});
        self.notify("textDocument/didOpen", json!({"textDocument": document})).await;
    }

    /// Closes a document and opens it again with the text `x = `, so that nothing is remembered of it.
    pub async fn close_and_reopen(&mut self, uri: &str) {
        self.notify("textDocument/didClose", json!({"textDocument": {"uri": uri}})).await;
        self.open(uri, "python", "x = \n").await;
    }

    /// Replaces `range` (line, column, line, column) of a document.
    pub async fn change(&mut self, uri: &str, version: i32, range: [u32; 4], text: &str) {
        let [line, character, end_line, end_character] = range;
        let range = json!({
            "start": {"line": line, "character": character},
            "end": {"line": end_line, "character": end_character},
        });
        let changes = json!([{"range": range, "text": text}]);
        let document = json!({"uri": uri, "version": version});
        self.notify("textDocument/didChange", json!({"textDocument": document, "contentChanges": changes})).await;
    }

    /// Asks for ghost text and returns the request's id.
    pub async fn ask_inline(&mut self, uri: &str, line: u32, character: u32) -> i64 {
        self.ask("textDocument/inlineCompletion", inline_params(uri, line, character)).await
    }

    /// The texts of the items of ghost text at a place.
    pub async fn inline(&mut self, uri: &str, line: u32, character: u32) -> Vec<String> {
        let id = self.ask_inline(uri, line, character).await;
        texts(&self.answer(id).await)
    }

    /// Withdraws a request.
    pub async fn cancel(&mut self, id: i64) {
        self.notify("$/cancelRequest", json!({"id": id})).await;
    }

    /// What the server says of itself.
    pub async fn status(&mut self) -> Value {
        self.request("multicoder/status", Value::Null).await["result"].clone()
    }

    /// Closes the server's input.
    pub fn close_input(&mut self) {
        self.to_server = None;
    }

    /// Waits until serving ends.
    pub async fn ended(self) -> Ended {
        timeout(DEADLINE, self.served).await.expect("still serving").expect("the server panicked").expect("no engine")
    }
}

/// The parameters of a request for ghost text.
pub fn inline_params(uri: &str, line: u32, character: u32) -> Value {
    json!({
        "textDocument": {"uri": uri},
        "position": {"line": line, "character": character},
        "context": {"triggerKind": 2},
    })
}

/// The texts of an answer's items. An answer must be a list, never null.
pub fn texts(answer: &Value) -> Vec<String> {
    let items = answer["result"]["items"].as_array().unwrap_or_else(|| panic!("no items in {answer}"));
    items.iter().map(|item| item["insertText"].as_str().unwrap().to_string()).collect()
}

async fn read_messages(from_server: DuplexStream, send: mpsc::UnboundedSender<Value>) {
    let mut reader = BufReader::new(from_server);
    let mut header = String::new();
    while reader.read_line(&mut header).await.is_ok_and(|n| n > 0) {
        let len = header.trim().strip_prefix("Content-Length: ").and_then(|len| len.parse::<usize>().ok());
        header.clear();
        let Some(len) = len else { continue };
        reader.read_line(&mut header).await.unwrap();
        header.clear();
        let mut body = vec![0; len];
        if reader.read_exact(&mut body).await.is_err() || send.send(serde_json::from_slice(&body).unwrap()).is_err() {
            return;
        }
    }
}
