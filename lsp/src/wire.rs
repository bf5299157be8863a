//! The incoming byte stream, made safe for the library: a message that cannot be read is answered, and the next one is read.
//!
//! The library's reader ends at the first message that is not JSON-RPC. Here each frame is checked before it is passed on; a bad one is
//! replaced by a request that [`crate::eager::Eager`] answers with the error. Lone surrogates in JSON escapes, which some editors send
//! for half a character, become U+FFFD: also one UTF-16 unit, so that positions still hold. The end of the stream is announced.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;
use tower_lsp::jsonrpc::{Error, ErrorCode, Id, Request, Response};

/// The method of the request that stands for a message that could not be read.
pub(crate) const MALFORMED: &str = "multicoder/malformedMessage";

const CHUNK_BYTES: usize = 64 * 1024;
/// A buffer that once held a whole document is given back when it is larger than this.
const KEPT_BYTES: usize = 1024 * 1024;
/// A header longer than this is no header.
const MAX_HEADER_BYTES: usize = 8 * 1024;
/// A message longer than this is no message of an editor.
const MAX_BODY_BYTES: usize = 512 * 1024 * 1024;
const LENGTH_FIELD: &[u8] = b"content-length:";

/// What the library will read a frame as; the same shape, so that the same frames pass.
#[derive(Deserialize)]
#[serde(untagged)]
#[allow(dead_code, reason = "only whether it parses is asked")]
enum Message {
    Response(Response),
    Request(Request),
}

/// A reader that passes on only well-formed messages.
#[derive(Debug)]
pub struct Frames<R> {
    inner: R,
    /// Read, not yet checked.
    raw: Vec<u8>,
    /// Checked, not yet passed on: from `passed` to the end.
    checked: Vec<u8>,
    passed: usize,
    at_end: bool,
    announce_end: Option<oneshot::Sender<()>>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// The reader, and what resolves when `inner` is at its end.
    pub fn new(inner: R) -> (Frames<R>, oneshot::Receiver<()>) {
        let (announce_end, end) = oneshot::channel();
        let announce_end = Some(announce_end);
        let frames = Frames { inner, raw: Vec::new(), checked: Vec::new(), passed: 0, at_end: false, announce_end };
        (frames, end)
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut chunk = [0u8; CHUNK_BYTES];
        let mut buffer = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            self.at_end = true;
            if let Some(announce) = self.announce_end.take() {
                // Nobody listens in tests that only read.
                let _ = announce.send(());
            }
        }
        self.raw.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Frames<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        loop {
            let waiting = &this.checked[this.passed..];
            if !waiting.is_empty() {
                let n = waiting.len().min(out.remaining());
                out.put_slice(&waiting[..n]);
                this.passed += n;
                return Poll::Ready(Ok(()));
            }
            this.passed = 0;
            this.checked = Vec::new();
            if this.raw.capacity() > KEPT_BYTES && this.raw.len() < CHUNK_BYTES {
                this.raw.shrink_to(CHUNK_BYTES);
            }
            if let Some(frame) = take_frame(&mut this.raw) {
                this.checked = frame;
            } else if this.at_end {
                return Poll::Ready(Ok(()));
            } else {
                ready!(this.fill(cx))?;
            }
        }
    }
}

/// Takes the next frame off `raw`, well-formed or replaced; `None` while it is not complete.
fn take_frame(raw: &mut Vec<u8>) -> Option<Vec<u8>> {
    let Some(header_len) = find(raw, b"\r\n\r\n").map(|at| at + 4) else {
        return (raw.len() > MAX_HEADER_BYTES).then(|| {
            let keep_from = raw.len() - LENGTH_FIELD.len();
            raw.drain(..keep_from);
            malformed(&Fault::parse("no Content-Length header in sight"), None)
        });
    };
    let header = raw[..header_len].to_ascii_lowercase();
    let body_len = match body_len(&header) {
        Ok(len) => len,
        Err(fault) => {
            raw.drain(..header_len);
            return Some(malformed(&fault, None));
        }
    };
    if raw.len() < header_len + body_len {
        return None;
    }
    let mut body: Vec<u8> = raw.drain(..header_len + body_len).skip(header_len).collect();
    repair_surrogates(&mut body);
    let mut frame = match check(&body) {
        Ok(()) => framed(&body),
        Err((fault, id)) => malformed(&fault, id),
    };
    if !header_is_clean(&header) {
        frame.splice(0..0, malformed(&Fault::parse("bytes between two messages were skipped"), None));
    }
    Some(frame)
}

/// Why a message was refused.
struct Fault {
    code: i64,
    message: String,
}

impl Fault {
    fn parse(message: impl std::fmt::Display) -> Fault {
        Fault { code: ErrorCode::ParseError.code(), message: format!("message not read: {message}") }
    }

    fn invalid(message: impl std::fmt::Display) -> Fault {
        Fault { code: ErrorCode::InvalidRequest.code(), message: format!("not a JSON-RPC 2.0 message: {message}") }
    }
}

/// The body's length in bytes according to a lower-cased header: that of the last length field, since garbage may precede it.
fn body_len(header: &[u8]) -> Result<usize, Fault> {
    let mut starts = (0..header.len()).filter(|&i| header[i..].starts_with(LENGTH_FIELD));
    let Some(start) = starts.next_back() else { return Err(Fault::parse("a header without Content-Length")) };
    let field = &header[start + LENGTH_FIELD.len()..];
    let line = &field[..field.iter().position(|&b| b == b'\r').unwrap_or(field.len())];
    let text = String::from_utf8_lossy(line);
    let len = text.trim().parse::<usize>().ok().filter(|&len| len <= MAX_BODY_BYTES);
    len.ok_or_else(|| Fault::parse(format!("Content-Length is {:?}, expected 0 to {MAX_BODY_BYTES}", text.trim())))
}

/// Whether each line of a lower-cased header is one of the protocol's two fields.
fn header_is_clean(header: &[u8]) -> bool {
    let mut lines = header.split(|&b| b == b'\n').map(|line| line.trim_ascii());
    lines.all(|line| line.is_empty() || line.starts_with(LENGTH_FIELD) || line.starts_with(b"content-type:"))
}

fn check(body: &[u8]) -> Result<(), (Fault, Option<Id>)> {
    let error = match serde_json::from_slice::<Message>(body) {
        // The library's request does without a method.
        Ok(Message::Request(request)) if request.method().is_empty() => {
            return Err((Fault::invalid("none of method, result and error is there"), request.id().cloned()));
        }
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        let reason = match std::str::from_utf8(body) {
            Ok(text) => serde_json::from_str::<Value>(text).err().unwrap_or(error).to_string(),
            Err(error) => error.to_string(),
        };
        return Err((Fault::parse(reason), None));
    };
    let id = value.get("id").and_then(|id| Id::deserialize(id).ok());
    let reason = match &value {
        Value::Array(_) => "a batch; the protocol has one object a message".to_string(),
        Value::Object(fields) if !fields.contains_key("jsonrpc") => {
            "field jsonrpc is absent, expected \"2.0\"".to_string()
        }
        Value::Object(_) => "fields method, id, params, result or error have the wrong type".to_string(),
        _ => "expected an object".to_string(),
    };
    Err((Fault::invalid(reason), id))
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    frame.extend_from_slice(body);
    frame
}

/// The frame that stands for a message that could not be read.
fn malformed(fault: &Fault, id: Option<Id>) -> Vec<u8> {
    tracing::warn!(fault.message, "malformed message");
    let params = json!({"code": fault.code, "message": fault.message, "id": id});
    framed(json!({"jsonrpc": "2.0", "method": MALFORMED, "params": params}).to_string().as_bytes())
}

/// The answer to a request made by [`malformed`].
pub(crate) fn malformed_response(request: Request) -> Option<Response> {
    let (_, _, params) = request.into_parts();
    let params = params.unwrap_or_default();
    let code = params.get("code").and_then(Value::as_i64).unwrap_or_else(|| ErrorCode::ParseError.code());
    let message = params.get("message").and_then(Value::as_str).unwrap_or("message not read").to_string();
    let id = params.get("id").and_then(|id| Id::deserialize(id).ok()).unwrap_or_default();
    let mut error = Error::new(ErrorCode::from(code));
    error.message = message.into();
    Some(Response::from_error(id, error))
}

/// Writes `\ufffd` over each escaped surrogate that has no partner.
fn repair_surrogates(body: &mut [u8]) {
    let mut i = 0;
    while i + 1 < body.len() {
        if body[i] != b'\\' {
            i += 1;
            continue;
        }
        match escaped_unit(&body[i..]) {
            Some(0xd800..=0xdbff) if matches!(escaped_unit(&body[i + 6..]), Some(0xdc00..=0xdfff)) => i += 12,
            Some(0xd800..=0xdfff) => {
                body[i..i + 6].copy_from_slice(b"\\ufffd");
                i += 6;
            }
            _ => i += 2,
        }
    }
}

/// The UTF-16 unit of a `\uXXXX` at the start of `text`.
fn escaped_unit(text: &[u8]) -> Option<u16> {
    let [b'\\', b'u', digits @ ..] = text else { return None };
    let digits = std::str::from_utf8(digits.get(..4)?).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    async fn pass(bytes: &[u8]) -> (String, bool) {
        let (mut frames, mut end) = Frames::new(bytes);
        let mut out = String::new();
        frames.read_to_string(&mut out).await.unwrap();
        (out, end.try_recv().is_ok())
    }

    fn text_of(body: &str) -> String {
        String::from_utf8(framed(body.as_bytes())).unwrap()
    }

    const GOOD: &str = r#"{"jsonrpc":"2.0","method":"x","id":1}"#;

    #[tokio::test]
    async fn good_messages_pass_unchanged_and_the_end_is_announced() {
        let both = text_of(GOOD) + &text_of(r#"{"jsonrpc":"2.0","result":null,"id":"a"}"#);
        assert_eq!(pass(both.as_bytes()).await, (both, true));
    }

    #[tokio::test]
    async fn bad_messages_are_replaced_and_the_next_one_is_read() {
        let bad = [
            "{\"jsonrpc\":",
            "[]",
            "1",
            r#"{"jsonrpc":"2.0","method":4,"id":9}"#,
            r#"{"method":"x"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","id":9}"#,
            "",
            "{\"a\":\"\u{1}\"}",
        ];
        for body in bad {
            let (out, _) = pass((text_of(body) + &text_of(GOOD)).as_bytes()).await;
            assert!(out.contains(MALFORMED) && out.ends_with(GOOD), "{body}: {out}");
        }
        let (out, _) = pass((text_of(r#"{"jsonrpc":"2.0","method":4,"id":9}"#)).as_bytes()).await;
        assert!(out.contains(r#""id":9"#), "{out}");
    }

    #[tokio::test]
    async fn bad_headers_and_bytes_are_survived() {
        let mut invalid_utf8 = framed(b"{\"\xff\":1}");
        invalid_utf8.extend(framed(GOOD.as_bytes()));
        for bytes in [
            b"hello\nContent-Length: 37\r\n\r\n".iter().chain(GOOD.as_bytes()).copied().collect::<Vec<u8>>(),
            b"Content-Length: -3\r\n\r\n".iter().copied().chain(framed(GOOD.as_bytes())).collect(),
            b"X: y\r\n\r\n".iter().copied().chain(framed(GOOD.as_bytes())).collect(),
            vec![b'z'; 20_000].into_iter().chain(framed(GOOD.as_bytes())).collect(),
            invalid_utf8,
        ] {
            let (out, _) = pass(&bytes).await;
            assert!(out.contains(MALFORMED) && out.ends_with(GOOD), "{out}");
        }
    }

    #[tokio::test]
    async fn an_unfinished_message_is_no_message() {
        let whole = text_of(GOOD);
        assert_eq!(pass(&whole.as_bytes()[..whole.len() - 1]).await, (String::new(), true));
    }

    #[test]
    fn lone_surrogates_become_replacement_characters() {
        let repaired = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            repair_surrogates(&mut bytes);
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(repaired(r#""\ud83d""#), r#""\ufffd""#);
        assert_eq!(repaired(r#""\ude00x\uD83D\uDE00""#), r#""\ufffdx\uD83D\uDE00""#);
        assert_eq!(repaired(r#""\\ud83d \u00e9 \""#), r#""\\ud83d \u00e9 \""#);
        assert_eq!(repaired(r"\ud83"), r"\ud83");
    }
}
