//! From a document's uri to the path that names it, and back.

use std::path::{Component, Path, PathBuf};

/// The path of a `file:` uri; of another one (`untitled:Untitled-1`), what follows the scheme.
pub fn to_path(uri: &str) -> PathBuf {
    let rest = uri.split_once(':').map_or(uri, |(_, rest)| rest);
    let without_host = match rest.strip_prefix("//") {
        Some(after) => after.find('/').map_or(after, |slash| &after[slash..]),
        None => rest,
    };
    // A query or a fragment is no part of the path; those signs in a name come encoded.
    let end = without_host.find(['?', '#']).unwrap_or(without_host.len());
    let path = percent_decoded(&without_host[..end]);
    // `file:///c:/x` names a drive, not a folder of the root.
    let is_drive = matches!(path.as_bytes(), [b'/', drive, b':', ..] if drive.is_ascii_alphabetic());
    PathBuf::from(if is_drive { &path[1..] } else { &path[..] })
}

/// The path of a `file:` uri; nothing where that is of another scheme or machine, or no whole path.
pub fn to_file(uri: &str) -> Option<PathBuf> {
    let rest = uri.strip_prefix("file:")?;
    let is_here = rest.strip_prefix("//").is_none_or(|rest| rest.starts_with('/') || rest.starts_with("localhost/"));
    let path = to_path(uri);
    let is_whole = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    (is_here && is_whole).then_some(path)
}

/// The `file:` uri of an absolute path.
pub fn of_path(path: &Path) -> String {
    let path = path.to_string_lossy().replace('\\', "/");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let encoded = path.bytes().map(|byte| match is_plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    let root = if path.starts_with('/') { "file://" } else { "file:///" };
    encoded.fold(root.to_owned(), |uri, part| uri + &part)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let decoded = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_back() {
        for path in ["/home/a b/größe.rs", "/x#y/?.py", "/a%20b/c.lua"] {
            let uri = of_path(Path::new(path));
            assert!(uri.is_ascii() && !uri.contains(['#', '?', ' ']), "{uri}");
            assert_eq!(to_path(&uri), PathBuf::from(path));
        }
    }

    #[test]
    fn decodes_file_uris() {
        assert_eq!(to_path("file:///home/a%20b/%C3%A9.rs"), PathBuf::from("/home/a b/\u{e9}.rs"));
        assert_eq!(to_path("file://host/share/x.py"), PathBuf::from("/share/x.py"));
        assert_eq!(to_path("file:///c%3A/x.lua"), PathBuf::from("c:/x.lua"));
    }

    #[test]
    fn query_and_fragment_are_no_part_of_the_path() {
        assert_eq!(to_path("file:///p/.env?version=2#L3"), PathBuf::from("/p/.env"));
        assert_eq!(to_path("git:/p/server.key?%7B%22ref%22%7D"), PathBuf::from("/p/server.key"));
        assert_eq!(to_path("file:///p/a%3Fb%23.rs"), PathBuf::from("/p/a?b#.rs"));
    }

    #[cfg(unix)]
    #[test]
    fn files_are_whole_paths_of_this_machine() {
        for uri in ["file:///p/a.py", "file://localhost/p/a.py", "file:/p/a.py"] {
            assert_eq!(to_file(uri), Some("/p/a.py".into()), "{uri}");
        }
        for uri in ["file://", "file:p/a.py", "file://host/p/a.py", "ssh://h/p/a.py", "/p/a.py", "file:///p/../a.py"] {
            assert_eq!(to_file(uri), None, "{uri}");
        }
    }

    #[test]
    fn takes_other_schemes_and_nonsense_as_they_are() {
        assert_eq!(to_path("untitled:Untitled-1"), PathBuf::from("Untitled-1"));
        assert_eq!(to_path("50%"), PathBuf::from("50%"));
        assert_eq!(to_path(""), PathBuf::from(""));
    }
}
