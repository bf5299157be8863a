//! A model behind HTTP: llama.cpp's server, or one that speaks OpenAI's completions. Requests go through the program `curl`: nothing in
//! this repository opens a socket.
//!
//! The server lays out its own prompt for fill in the middle; context, temperature (0) and the end of an answer are as for a model here.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::answer::{Answer, Answerer};
use super::question::{Ending, Question};
use crate::data::lines::floor_char;

/// Longest time of one answer, in seconds.
const LIMIT_S: &str = "120";
/// Text on each side of the caret that is sent, in bytes: more than any prompt of the suites holds, less than a server refuses.
const MAX_SIDE_BYTES: usize = 16 * 1024;

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// `/infill` and `/completion`.
    LlamaCpp,
    /// `/v1/completions` with `suffix`.
    OpenAi,
}

/// A server and its model.
#[derive(Clone, Debug)]
pub struct Http {
    address: String,
    dialect: Dialect,
    /// As the server names it.
    pub model: String,
}

impl Http {
    /// Asks the server at `address` (`http://127.0.0.1:8080`) what it is.
    ///
    /// # Errors
    /// A server that does not answer, or speaks neither dialect.
    pub fn connect(address: &str) -> Result<Http> {
        let address = address.trim_end_matches('/').to_owned();
        let props = request(&format!("{address}/props"), None);
        if let Ok(props) = &props
            && props.get("default_generation_settings").is_some()
        {
            let path = props["model_path"].as_str().or(props["model_alias"].as_str()).unwrap_or("llama.cpp");
            let model = path.rsplit('/').next().unwrap_or(path).to_owned();
            return Ok(Http { address, dialect: Dialect::LlamaCpp, model });
        }
        let models = request(&format!("{address}/v1/models"), None).map_err(|error| props.err().unwrap_or(error))?;
        let model = models["data"][0]["id"].as_str();
        let model = model.ok_or_else(|| anyhow!("{address}/v1/models: expected the name of a model, got {models}"))?;
        Ok(Http { dialect: Dialect::OpenAi, model: model.to_owned(), address })
    }

    fn body(&self, question: &Question, max_new_tokens: usize) -> (String, Value) {
        let stop: Vec<&str> = match &question.ending {
            Ending::CaretLine => vec!["\n"],
            // More than these OpenAI's refuse; the answer is cut here in any case.
            Ending::Before(stops) => stops.iter().take(4).map(String::as_str).collect(),
            Ending::FirstLine | Ending::Statement | Ending::Text => Vec::new(),
        };
        let (prefix, suffix) = (end(&question.prefix), start(&question.suffix));
        let path = match (self.dialect, suffix.is_empty()) {
            (Dialect::LlamaCpp, false) => "/infill",
            (Dialect::LlamaCpp, true) => "/completion",
            (Dialect::OpenAi, _) => "/v1/completions",
        };
        let fragments =
            || question.fragments.iter().map(|of| format!("{}\n{}\n", of.path, of.text)).collect::<String>();
        let body = match (self.dialect, suffix.is_empty()) {
            (Dialect::LlamaCpp, false) => {
                let extra = question.fragments.iter().map(|of| json!({"filename": of.path, "text": of.text}));
                json!({"input_prefix": prefix, "input_suffix": suffix, "input_extra": extra.collect::<Vec<_>>(),
                       "n_predict": max_new_tokens, "temperature": 0, "cache_prompt": true, "n_probs": 1, "stop": stop})
            }
            (Dialect::LlamaCpp, true) => json!({
                "prompt": fragments() + prefix, "n_predict": max_new_tokens, "temperature": 0, "cache_prompt": true,
                "n_probs": 1, "stop": stop,
            }),
            (Dialect::OpenAi, is_plain) => {
                let suffix = if is_plain { Value::Null } else { suffix.into() };
                let stop = if stop.is_empty() { Value::Null } else { json!(stop) };
                json!({"model": self.model, "prompt": fragments() + prefix, "suffix": suffix, "max_tokens": max_new_tokens,
                       "temperature": 0, "logprobs": 1, "stop": stop})
            }
        };
        (format!("{}{path}", self.address), body)
    }
}

impl Answerer for Http {
    fn answer(&mut self, question: &Question, max_new_tokens: usize) -> Result<Answer> {
        let (url, body) = self.body(question, max_new_tokens);
        let started = Instant::now();
        let reply = request(&url, Some(&body))?;
        let elapsed_ms = 1e3 * started.elapsed().as_secs_f64();
        let (text, logprobs) = match self.dialect {
            Dialect::LlamaCpp => (&reply["content"], logprobs(&reply["completion_probabilities"], "logprob")),
            Dialect::OpenAi => {
                (&reply["choices"][0]["text"], logprobs(&reply["choices"][0]["logprobs"]["token_logprobs"], ""))
            }
        };
        let text = text.as_str().ok_or_else(|| anyhow!("{url}: expected a text, got {reply}"))?;
        let answer = question.ending.cut(text);
        // Of tokens beyond the end of the answer nothing is to be said.
        let logprobs = logprobs.filter(|_| answer.len() == text.len());
        let probability = logprobs.map(|logprobs| logprobs.iter().sum::<f64>().exp());
        Ok(Answer { text: answer.to_owned(), probability, elapsed_ms })
    }
}

/// Numbers of a list, each itself or a field of an object; none for an empty list or another value.
fn logprobs(list: &Value, field: &str) -> Option<Vec<f64>> {
    let list = list.as_array().filter(|list| !list.is_empty())?;
    list.iter().map(|of| if field.is_empty() { of.as_f64() } else { of[field].as_f64() }).collect()
}

/// Posts `body`, or gets without one, and reads JSON.
fn request(url: &str, body: Option<&Value>) -> Result<Value> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", LIMIT_S]);
    if body.is_some() {
        curl.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]);
    }
    curl.arg(url).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = curl.spawn().context("curl does not start; is it installed?")?;
    // The input is closed at the end of this block; a server that answers early leaves curl deaf.
    if let (Some(mut input), Some(body)) = (child.stdin.take(), body) {
        let _ = input.write_all(body.to_string().as_bytes());
    }
    let output = child.wait_with_output()?;
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{url}: {} {}", said.trim(), text.trim());
    serde_json::from_str(&text).map_err(|error| anyhow!("{url}: expected JSON: {error}"))
}

/// The last bytes of a text, from the start of a line.
fn end(text: &str) -> &str {
    let Some(excess) = text.len().checked_sub(MAX_SIDE_BYTES) else { return text };
    let from = floor_char(text, excess);
    text[from..].find('\n').map_or(&text[from..], |newline| &text[from + newline + 1..])
}

/// The first bytes of a text.
fn start(text: &str) -> &str {
    &text[..floor_char(text, MAX_SIDE_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::super::question::Fragment;
    use super::super::question::tests::question;
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::Child;

    /// A server that says `replies` by path, and what it was asked.
    const SERVER: &str = "
import http.server, json, sys
replies = json.loads(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self):
        length = self.headers['Content-Length']
        asked = json.loads(self.rfile.read(int(length))) if length else None
        reply = replies.get(self.path)
        self.send_response(200 if reply is not None else 404)
        self.end_headers()
        text = json.dumps(reply) if reply is not None else 'no such path'
        self.wfile.write(text.replace('\"ASKED\"', json.dumps(json.dumps(asked, sort_keys=True))).encode())
    def log_message(self, *arguments): pass
for method in ('get', 'post'): setattr(Handler, 'do_' + method.upper(), Handler.reply)
server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
";

    struct Server {
        child: Child,
        address: String,
    }

    impl Server {
        /// None, with a printed reason, on a machine that lacks what it takes.
        fn start(replies: Value) -> Option<Server> {
            let mut python = Command::new("python3");
            let child = python.args(["-c", SERVER, &replies.to_string()]).stdout(Stdio::piped()).spawn();
            let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
            let (Ok(mut child), true) = (child, curl.is_ok()) else {
                println!("SKIPPED models behind HTTP: no python3 or no curl");
                return None;
            };
            let mut port = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
            Some(Server { child, address: format!("http://127.0.0.1:{}/", port.trim()) })
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn asked(suffix: &str) -> Question {
        let fragments = vec![Fragment { path: "b.lua".to_owned(), text: "y = 2".to_owned() }];
        Question { suffix: suffix.to_owned(), fragments, ..question("1", "lua", "infill") }
    }

    #[test]
    fn llama_cpp_is_asked_to_infill_where_there_is_a_suffix_and_to_complete_where_there_is_none() {
        let probabilities = json!([{"logprob": -0.5}, {"logprob": -0.25}]);
        let Some(server) = Server::start(json!({
            "/props": {"default_generation_settings": {}, "model_path": "models/tiny.gguf"},
            "/infill": {"content": "ASKED", "completion_probabilities": probabilities},
            "/completion": {"content": "1 + 1\nrest"},
        })) else {
            return;
        };
        let mut http = Http::connect(&server.address).unwrap();
        assert_eq!(http.model, "tiny.gguf");
        let answer = http.answer(&asked("\nend"), 7).unwrap();
        let sent: Value = serde_json::from_str(&answer.text).unwrap();
        assert_eq!(
            (&sent["input_prefix"], &sent["input_suffix"], &sent["n_predict"]),
            (&json!("x = "), &json!("\nend"), &json!(7))
        );
        assert_eq!(sent["input_extra"], json!([{"filename": "b.lua", "text": "y = 2"}]));
        assert!((answer.probability.unwrap() - (-0.75f64).exp()).abs() < 1e-12);
        let answer = http.answer(&asked(""), 7).unwrap();
        assert_eq!((answer.text.as_str(), answer.probability), ("1 + 1", None));
    }

    #[test]
    fn a_server_of_openais_kind_gets_the_suffix_and_its_own_name() {
        let choice = json!({"text": "ASKED", "logprobs": {"token_logprobs": [-1.0]}});
        let replies = json!({"/v1/models": {"data": [{"id": "m1"}]}, "/v1/completions": {"choices": [choice]}});
        let Some(server) = Server::start(replies) else { return };
        let mut http = Http::connect(&server.address).unwrap();
        let answer = http.answer(&asked("\nend"), 7).unwrap();
        let sent: Value = serde_json::from_str(&answer.text).unwrap();
        assert_eq!(
            (&sent["model"], &sent["prompt"], &sent["suffix"]),
            (&json!("m1"), &json!("b.lua\ny = 2\nx = "), &json!("\nend"))
        );
        assert!((answer.probability.unwrap() - (-1f64).exp()).abs() < 1e-12);
    }

    #[test]
    fn a_server_that_is_not_there_or_is_another_is_an_error_with_its_address() {
        let Some(server) = Server::start(json!({"/v1/models": {"object": "list"}})) else { return };
        let error = Http::connect("http://127.0.0.1:9").unwrap_err().to_string();
        assert!(error.contains("http://127.0.0.1:9/props"), "{error}");
        let error = Http::connect(&server.address).unwrap_err().to_string();
        assert!(error.contains("expected the name of a model"), "{error}");
    }

    #[test]
    fn long_texts_are_cut_away_from_the_caret() {
        let text = "line of words\n".repeat(3000);
        assert!(end(&text).len() <= MAX_SIDE_BYTES && end(&text).starts_with("line") && text.ends_with(end(&text)));
        assert!(start(&text).len() == MAX_SIDE_BYTES && text.starts_with(start(&text)));
        assert_eq!((end("ab"), start("ab")), ("ab", "ab"));
    }
}
