//! A model behind HTTP: llama.cpp's server, or one that speaks OpenAI's completions. Requests go through the program `curl`: nothing in
//! this repository opens a socket.
//!
//! The server lays out its own prompt for fill in the middle; context, temperature (0) and the end of an answer are as for a model here.
//! Answers come token by token and are ended here, so that no server is timed for what nobody asked for.

use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::answer::{Answer, Answerer};
use super::question::Question;
use crate::data::lines::floor_char;

mod curl;

use curl::Refused;

/// Text on each side of the caret that is sent, in bytes: more than any prompt of the suites holds, less than a server refuses.
const MAX_SIDE_BYTES: usize = 16 * 1024;
/// A prompt that no server should find too long.
const SHORTEST_PROMPT_BYTES: usize = 64;
/// What servers say of a prompt that is longer than their context.
const TOO_LONG: [&str; 3] = ["exceed_context_size", "maximum context length", "context length"];

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
    /// Whether the server has to be told which of its models is meant.
    is_chosen: bool,
    /// Whether the server takes text after the caret, as far as it has said.
    takes_suffix: bool,
}

impl Http {
    /// Asks the server at `address` (`http://127.0.0.1:8080`) what it is; after a `#` may stand which of its models is meant.
    ///
    /// # Errors
    /// A server that does not answer, or speaks neither dialect.
    pub fn connect(address: &str) -> Result<Http> {
        let (address, wanted) =
            address.split_once('#').map_or((address, None), |(address, name)| (address, Some(name)));
        let address = address.trim_end_matches('/').to_owned();
        let props = curl::get(&format!("{address}/props"));
        if let Ok(props) = &props
            && props.get("default_generation_settings").is_some()
        {
            let path = props["model_path"].as_str().or(props["model_alias"].as_str()).unwrap_or("llama.cpp");
            let model = wanted.unwrap_or(path.rsplit('/').next().unwrap_or(path)).to_owned();
            let dialect = Dialect::LlamaCpp;
            return Ok(Http { address, dialect, model, is_chosen: wanted.is_some(), takes_suffix: true });
        }
        let named = |models: Value| {
            let model = models["data"][0]["id"].as_str().map(str::to_owned);
            model.ok_or_else(|| anyhow!("{address}/v1/models: expected the name of a model, got {models}"))
        };
        let model = match wanted {
            Some(name) => name.to_owned(),
            None => curl::get(&format!("{address}/v1/models")).and_then(named).with_context(|| {
                format!(
                    "no llama.cpp ({}) and no other",
                    props.map_or_else(|error| format!("{error:#}"), |_| "other properties".to_owned())
                )
            })?,
        };
        Ok(Http { dialect: Dialect::OpenAi, model, address, is_chosen: true, takes_suffix: true })
    }

    fn body(&self, question: &Question, max_new_tokens: usize) -> (String, Value) {
        let (prefix, suffix) = (end(&question.prefix), start(&question.suffix));
        let suffix = if self.takes_suffix { suffix } else { "" };
        let fragments: String = question.fragments.iter().map(|of| format!("{}\n{}\n", of.path, of.text)).collect();
        // Nothing at all is no prompt to a server.
        let prompt = if fragments.is_empty() && prefix.is_empty() { "\n".to_owned() } else { fragments + prefix };
        let mut body = match self.dialect {
            Dialect::LlamaCpp => json!({"n_predict": max_new_tokens, "cache_prompt": true, "n_probs": 1}),
            Dialect::OpenAi => json!({"max_tokens": max_new_tokens, "logprobs": 1}),
        };
        let (path, more) = match (self.dialect, suffix.is_empty()) {
            (Dialect::LlamaCpp, false) => {
                let extra = question.fragments.iter().map(|of| json!({"filename": of.path, "text": of.text}));
                let extra: Vec<Value> = extra.collect();
                ("/infill", json!({"input_prefix": prefix, "input_suffix": suffix, "input_extra": extra}))
            }
            (Dialect::LlamaCpp, true) => ("/completion", json!({"prompt": prompt})),
            (Dialect::OpenAi, false) => ("/v1/completions", json!({"prompt": prompt, "suffix": suffix})),
            (Dialect::OpenAi, true) => ("/v1/completions", json!({"prompt": prompt})),
        };
        let always = json!({"temperature": 0, "stream": true});
        let model = if self.is_chosen { json!({"model": self.model}) } else { json!({}) };
        for more in [more, always, model].into_iter().filter_map(|more| more.as_object().cloned()) {
            body.as_object_mut().into_iter().for_each(|body| body.extend(more.clone()));
        }
        (format!("{}{path}", self.address), body)
    }

    fn ask(&self, question: &Question, max_new_tokens: usize) -> Result<Answer> {
        let (url, body) = self.body(question, max_new_tokens);
        let started = Instant::now();
        let mut said = Said::default();
        curl::post(&url, &body, &mut |event| {
            said.hear(self.dialect, &event).with_context(|| format!("{url}: {event}"))?;
            Ok(question.ending.is_enough(said.text.as_bytes()))
        })?;
        let elapsed_ms = 1e3 * started.elapsed().as_secs_f64();
        let mut text = question.ending.cut(&said.text);
        // Some servers give back what they were to end with.
        let suffix = body["suffix"].as_str().unwrap_or_default();
        if text.len() == said.text.len() && !suffix.is_empty() {
            text = text.strip_suffix(suffix).unwrap_or(text);
        }
        Ok(Answer { text: text.to_owned(), probability: said.probability(text), elapsed_ms })
    }
}

impl Answerer for Http {
    fn answer(&mut self, question: &Question, max_new_tokens: usize) -> Result<Answer> {
        let mut question = question.clone();
        loop {
            let error = match self.ask(&question, max_new_tokens) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(Refused { said, .. }) = error.downcast_ref() else { return Err(error) };
            let said = said.to_lowercase();
            let refuses_suffix = said.contains("not_supported_error") || said.contains("suffix");
            if TOO_LONG.iter().any(|words| said.contains(words)) && shorten(&mut question) {
                continue;
            }
            if !self.takes_suffix || question.suffix.is_empty() || !refuses_suffix {
                return Err(error);
            }
            eprintln!("{}: takes no text after the caret, and is asked from left to right: {error:#}", self.address);
            self.takes_suffix = false;
        }
    }
}

/// Drops the fragment that is least useful, or half of the text on both sides; whether there was anything left to drop.
fn shorten(question: &mut Question) -> bool {
    if !question.fragments.is_empty() {
        question.fragments.remove(0);
        return true;
    }
    if question.prefix.len() + question.suffix.len() < SHORTEST_PROMPT_BYTES {
        return false;
    }
    let prefix = end(&question.prefix);
    question.prefix = prefix[floor_char(prefix, prefix.len() / 2)..].to_owned();
    let half = floor_char(&question.suffix, start(&question.suffix).len() / 2);
    question.suffix.truncate(half);
    true
}

/// What a server has said so far.
#[derive(Default)]
struct Said {
    text: String,
    /// The tokens as the server tells them.
    bytes: Vec<u8>,
    /// Of each token, where it begins in them, and its logarithm of a probability.
    tokens: Vec<(usize, f64)>,
}

impl Said {
    fn hear(&mut self, dialect: Dialect, event: &Value) -> Result<()> {
        let choice = &event["choices"][0];
        let (text, tokens) = match dialect {
            Dialect::LlamaCpp => (&event["content"], listed(&event["completion_probabilities"])),
            Dialect::OpenAi if choice.is_null() && event["choices"].is_array() => return Ok(()),
            Dialect::OpenAi => (&choice["text"], openai_tokens(&choice["logprobs"])),
        };
        self.text += text.as_str().context("expected a text")?;
        for (bytes, logprob) in tokens {
            self.tokens.push((self.bytes.len(), logprob));
            self.bytes.extend(bytes);
        }
        Ok(())
    }

    /// Of `answer`, with the token that ended it; none where the tokens told do not spell it, as those of a split character.
    fn probability(&self, answer: &str) -> Option<f64> {
        let is_spelled = !self.tokens.is_empty() && self.bytes.starts_with(answer.as_bytes());
        let own = self.tokens.iter().filter(|(start, _)| *start <= answer.len());
        is_spelled.then(|| own.map(|(_, logprob)| logprob).sum::<f64>().exp())
    }
}

/// Objects with `bytes` or `token`, and `logprob`.
fn listed(list: &Value) -> Vec<(Vec<u8>, f64)> {
    let bytes = |of: &Value| match of["bytes"].as_array() {
        Some(bytes) => bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect(),
        None => of["token"].as_str().unwrap_or_default().as_bytes().to_vec(),
    };
    list.as_array().into_iter().flatten().filter_map(|of| Some((bytes(of), of["logprob"].as_f64()?))).collect()
}

/// `tokens` and `token_logprobs`, or a list as of a chat.
fn openai_tokens(logprobs: &Value) -> Vec<(Vec<u8>, f64)> {
    let (Some(tokens), Some(values)) = (logprobs["tokens"].as_array(), logprobs["token_logprobs"].as_array()) else {
        return listed(&logprobs["content"]);
    };
    let both = tokens.iter().zip(values);
    both.filter_map(|(token, value)| Some((token.as_str()?.as_bytes().to_vec(), value.as_f64()?))).collect()
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
    use std::process::{Child, Command, Stdio};

    /// A server that says `replies` by path, and what it was asked.
    const SERVER: &str = "
import http.server, json, sys
replies = json.loads(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self):
        length = self.headers['Content-Length']
        asked = json.loads(self.rfile.read(int(length))) if length else None
        reply = replies.get(self.path)
        if asked and len(json.dumps(asked)) > 700: reply = {'error': 'exceed_context_size_error'}
        if asked and 'suffix' in asked and 'no suffix' in replies: reply = {'error': 'suffix is not supported'}
        status = 404 if reply is None else 400 if 'error' in reply else 200
        self.send_response(status)
        self.end_headers()
        text = json.dumps(reply) if reply is not None else 'no such path'
        if 'events' in (reply or {}): text = ''.join(f'data: {json.dumps(event)}\\n\\n' for event in reply['events'])
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
        let probabilities = json!([{"logprob": -0.5, "token": "x"}, {"logprob": -0.25, "token": "x"}]);
        let Some(server) = Server::start(json!({
            "/props": {"default_generation_settings": {}, "model_path": "models/tiny.gguf"},
            "/infill": {"content": "ASKED", "completion_probabilities": probabilities},
            "/completion": {"events": [
                {"content": "1 +", "completion_probabilities": [{"logprob": -1.0, "bytes": [49, 32, 43]}]},
                {"content": " 1\nrest", "completion_probabilities": [
                    {"logprob": -0.5, "token": " 1"}, {"logprob": -0.25, "token": "\n"}, {"logprob": -9.0, "token": "rest"},
                ]},
                {"content": "never heard of"},
            ]},
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
        assert_eq!(answer.probability, None, "these tokens do not spell the answer");
        let answer = http.answer(&asked(""), 7).unwrap();
        assert_eq!(answer.text, "1 + 1");
        assert!((answer.probability.unwrap() - (-1.75f64).exp()).abs() < 1e-12, "with the token that ends the line");
    }

    #[test]
    fn a_server_of_openais_kind_gets_the_suffix_and_its_own_name() {
        let choice = json!({"text": "ASKED"});
        let replies = json!({"/v1/models": {"data": [{"id": "m1"}]}, "/v1/completions": {"choices": [choice]}});
        let Some(server) = Server::start(replies) else { return };
        let mut http = Http::connect(&server.address).unwrap();
        let answer = http.answer(&asked("\nend"), 7).unwrap();
        let sent: Value = serde_json::from_str(&answer.text).unwrap();
        assert_eq!(
            (&sent["model"], &sent["prompt"], &sent["suffix"]),
            (&json!("m1"), &json!("b.lua\ny = 2\nx = "), &json!("\nend"))
        );
        let named = Http::connect(&format!("{}#m2", server.address)).unwrap();
        assert_eq!((named.model.as_str(), named.dialect), ("m2", Dialect::OpenAi));
    }

    #[test]
    fn openai_tells_tokens_in_two_ways_and_some_give_the_suffix_back() {
        let chat = json!({"content": [{"token": "1", "logprob": -0.5}]});
        let events = json!([
            {"choices": [{"text": "1", "logprobs": chat}]},
            {"choices": [{"text": "0", "logprobs": {"tokens": ["0"], "token_logprobs": [-0.25]}}]},
            {"choices": [{"text": "\nend"}]},
            {"choices": []},
        ]);
        let Some(server) = Server::start(json!({"/v1/completions": {"events": events}})) else { return };
        let mut http = Http::connect(&format!("{}#m", server.address)).unwrap();
        let question = Question { ending: super::super::question::Ending::Text, ..asked("\nend") };
        let answer = http.answer(&question, 7).unwrap();
        assert_eq!(answer.text, "10");
        assert!((answer.probability.unwrap() - (-0.75f64).exp()).abs() < 1e-12);
    }

    #[test]
    fn a_server_that_takes_no_suffix_or_less_text_is_asked_again() {
        let choice = json!({"text": "ASKED"});
        let replies = json!({"/v1/completions": {"choices": [choice]}, "no suffix": true});
        let Some(server) = Server::start(replies) else { return };
        let mut http = Http::connect(&format!("{}#m", server.address)).unwrap();
        let answer = http.answer(&Question { prefix: "ü = 2 + 3 * z\n".repeat(100), ..asked("\nend") }, 7).unwrap();
        let sent: Value = serde_json::from_str(&answer.text).unwrap();
        let prompt = sent["prompt"].as_str().unwrap();
        assert!(sent.get("suffix").is_none() && prompt.ends_with("3 * z\n") && prompt.len() > 100, "{sent}");
        assert!(!prompt.contains("b.lua"), "fragments go first");
        let empty = http.answer(&question_without_text(), 7).unwrap();
        assert!(empty.text.contains("\\n"), "{}", empty.text);
    }

    #[test]
    fn a_prompt_is_halved_at_characters_until_there_is_nothing_to_halve() {
        let mut question = Question { prefix: format!("a{}", "é".repeat(301)), ..asked("é") };
        let mut n_cuts = 0;
        while shorten(&mut question) {
            n_cuts += 1;
        }
        // A fragment, then halves of 604 bytes down to fewer than 64.
        assert_eq!((n_cuts, question.fragments.len()), (5, 0));
        assert!(question.prefix.len() < 64 && question.prefix.chars().all(|c| c == 'é'), "{}", question.prefix);
    }

    fn question_without_text() -> Question {
        Question { prefix: String::new(), fragments: Vec::new(), ..asked("") }
    }

    #[test]
    fn a_server_that_is_not_there_or_is_another_is_an_error_with_its_address() {
        let Some(server) = Server::start(json!({"/v1/models": {"object": "list"}})) else { return };
        let error = format!("{:#}", Http::connect("http://127.0.0.1:9").unwrap_err());
        assert!(error.contains("http://127.0.0.1:9/props"), "{error}");
        let error = format!("{:#}", Http::connect(&server.address).unwrap_err());
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
