//! The tokens of one language of one split: a file that is mapped into memory, and read where it is needed.
//!
//! Little endian: a header, the tokens (two or four bytes each), then the tables, which begin at a multiple of eight: for each
//! document the end of its tokens and the end of its path (8 bytes each), the number of its package (4 bytes), and all paths as one
//! string. `tokenize` writes it beside its place and renames it; nobody changes it afterwards.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use xxhash_rust::xxh3::xxh3_64;

use super::vocabulary::Vocabulary;

/// First bytes of the file; the digits are the version of the layout.
const MAGIC: [u8; 8] = *b"mctoks01";
/// Bytes of [`Header`] on disk.
pub(super) const HEADER_BYTES: usize = 8 * 8;
/// Bytes that the tables have for each document, besides its path.
const DOCUMENT_BYTES: usize = 8 + 8 + 4;

/// The numbers at the start of a file of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Hash of the shards and the tokenizer that the tokens were made of.
    pub(super) key: u64,
    /// Bytes of a token, 2 or 4.
    pub(super) token_bytes: u64,
    pub(super) n_tokens: u64,
    pub(super) n_documents: u64,
    /// Bytes of all paths.
    pub(super) path_bytes: u64,
    /// Bytes of the text that the tokens were made of.
    pub(super) text_bytes: u64,
    /// Hash of the tokens and the tables.
    pub(super) content: u64,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let Header { key, token_bytes, n_tokens, n_documents, path_bytes, text_bytes, content } = self;
        let numbers = [key, token_bytes, n_tokens, n_documents, path_bytes, text_bytes, content];
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..]
            .chunks_exact_mut(8)
            .zip(numbers)
            .for_each(|(slot, number)| slot.copy_from_slice(&number.to_le_bytes()));
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Header> {
        let (numbers, _) = bytes.get(..HEADER_BYTES)?.strip_prefix(&MAGIC)?.as_chunks::<8>();
        let [key, token_bytes, n_tokens, n_documents, path_bytes, text_bytes, content] =
            <[[u8; 8]; 7]>::try_from(numbers).ok()?.map(u64::from_le_bytes);
        Some(Header { key, token_bytes, n_tokens, n_documents, path_bytes, text_bytes, content })
    }

    /// Where the tables begin and where the file ends, in bytes; `None` where the numbers are no file's.
    fn layout(&self) -> Option<(u64, u64)> {
        let tokens_end = self.n_tokens.checked_mul(self.token_bytes)?.checked_add(HEADER_BYTES as u64)?;
        let tables_at = tokens_end.checked_next_multiple_of(8)?;
        let end = self.n_documents.checked_mul(DOCUMENT_BYTES as u64)?.checked_add(tables_at)?;
        Some((tables_at, end.checked_add(self.path_bytes)?))
    }
}

/// The documents of one language as tokens.
#[derive(Debug)]
pub struct Tokens {
    /// `None` of a language without documents.
    map: Option<Mmap>,
    header: Header,
    document_ends: Vec<u64>,
    path_ends: Vec<u64>,
    /// Bytes of the file at which the paths begin.
    paths_at: usize,
    packages: Packages,
}

/// The documents of each package.
#[derive(Debug, Default)]
struct Packages {
    of_document: Vec<u32>,
    /// All documents, those of a package together, in the order of the shards.
    documents: Vec<u32>,
    /// Where each package begins in `documents`, and the number of these.
    starts: Vec<u32>,
}

impl Tokens {
    /// Those of a language that has no documents.
    pub fn empty() -> Tokens {
        let header =
            Header { key: 0, token_bytes: 2, n_tokens: 0, n_documents: 0, path_bytes: 0, text_bytes: 0, content: 0 };
        let (document_ends, path_ends, packages) = (Vec::new(), Vec::new(), Packages::default());
        Tokens { map: None, header, document_ends, path_ends, paths_at: 0, packages }
    }

    /// Maps the file at `path`, which must be of the text and the tokenizer that `key` stands for.
    ///
    /// # Errors
    /// No such file, one of something else, or a damaged one; the message says which.
    pub fn open(path: &Path, key: u64) -> Result<Tokens> {
        let file = File::open(path).context("cannot be opened")?;
        // SAFETY: files of tokens are never written to under their name (`tokenize` renames whole ones over them), so that what is
        // mapped does not change. Whoever truncates one by other means ends the process by a signal, and harms nothing else.
        let map = unsafe { Mmap::map(&file) }.context("cannot be mapped into memory")?;
        let header = Header::read(&map).context("not a file of tokens of this version")?;
        let (got, wanted) = (header.key, key);
        ensure!(got == wanted, "made of other text or by another tokenizer (key {got:016x}, expected {wanted:016x})");
        let layout = header.layout().filter(|_| [2, 4].contains(&header.token_bytes)).context("damaged header")?;
        let (tables_at, end) = (layout.0 as usize, layout.1);
        ensure!(map.len() as u64 == end, "damaged: {} bytes, expected {end}", map.len());
        Tokens::with_tables(map, header, tables_at)
    }

    fn with_tables(map: Mmap, header: Header, tables_at: usize) -> Result<Tokens> {
        let n_documents = header.n_documents as usize;
        let (ends, tables) = map[tables_at..].split_at(16 * n_documents);
        let (packages, paths) = tables.split_at(4 * n_documents);
        let numbers: Vec<u64> = ends.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let (document_ends, path_ends) = numbers.split_at(n_documents);
        let packages = packages.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        for (ends, last, what) in
            [(document_ends, header.n_tokens, "documents"), (path_ends, paths.len() as u64, "paths")]
        {
            let is_whole = ends.is_sorted() && ends.last().is_none_or(|end| *end == last);
            ensure!(is_whole, "damaged: the table of {what} does not add up");
        }
        ensure!(std::str::from_utf8(paths).is_ok(), "damaged: the paths are no UTF-8");
        let packages = Packages::new(packages).context("damaged: the table of packages does not add up")?;
        let (document_ends, path_ends) = (document_ends.to_vec(), path_ends.to_vec());
        let paths_at = tables_at + DOCUMENT_BYTES * n_documents;
        Ok(Tokens { map: Some(map), header, document_ends, path_ends, paths_at, packages })
    }

    /// Number of documents.
    pub fn n_documents(&self) -> usize {
        self.document_ends.len()
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.header.n_tokens as usize
    }

    /// Bytes of the text that the tokens were made of.
    pub fn text_bytes(&self) -> usize {
        self.header.text_bytes as usize
    }

    /// Hash of all tokens and documents, taken when they were written.
    pub fn content(&self) -> u64 {
        self.header.content
    }

    /// Which tokens a document has.
    pub fn document(&self, idx: usize) -> Range<usize> {
        span(&self.document_ends, idx)
    }

    /// The path of a document inside its package.
    pub fn path(&self, idx: usize) -> &str {
        let Range { start, end } = span(&self.path_ends, idx);
        let bytes = self.map.as_ref().and_then(|map| map.get(self.paths_at + start..self.paths_at + end));
        bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// The documents of the package that document `idx` is of, in the order of the shards, itself among them.
    pub fn package(&self, idx: usize) -> &[u32] {
        let package = self.packages.of_document[idx] as usize;
        &self.packages.documents[self.packages.starts[package] as usize..self.packages.starts[package + 1] as usize]
    }

    /// The ids of tokens; none where there are no such.
    pub fn ids(&self, range: Range<usize>) -> Vec<u32> {
        let n_bytes = self.header.token_bytes as usize;
        let place = HEADER_BYTES + range.start * n_bytes..HEADER_BYTES + range.end * n_bytes;
        let bytes = self.map.as_ref().and_then(|map| map.get(place)).unwrap_or_default();
        match n_bytes {
            2 => bytes.as_chunks::<2>().0.iter().map(|bytes| u32::from(u16::from_le_bytes(*bytes))).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
        }
    }

    /// Number of tokens in the longest run of whole lines of at most `max` at the start of `range`; of a part of a line, up to the start of
    /// a character, when the first line is longer than that. At least one token, so that a caller that loops makes progress.
    pub fn line_cut(&self, vocabulary: &Vocabulary, range: Range<usize>, max: usize) -> usize {
        if range.len() <= max.max(1) {
            return range.len();
        }
        // The token after the cut is looked at as well: a character may end in it.
        let head = self.ids(range.start..range.start + max.max(1) + 1);
        let lines = (1..head.len()).rev().find(|&at| vocabulary.holds_line_end(head[at - 1]));
        let character = || (1..head.len()).rev().find(|&at| !vocabulary.begins_inside_character(head[at]));
        lines.or_else(character).unwrap_or(head.len() - 1)
    }
}

impl Packages {
    /// `None` where a number has no documents.
    fn new(of_document: Vec<u32>) -> Option<Packages> {
        let n_packages = of_document.iter().max().map_or(0, |&last| last as usize + 1);
        if n_packages > of_document.len() {
            return None;
        }
        let mut starts = vec![0; n_packages + 1];
        of_document.iter().for_each(|&package| starts[package as usize + 1] += 1);
        (0..n_packages).for_each(|package| starts[package + 1] += starts[package]);
        let mut documents: Vec<u32> = (0..of_document.len() as u32).collect();
        documents.sort_by_key(|&document| of_document[document as usize]);
        Some(Packages { of_document, documents, starts })
    }
}

/// Hash of what a file of tokens holds: the hash of its tokens, then its tables.
pub(super) fn content_hash(tokens: u64, tables: &[u8]) -> u64 {
    xxh3_64(&[tokens.to_le_bytes(), xxh3_64(tables).to_le_bytes()].concat())
}

fn span(ends: &[u64], idx: usize) -> Range<usize> {
    let start = idx.checked_sub(1).map_or(0, |before| ends[before]);
    start as usize..ends[idx] as usize
}
