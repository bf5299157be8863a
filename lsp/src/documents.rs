//! The open documents: text by uri. Each opening and each change has a revision number of our own: the editor's versions start anew
//! when a document is opened again. Every change is applied synchronously; a reader takes a clone, which costs a few pointers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use multicoder_grammars::{LanguageId, detect};
use ropey::Rope;
use tower_lsp::gen_lsp_types::{Range, TextDocumentContentChangeEvent};

use crate::position::{Encoding, chars_at};
use crate::uri;

/// Bytes at the start of a document from which its language is recognised.
const HEAD_BYTES: usize = 4096;

/// Changes to all documents after which one of them is read anew to guess from, while it is worked at.
const SETTLED_AFTER: u64 = 64;

/// One document as it was at one version.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub uri: String,
    /// The editor's number.
    pub version: i32,
    /// Ours: no two states of open documents have the same.
    pub revision: u64,
    pub text: Rope,
    /// Where the document is on disk, or its name where it is nowhere.
    pub path: PathBuf,
    pub language: Option<LanguageId>,
}

impl Snapshot {
    /// A document that is in no editor: a file read from disk.
    pub fn from_file(path: PathBuf, text: &str) -> Snapshot {
        let language = detect(None, &path, head_of(text));
        Snapshot { uri: uri::of_path(&path), version: 0, revision: 0, text: Rope::from_str(text), path, language }
    }

    /// The document as if `text` stood in place of `range` (in characters).
    pub fn with_replaced(mut self, range: std::ops::Range<usize>, text: &str) -> Snapshot {
        replace(&mut self.text, range, text);
        self
    }
}

/// All open documents of one editor.
#[derive(Debug, Default)]
pub struct Documents {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_uri: HashMap<String, Open>,
    last_revision: u64,
}

#[derive(Debug)]
struct Open {
    now: Snapshot,
    /// As it was some changes ago.
    settled: Snapshot,
}

impl Table {
    fn next_revision(&mut self) -> u64 {
        self.last_revision += 1;
        self.last_revision
    }
}

impl Documents {
    /// Takes a document in; one that is already open is replaced.
    pub fn open(&self, uri: &str, editor_language: &str, version: i32, text: &str) {
        let path = uri::to_path(uri);
        let language = detect(Some(editor_language), &path, head_of(text));
        let text = Rope::from_str(text);
        let mut table = self.lock();
        let revision = table.next_revision();
        let document = Snapshot { uri: uri.to_string(), version, revision, text, path, language };
        table.by_uri.insert(uri.to_string(), Open { settled: document.clone(), now: document });
    }

    /// Applies the changes of one notification in their order, each on the result of the former.
    /// Answers whether the document is open.
    pub fn change(
        &self,
        uri: &str,
        version: i32,
        changes: Vec<TextDocumentContentChangeEvent>,
        encoding: Encoding,
    ) -> bool {
        let mut table = self.lock();
        let revision = table.next_revision();
        let Some(open) = table.by_uri.get_mut(uri) else { return false };
        let document = &mut open.now;
        for change in changes {
            let (range, text) = parts(change);
            match range {
                Some(range) => {
                    let range = chars_at(&document.text, range, encoding);
                    replace(&mut document.text, range, &text);
                }
                None => document.text = Rope::from_str(&text),
            }
        }
        document.version = version;
        document.revision = revision;
        if revision - open.settled.revision >= SETTLED_AFTER {
            open.settled = document.clone();
        }
        true
    }

    /// Forgets a document.
    pub fn close(&self, uri: &str) {
        self.lock().by_uri.remove(uri);
    }

    /// The document as it is now, or `None` where it is not open.
    pub fn snapshot(&self, uri: &str) -> Option<Snapshot> {
        self.lock().by_uri.get(uri).map(|open| open.now.clone())
    }

    /// What may be guessed from while `uri` is worked at: itself as it was some changes ago, and at most `n` other open documents, the
    /// last changed first.
    pub fn to_guess_from(&self, uri: &str, n: usize) -> Vec<Snapshot> {
        let table = self.lock();
        let mut others: Vec<&Snapshot> =
            table.by_uri.values().map(|open| &open.now).filter(|document| document.uri != uri).collect();
        others.sort_unstable_by_key(|document| std::cmp::Reverse(document.revision));
        table.by_uri.get(uri).map(|open| &open.settled).into_iter().chain(others.into_iter().take(n)).cloned().collect()
    }

    /// The revision of an open document.
    pub fn revision(&self, uri: &str) -> Option<u64> {
        self.lock().by_uri.get(uri).map(|open| open.now.revision)
    }

    /// How many documents are open.
    pub fn len(&self) -> usize {
        self.lock().by_uri.len()
    }

    /// Whether no document is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic while a change was applied leaves a text that the next full change repairs; going on is right.
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn parts(change: TextDocumentContentChangeEvent) -> (Option<Range>, String) {
    match change {
        TextDocumentContentChangeEvent::TextDocumentContentChangePartial(part) => (Some(part.range), part.text),
        TextDocumentContentChangeEvent::TextDocumentContentChangeWholeDocument(whole) => (None, whole.text),
    }
}

fn replace(text: &mut Rope, range: std::ops::Range<usize>, new_text: &str) {
    let start = range.start;
    text.remove(range);
    text.insert(start, new_text);
}

fn head_of(text: &str) -> &str {
    let end = (0..=HEAD_BYTES.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tower_lsp::gen_lsp_types::{
        Position, TextDocumentContentChangePartial, TextDocumentContentChangeWholeDocument,
    };

    fn partial(range: Range, text: &str) -> TextDocumentContentChangeEvent {
        #[allow(deprecated)]
        let change = TextDocumentContentChangePartial { range, range_length: None, text: text.to_string() };
        TextDocumentContentChangeEvent::TextDocumentContentChangePartial(change)
    }

    fn range(start: (u32, u32), end: (u32, u32)) -> Range {
        Range { start: Position { line: start.0, character: start.1 }, end: Position { line: end.0, character: end.1 } }
    }

    #[test]
    fn changes_apply_in_order_each_on_the_former() {
        let documents = Documents::default();
        documents.open("file:///a.rs", "rust", 1, "one\r\ntwo\r\n");
        let changes = vec![partial(range((0, 0), (0, 3)), "1\n2"), partial(range((1, 1), (1, 1)), "!")];
        assert!(documents.change("file:///a.rs", 7, changes, Encoding::Utf16));
        let snapshot = documents.snapshot("file:///a.rs").unwrap();
        assert_eq!((snapshot.text.to_string().as_str(), snapshot.version), ("1\n2!\r\ntwo\r\n", 7));
        assert_eq!(snapshot.language, LanguageId::by_name("rust"));
    }

    #[test]
    fn a_snapshot_stays_as_it_was() {
        let documents = Documents::default();
        documents.open("u", "lua", 1, "a");
        let before = documents.snapshot("u").unwrap();
        let whole = TextDocumentContentChangeWholeDocument { text: "b".to_string() };
        let changes = vec![TextDocumentContentChangeEvent::TextDocumentContentChangeWholeDocument(whole)];
        assert!(documents.change("u", 2, changes, Encoding::Utf8));
        assert_eq!((before.text.to_string().as_str(), before.version), ("a", 1));
        assert_eq!(documents.snapshot("u").unwrap().text.to_string(), "b");
    }

    #[test]
    fn a_document_opened_again_is_another_revision() {
        let documents = Documents::default();
        documents.open("u", "lua", 1, "a");
        let first = documents.revision("u");
        documents.close("u");
        assert_eq!(documents.revision("u"), None);
        documents.open("u", "lua", 1, "b");
        let second = documents.revision("u");
        assert!(documents.change("u", 1, Vec::new(), Encoding::Utf8));
        assert!(first < second && second < documents.revision("u"), "the editor's version was 1 each time");
    }

    #[test]
    fn others_are_the_last_changed_first_and_come_after_the_document_itself() {
        let documents = Documents::default();
        ["a", "b", "c", "d"].iter().for_each(|uri| documents.open(uri, "lua", 1, uri));
        assert!(documents.change("b", 2, Vec::new(), Encoding::Utf8));
        let uris = |n| documents.to_guess_from("d", n).into_iter().map(|document| document.uri).collect::<Vec<_>>();
        assert_eq!(uris(9), ["d", "b", "c", "a"]);
        assert_eq!(uris(2), ["d", "b", "c"]);
        let itself = |uri| documents.to_guess_from(uri, 0).pop().map(|document| document.revision);
        assert_eq!(itself("b"), Some(2), "one change is not enough");
        (0..SETTLED_AFTER).for_each(|_| assert!(documents.change("b", 2, Vec::new(), Encoding::Utf8)));
        assert!(itself("b") > Some(SETTLED_AFTER) && itself("a") == Some(1));
        assert_eq!(itself("x"), None);
    }

    #[test]
    fn unknown_documents_are_refused_and_closed_ones_forgotten() {
        let documents = Documents::default();
        assert!(!documents.change("u", 1, Vec::new(), Encoding::Utf8));
        documents.open("u", "", 1, "x");
        documents.close("u");
        assert!(documents.snapshot("u").is_none() && documents.is_empty());
    }

    proptest! {
        /// Random edits in the three encodings: the document equals one edited as a plain list of characters.
        #[test]
        fn random_edits_equal_a_reference(
            start in "[a-z\u{e9}\u{1f600}\r\n]{0,30}",
            edits in proptest::collection::vec((0usize..40, 0usize..8, "[xy\u{301}\u{1f680}\r\n]{0,6}"), 0..12),
            encoding_idx in 0usize..3,
        ) {
            let encoding = [Encoding::Utf8, Encoding::Utf16, Encoding::Utf32][encoding_idx];
            let documents = Documents::default();
            documents.open("u", "", 0, &start);
            let mut reference: Vec<char> = start.chars().collect();
            for (i, (at, len, text)) in edits.into_iter().enumerate() {
                let rope = documents.snapshot("u").unwrap().text;
                let place = |at: usize| crate::position::position_of(&rope, at, encoding);
                let range = Range { start: place(at), end: place(at + len) };
                // Positions cannot name the place between \r and \n: take what the position says.
                let chars = chars_at(&rope, range, encoding);
                reference.splice(chars, text.chars());
                documents.change("u", i as i32, vec![partial(range, &text)], encoding);
            }
            prop_assert_eq!(documents.snapshot("u").unwrap().text.to_string(), reference.into_iter().collect::<String>());
        }
    }
}
