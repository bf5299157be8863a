//! A language client of a hundred lines: starts the real server and speaks LSP with it over its standard input and output.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How long a test waits for one message before it calls the server dead: twice the longest time that a completion may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How long a test waits for the end of a server that is told to end, or whose editor is gone. It must end within a second (`lsp`
/// looks for its editor every 300 ms and gives the last answers 300 ms more), but on a loaded machine the second passes before the
/// server is given the processor, and no test fails by the clock.
pub const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// A running server and what it has said so far.
pub struct LanguageClient {
    process: Child,
    input: Option<ChildStdin>,
    received: Receiver<Value>,
    responses: HashMap<i64, Value>,
    /// Notifications of the server, oldest first.
    pub notifications: Vec<Value>,
    /// Answers without the number of a request (errors about messages that could not be read), oldest first.
    pub unnumbered: Vec<Value>,
    /// Answers to `workspace/configuration`: the whole section.
    pub configuration: Value,
    last_id: i64,
}

impl LanguageClient {
    /// Starts the server. Its standard error goes to the test's.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let output = process.stdout.take().context("standard output")?;
        let input = process.stdin.take();
        let (sender, received) = channel();
        std::thread::spawn(move || read_messages(output, &sender));
        Ok(Self {
            process,
            input,
            received,
            responses: HashMap::new(),
            notifications: Vec::new(),
            unnumbered: Vec::new(),
            configuration: Value::Null,
            last_id: 0,
        })
    }

    /// Sends `initialize` with the given client capabilities and options, then `initialized`; returns the server's answer.
    ///
    /// # Errors
    /// No answer, or an error as the answer.
    pub fn initialize(&mut self, capabilities: Value, options: Value) -> Result<Value> {
        let parameters = json!({
            "processId": std::process::id(), "rootUri": null,
            "capabilities": capabilities, "initializationOptions": options,
        });
        let answer = self.call("initialize", parameters)?;
        self.notify("initialized", json!({}))?;
        Ok(answer)
    }

    /// Sends a request and returns its id without waiting.
    ///
    /// # Errors
    /// The server has closed its input.
    pub fn request(&mut self, method: &str, parameters: Value) -> Result<i64> {
        self.last_id += 1;
        let id = self.last_id;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": parameters}))?;
        Ok(id)
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// The server has closed its input.
    pub fn notify(&mut self, method: &str, parameters: Value) -> Result<()> {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": parameters}))
    }

    /// Sends a request and waits for its result.
    ///
    /// # Errors
    /// No answer within [`PATIENCE`], or an error as the answer.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        let id = self.request(method, parameters)?;
        let response = self.response(id)?;
        ensure!(response.get("error").is_none(), "{method}: the server answered {response}");
        Ok(response["result"].clone())
    }

    /// Waits for the whole response message (with `result` or `error`) to a request.
    ///
    /// # Errors
    /// No answer within [`PATIENCE`], or the server has ended.
    pub fn response(&mut self, id: i64) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(response) = self.responses.remove(&id) {
                return Ok(response);
            }
            self.receive(deadline).with_context(|| format!("waiting for the answer to request {id}"))?;
        }
    }

    /// Waits until `enough` is content with the notifications so far.
    ///
    /// # Errors
    /// It is not within [`PATIENCE`], or the server has ended.
    pub fn wait_for_notifications(&mut self, enough: impl Fn(&[Value]) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.notifications) {
            self.receive(deadline).with_context(|| format!("so far: {:?}", self.notifications))?;
        }
        Ok(())
    }

    /// Waits until there are `n` answers without the number of a request, and returns the newest.
    ///
    /// # Errors
    /// There are not within [`PATIENCE`], or the server has ended.
    pub fn wait_for_unnumbered(&mut self, n: usize) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        while self.unnumbered.len() < n {
            self.receive(deadline).with_context(|| format!("so far: {:?}", self.unnumbered))?;
        }
        Ok(self.unnumbered.last().cloned().unwrap_or_default())
    }

    /// Writes bytes as they are: for messages that no well-behaved client sends.
    ///
    /// # Errors
    /// The server has closed its input.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_mut().context("standard input is closed")?;
        input.write_all(bytes).and_then(|()| input.flush()).context("writing to the server")
    }

    /// Closes the server's standard input, as an editor does that dies.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// The operating system's number of the server process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the server process has ended.
    ///
    /// # Errors
    /// It is still there after `deadline`.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the server is still running after {} ms", deadline.as_millis())
    }

    /// `shutdown`, `exit`, and the end of the process within [`EXIT_PATIENCE`].
    ///
    /// # Errors
    /// The server does not answer or does not end.
    pub fn shut_down(&mut self) -> Result<ExitStatus> {
        self.call("shutdown", Value::Null)?;
        self.notify("exit", Value::Null)?;
        self.wait_for_exit(EXIT_PATIENCE)
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        let body = message.to_string();
        self.send_bytes(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
    }

    /// Takes one message of the server: keeps answers and notifications, answers its requests.
    fn receive(&mut self, deadline: Instant) -> Result<()> {
        let message = match self.received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => bail!("no message in time"),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the server closed its output: {:?}", self.process.try_wait()?)
            }
        };
        match (message.get("id"), message.get("method").and_then(Value::as_str)) {
            (Some(id), Some(method)) => {
                let result = self.answer_to_server(method, &message);
                self.send(&json!({"jsonrpc": "2.0", "id": id, "result": result}))?;
            }
            (None, Some(_)) => self.notifications.push(message),
            (Some(id), None) => {
                let Some(id) = id.as_i64() else {
                    self.unnumbered.push(message);
                    return Ok(());
                };
                let twice = self.responses.insert(id, message);
                ensure!(twice.is_none(), "request {id} was answered twice");
            }
            (None, None) => bail!("neither request, notification nor answer: {message}"),
        }
        Ok(())
    }

    fn answer_to_server(&self, method: &str, message: &Value) -> Value {
        if method != "workspace/configuration" {
            return Value::Null;
        }
        let n_items = message["params"]["items"].as_array().map_or(1, Vec::len);
        Value::Array(vec![self.configuration.clone(); n_items])
    }
}

impl Drop for LanguageClient {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read_messages(output: ChildStdout, sender: &Sender<Value>) {
    let mut output = BufReader::new(output);
    while let Some(message) = read_message(&mut output) {
        if sender.send(message).is_err() {
            return;
        }
    }
}

fn read_message(output: &mut impl BufRead) -> Option<Value> {
    let mut n_bytes = 0;
    loop {
        let mut line = String::new();
        output.read_line(&mut line).ok().filter(|n_read| *n_read > 0)?;
        match line.trim() {
            "" => break,
            header => {
                if let Some(value) = header.strip_prefix("Content-Length:") {
                    n_bytes = value.trim().parse().ok()?;
                }
            }
        }
    }
    let mut body = vec![0; n_bytes];
    output.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}
