//! Personal data and secrets out of the text: e-mail addresses become `<EMAIL>`, obvious keys become `<KEY>`.

/// `text` with e-mail addresses, private keys and access tokens of well-known shape replaced; `None` when nothing was.
pub fn mask(text: &str) -> Option<String> {
    let spans = merge(found_spans(text));
    if spans.is_empty() {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (begin, end, replacement) in spans {
        out.push_str(&text[done..begin]);
        out.push_str(replacement);
        done = end;
    }
    out.push_str(&text[done..]);
    Some(out)
}

type Span = (usize, usize, &'static str);

fn found_spans(text: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    spans.extend(text.match_indices('@').filter_map(|(at, _)| email_around(text, at)));
    for (begin, length_min, alphabet) in TOKENS {
        spans.extend(text.match_indices(begin).filter_map(|(at, _)| token_at(text, at, begin, *length_min, alphabet)));
    }
    spans.extend(text.match_indices("-----BEGIN ").filter_map(|(at, _)| private_key_at(text, at)));
    spans
}

/// Sorted, without overlaps: the earlier and longer span wins.
fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|&(begin, end, _)| (begin, usize::MAX - end));
    let mut kept: Vec<Span> = Vec::new();
    for span in spans {
        if kept.last().is_none_or(|last| span.0 >= last.1) {
            kept.push(span);
        }
    }
    kept
}

fn email_around(text: &str, at: usize) -> Option<Span> {
    let bytes = text.as_bytes();
    let local = |b: u8| b.is_ascii_alphanumeric() || b"._%+-".contains(&b);
    let domain = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
    let mut begin = at;
    while begin > 0 && local(bytes[begin - 1]) {
        begin -= 1;
    }
    let mut end = at + 1;
    while end < bytes.len() && domain(bytes[end]) {
        end += 1;
    }
    while end > at && b".-".contains(&bytes[end - 1]) {
        end -= 1;
    }
    let host = text.get(at + 1..end)?;
    let (name, top) = host.rsplit_once('.')?;
    let is_top = (2..=6).contains(&top.len()) && top.bytes().all(|b| b.is_ascii_lowercase());
    (begin < at && is_top && !name.is_empty()).then_some((begin, end, "<EMAIL>"))
}

/// Beginning, least length of the rest, and further characters (beside letters and digits) of well-known tokens.
const TOKENS: &[(&str, usize, &[u8])] = &[
    ("AKIA", 16, b""),
    ("ghp_", 36, b""),
    ("gho_", 36, b""),
    ("github_pat_", 40, b"_"),
    ("glpat-", 20, b"_-"),
    ("sk_live_", 20, b""),
    ("xoxb-", 20, b"-"),
    ("xoxp-", 20, b"-"),
    ("AIza", 35, b"_-"),
];

fn token_at(text: &str, at: usize, begin: &str, length_min: usize, alphabet: &[u8]) -> Option<Span> {
    let bytes = text.as_bytes();
    if at > 0 && bytes[at - 1].is_ascii_alphanumeric() {
        return None;
    }
    let rest = &bytes[at + begin.len()..];
    let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || alphabet.contains(b)).count();
    (length >= length_min).then_some((at, at + begin.len() + length, "<KEY>"))
}

/// The body between the two marks of a PEM private key.
fn private_key_at(text: &str, at: usize) -> Option<Span> {
    let first_line = text[at..].lines().next()?;
    if !first_line.contains("PRIVATE KEY-----") {
        return None;
    }
    let begin = at + first_line.find("PRIVATE KEY-----")? + "PRIVATE KEY-----".len();
    let end = begin + text[begin..].find("-----END ")?;
    (end > begin).then_some((begin, end, "<KEY>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_and_code_stays() {
        assert_eq!(mask("# by Ann <ann.lee+x@mail.example.org>.").unwrap(), "# by Ann <<EMAIL>>.");
        for code in ["@Override", "a @ b", "foo@1.2.3", "xs@(x:_)", "user@host", "x = a@b.T", "@media.x"] {
            assert_eq!(mask(code), None, "{code}");
        }
    }

    #[test]
    fn keys_go() {
        let key = format!("k = \"AKIA{}\"", "ABCDEFGH12345678");
        assert_eq!(mask(&key).unwrap(), "k = \"<KEY>\"");
        let pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----";
        assert_eq!(mask(pem).unwrap(), "-----BEGIN RSA PRIVATE KEY-----<KEY>-----END RSA PRIVATE KEY-----");
        assert_eq!(mask("-----BEGIN CERTIFICATE-----\nMIIE"), None);
        assert_eq!(mask("ghp_short"), None);
    }
}
