//! Personal data and secrets out of the text: e-mail addresses become `<EMAIL>`, keys of known shape `<KEY>`, and public IP addresses
//! others of the ranges that are reserved for documentation (RFC 5737, RFC 3849), so that the text stays what it was.
//!
//! The shapes of keys are those of the usual secret scanners; names of people are not looked for.

// Only the types of addresses: nothing here opens a connection.
use core::net::{Ipv4Addr, Ipv6Addr};

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
    spans.extend(text.match_indices("eyJ").filter_map(|(at, _)| web_token_at(text, at)));
    spans.extend(words(text, |b| b.is_ascii_digit() || b == b'.').filter_map(|span| ipv4_at(text, span)));
    spans.extend(words(text, |b| b.is_ascii_hexdigit() || b == b':').filter_map(|span| ipv6_at(text, span)));
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
    ("ASIA", 16, b""),
    ("ghp_", 36, b""),
    ("gho_", 36, b""),
    ("ghu_", 36, b""),
    ("ghs_", 36, b""),
    ("ghr_", 36, b""),
    ("github_pat_", 40, b"_"),
    ("glpat-", 20, b"_-"),
    ("sk_live_", 20, b""),
    ("rk_live_", 20, b""),
    ("sk-ant-", 40, b"_-"),
    ("sk-proj-", 40, b"_-"),
    ("hf_", 34, b""),
    ("npm_", 36, b""),
    ("pypi-AgEIcHlwaS5vcmc", 50, b"_-"),
    ("SG.", 60, b"_-."),
    ("xoxa-", 20, b"-"),
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

/// A JSON web token: three parts of base64, the first two of them objects.
fn web_token_at(text: &str, at: usize) -> Option<Span> {
    let bytes = text.as_bytes();
    if at > 0 && bytes[at - 1].is_ascii_alphanumeric() {
        return None;
    }
    let of_token = |b: &&u8| b.is_ascii_alphanumeric() || b"_-.".contains(b);
    let end = at + bytes[at..].iter().take_while(of_token).count();
    let parts: Vec<&str> = text[at..end].split('.').collect();
    let is_token = parts.len() == 3 && parts[1].starts_with("eyJ") && parts.iter().all(|part| part.len() >= 16);
    is_token.then_some((at, end, "<KEY>"))
}

/// The longest stretches of such bytes that no letter, digit or underscore touches.
fn words(text: &str, of_word: fn(u8) -> bool) -> impl Iterator<Item = (usize, usize)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            at += bytes[at..].iter().position(|&b| of_word(b))?;
            let begin = at;
            at += bytes[at..].iter().take_while(|&&b| of_word(b)).count();
            let touches = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80);
            let before = begin.checked_sub(1).and_then(|idx| bytes.get(idx));
            if !touches(before) && !touches(bytes.get(at)) {
                return Some((begin, at));
            }
        }
    })
}

/// An address that someone may have. Versions look like addresses: those have few digits.
fn ipv4_at(text: &str, (begin, end): (usize, usize)) -> Option<Span> {
    let end = begin + text[begin..end].trim_end_matches('.').len();
    let word = &text[begin..end];
    let address: Ipv4Addr = word.parse().ok()?;
    let reserved = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || address.octets()[0] == 0
        || address.octets()[0] >= 240
        || address.octets().contains(&255);
    let n_digits = word.bytes().filter(u8::is_ascii_digit).count();
    (!reserved && n_digits >= 8).then_some((begin, end, "192.0.2.1"))
}

/// A global unicast address, `2000::/3`, of five groups or more: `a::b` is a path in many languages.
fn ipv6_at(text: &str, (begin, end): (usize, usize)) -> Option<Span> {
    let word = text[begin..end].strip_suffix(':').filter(|rest| !rest.ends_with(':')).unwrap_or(&text[begin..end]);
    let address: Ipv6Addr = word.parse().ok()?;
    let first = address.segments()[0];
    let is_documentation = first == 0x2001 && address.segments()[1] == 0xdb8;
    let n_groups = word.split(':').filter(|group| !group.is_empty()).count();
    let is_global = (0x2000..0x4000).contains(&first) && !is_documentation;
    (is_global && n_groups >= 5).then_some((begin, begin + word.len(), "2001:db8::1"))
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
    fn public_addresses_of_machines_go_and_versions_stay() {
        assert_eq!(mask("host = \"52.214.107.39\"").unwrap(), "host = \"192.0.2.1\"");
        assert_eq!(mask("ping 52.214.107.39.").unwrap(), "ping 192.0.2.1.");
        assert_eq!(mask("[2a00:1450:4001:82f::200e:1]").unwrap(), "[2001:db8::1]");
        for kept in [
            "127.0.0.1",
            "192.168.100.200",
            "10.200.100.50",
            "255.255.255.0",
            "1.2.3.4",
            "v10.15.7.1",
            "2.16.840.1.113730",
            "std::fs::File",
            "a::b::c",
            "fe80::1",
            "2001:db8:1:2:3::4",
            "12:30:45",
            "203.0.113.250",
            "0x52.214.107.39",
        ] {
            assert_eq!(mask(kept), None, "{kept}");
        }
    }

    #[test]
    fn web_tokens_go() {
        let token =
            format!("eyJ{}.eyJ{}.{}", "hbGciOiJIUzI1NiJ9x", "zdWIiOiIxMjM0NTY3ODkwIn0", "dozjgNryP4J3jVmNHl0w5Nx0");
        assert_eq!(mask(&format!("auth({token})")).unwrap(), "auth(<KEY>)");
        assert_eq!(mask("eyJust.a.word"), None);
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
