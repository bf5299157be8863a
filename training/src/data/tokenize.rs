//! Files of tokens: made of the shards the first time that a tokenizer meets them, opened from then on.
//!
//! `FOLDER/<hash of the tokenizer>/<split>/<language>.tokens`. A file is written beside its place and renamed: it is whole or absent. Of
//! several processes that want the same one, one makes it and the others wait.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use multicoder_model::Tokenizer;
use rayon::prelude::*;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::shard::{self, Document, ShardReader};
use super::tokens::{HEADER_BYTES, Header, Tokens, content_hash};

/// Text that is tokenized at once, on all cores: about what memory holds of it.
const CHUNK_BYTES: usize = 8 << 20;
/// Entries of a vocabulary whose ids fit two bytes.
const SHORT_VOCABULARY: usize = 1 << 16;

/// Where the tokens of one split lie.
#[derive(Clone, Copy, Debug)]
pub struct TokenFolder<'a> {
    /// Folder of the shards.
    pub shards: &'a Path,
    /// Folder of all files of tokens.
    pub tokens: &'a Path,
    /// `train`, `valid` or `test`.
    pub split: &'a str,
}

/// The tokens of each of `languages`, in their order; makes the files that are not there or are of other text.
///
/// # Errors
/// Missing or broken shards; a document that is not of the language that its shard's name says; a folder that cannot be written.
pub fn open(folder: TokenFolder, languages: &[String], tokenizer: &Tokenizer) -> Result<Vec<Tokens>> {
    let paths = shard::shard_paths(folder.shards, folder.split)?;
    let tokenizer_hash = xxh3_64(tokenizer.to_json()?.as_bytes());
    let place = folder.tokens.join(format!("{tokenizer_hash:016x}")).join(folder.split);
    let open_language = |language: &String| {
        let shards: Vec<PathBuf> = paths.iter().filter(|path| shard::language_of(path) == language).cloned().collect();
        if shards.is_empty() {
            return Ok(Tokens::empty());
        }
        let identity = shard::identity(&shards)?;
        let key = xxh3_64(&[tokenizer_hash.to_le_bytes(), identity.hash.to_le_bytes()].concat());
        let source = Source { language, shards: &shards, tokenizer, key, text_bytes: identity.text_bytes };
        source.open_or_make(&place)
    };
    languages.iter().map(open_language).collect()
}

/// What the tokens of one language are made of.
struct Source<'a> {
    language: &'a str,
    shards: &'a [PathBuf],
    tokenizer: &'a Tokenizer,
    /// Stands for the text and the tokenizer.
    key: u64,
    text_bytes: u64,
}

impl Source<'_> {
    fn open_or_make(&self, place: &Path) -> Result<Tokens> {
        let path = place.join(format!("{}.tokens", self.language));
        if let Ok(tokens) = Tokens::open(&path, self.key) {
            return Ok(tokens);
        }
        let refused = || {
            format!("{}: expected a folder for tokens that can be written and locked (data.tokens)", place.display())
        };
        fs::create_dir_all(place).with_context(refused)?;
        let lock = File::create(place.join("lock")).with_context(refused)?;
        lock.lock().with_context(refused)?;
        // Whoever had the lock may have made it.
        match Tokens::open(&path, self.key) {
            Ok(tokens) => return Ok(tokens),
            Err(reason) if path.exists() => eprintln!("{}: {reason:#}; tokenizing anew", path.display()),
            Err(_) => {}
        }
        self.make(&path).with_context(|| path.display().to_string())?;
        Tokens::open(&path, self.key).with_context(|| path.display().to_string())
    }

    fn make(&self, path: &Path) -> Result<()> {
        let started = Instant::now();
        let bar = progress_bar(self.text_bytes, self.language);
        let part = path.with_extension("tokens.part");
        let mut writer = Writer::create(&part, self.tokenizer.vocab_size())?;
        let mut chunk = Vec::new();
        let mut chunk_bytes = 0;
        for shard in self.shards {
            for document in ShardReader::open(shard)? {
                let document = self.checked(document?, shard)?;
                chunk_bytes += document.text.len();
                chunk.push(document);
                if chunk_bytes >= CHUNK_BYTES {
                    writer.push(&chunk, self.tokenizer)?;
                    bar.inc(chunk_bytes as u64);
                    chunk.clear();
                    chunk_bytes = 0;
                }
            }
        }
        writer.push(&chunk, self.tokenizer)?;
        let header = writer.finish(self.key)?;
        fs::rename(&part, path)?;
        bar.finish_and_clear();
        let (n_tokens, elapsed_s) = (header.n_tokens as f64, started.elapsed().as_secs_f64());
        eprintln!("{}: {:.2} M tokens in {elapsed_s:.1} s", path.display(), n_tokens / 1e6);
        Ok(())
    }

    fn checked(&self, document: Document, shard: &Path) -> Result<Document> {
        ensure!(
            document.language == self.language,
            "{}: document `{}`: language `{}`, expected `{}` as in the name of the shard",
            shard.display(),
            document.path,
            document.language,
            self.language
        );
        Ok(document)
    }
}

fn progress_bar(text_bytes: u64, language: &str) -> ProgressBar {
    let bar = ProgressBar::new(text_bytes);
    if let Ok(style) = ProgressStyle::with_template("tokenizing {msg} {wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(language.to_owned());
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

/// A file of tokens in the making: tokens go to the disk as they come, the tables are kept until its end.
struct Writer {
    file: BufWriter<File>,
    token_bytes: usize,
    hash: Xxh3,
    n_tokens: u64,
    text_bytes: u64,
    document_ends: Vec<u64>,
    path_ends: Vec<u64>,
    paths: String,
    packages: Vec<u32>,
    package_numbers: BTreeMap<String, u32>,
}

impl Writer {
    fn create(part: &Path, vocab_size: usize) -> Result<Writer> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(part)?);
        file.write_all(&[0; HEADER_BYTES])?;
        Ok(Writer {
            file,
            token_bytes: if vocab_size <= SHORT_VOCABULARY { 2 } else { 4 },
            hash: Xxh3::new(),
            n_tokens: 0,
            text_bytes: 0,
            document_ends: Vec::new(),
            path_ends: Vec::new(),
            paths: String::new(),
            packages: Vec::new(),
            package_numbers: BTreeMap::new(),
        })
    }

    /// Adds documents in their order. One of which no token comes is left out.
    fn push(&mut self, documents: &[Document], tokenizer: &Tokenizer) -> Result<()> {
        let encode = |document: &Document| tokenizer.encode(&document.text);
        let encoded = documents.par_iter().with_max_len(1).map(encode).collect::<Result<Vec<_>, _>>()?;
        for (document, ids) in documents.iter().zip(encoded).filter(|(_, ids)| !ids.is_empty()) {
            let bytes: Vec<u8> = match self.token_bytes {
                2 => ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect(),
                _ => ids.iter().flat_map(|&id| id.to_le_bytes()).collect(),
            };
            self.hash.update(&bytes);
            self.file.write_all(&bytes)?;
            self.n_tokens += ids.len() as u64;
            self.text_bytes += document.text.len() as u64;
            self.paths.push_str(&document.path);
            self.document_ends.push(self.n_tokens);
            self.path_ends.push(self.paths.len() as u64);
            let package = self.package_number(&document.package);
            self.packages.push(package);
        }
        Ok(())
    }

    fn package_number(&mut self, name: &str) -> u32 {
        let next = self.package_numbers.len() as u32;
        if let Some(&known) = self.package_numbers.get(name) {
            return known;
        }
        self.package_numbers.insert(name.to_owned(), next);
        next
    }

    /// Writes the tables and the header, and brings everything onto the disk.
    fn finish(mut self, key: u64) -> Result<Header> {
        let ends = self.document_ends.iter().chain(&self.path_ends).flat_map(|end| end.to_le_bytes());
        let packages = self.packages.iter().flat_map(|package| package.to_le_bytes());
        let tables: Vec<u8> = ends.chain(packages).chain(self.paths.bytes()).collect();
        let token_bytes = self.token_bytes as u64;
        let tokens_end = HEADER_BYTES as u64 + self.n_tokens * token_bytes;
        let padding = tokens_end.next_multiple_of(8) - tokens_end;
        self.file.write_all(&[0; 8][..padding as usize])?;
        self.file.write_all(&tables)?;
        let header = Header {
            key,
            token_bytes,
            n_tokens: self.n_tokens,
            n_documents: self.document_ends.len() as u64,
            path_bytes: self.paths.len() as u64,
            text_bytes: self.text_bytes,
            content: content_hash(self.hash.digest(), &tables),
        };
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header.to_bytes())?;
        self.file.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        Ok(header)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::ops::Range;

    use multicoder_model::tokenizer::TokenizerOptions;

    use super::super::shard::ShardWriter;
    use super::super::vocabulary::Vocabulary;
    use super::*;

    /// Tokens of a few documents, with what made them.
    pub(in crate::data) struct Store {
        pub(in crate::data) dir: tempfile::TempDir,
        pub(in crate::data) tokenizer: Tokenizer,
        pub(in crate::data) vocabulary: Vocabulary,
        pub(in crate::data) tokens: Tokens,
    }

    impl Store {
        /// The bytes of tokens.
        pub(in crate::data) fn text_of(&self, range: Range<usize>) -> Vec<u8> {
            self.tokens.ids(range).iter().flat_map(|&id| self.tokenizer.bytes_of(id)).copied().collect()
        }
    }

    /// Documents of Lua, each of a package of its own.
    pub(in crate::data) fn store(texts: &[&str]) -> Store {
        let named: Vec<_> =
            texts.iter().enumerate().map(|(n, text)| (format!("p{n}"), format!("{n}.lua"), *text)).collect();
        store_of(&named)
    }

    /// Documents of Lua: package, path, text.
    pub(in crate::data) fn store_of(documents: &[(String, String, &str)]) -> Store {
        let dir = tempfile::tempdir().unwrap();
        write_shard(dir.path(), documents);
        let texts = documents.iter().map(|(_, _, text)| *text);
        let languages = vec!["lua".to_owned()];
        let options = TokenizerOptions { vocab_size: 400, languages, min_frequency: 2, ..TokenizerOptions::default() };
        let tokenizer = Tokenizer::train(texts, &options).unwrap();
        let tokens = open_lua(dir.path(), &tokenizer).unwrap();
        Store { vocabulary: Vocabulary::of(&tokenizer), dir, tokenizer, tokens }
    }

    fn write_shard(dir: &Path, documents: &[(String, String, &str)]) {
        let mut writer = ShardWriter::create(dir, "train", "lua").unwrap();
        for (package, path, text) in documents {
            let (package, path, text) = (package.clone(), path.clone(), (*text).to_owned());
            writer.push(Document { text, package, path, language: "lua".to_owned(), ..Document::default() }).unwrap();
        }
        writer.finish().unwrap();
    }

    fn open_lua(dir: &Path, tokenizer: &Tokenizer) -> Result<Tokens> {
        let folder = TokenFolder { shards: dir, tokens: &dir.join("tokens"), split: "train" };
        Ok(open(folder, &["lua".to_owned()], tokenizer)?.remove(0))
    }

    fn file_of(store: &Store) -> PathBuf {
        let folder = fs::read_dir(store.dir.path().join("tokens")).unwrap().next().unwrap().unwrap();
        folder.path().join("train/lua.tokens")
    }

    #[test]
    fn documents_come_back_with_their_paths_and_packages() {
        let named = |package: &str, path: &str, text: &'static str| (package.to_owned(), path.to_owned(), text);
        let store = store_of(&[
            named("one", "src/größe.lua", "local a = 1\nreturn a\n"),
            named("two", "b.lua", "local größe = 2"),
            named("one", "c.lua", ""),
            named("one", "", "return größe\n"),
        ]);
        assert_eq!((store.tokens.n_documents(), store.tokens.text_bytes()), (3, 21 + 17 + 15));
        let text = |idx: usize| String::from_utf8(store.text_of(store.tokens.document(idx))).unwrap();
        assert_eq!([text(0), text(1), text(2)], ["local a = 1\nreturn a\n", "local größe = 2", "return größe\n"]);
        assert_eq!([0, 1, 2].map(|idx| store.tokens.path(idx)), ["src/größe.lua", "b.lua", ""]);
        assert_eq!([0, 1, 2].map(|idx| store.tokens.package(idx).to_vec()), [vec![0, 2], vec![1], vec![0, 2]]);
    }

    #[test]
    fn a_file_is_made_once_and_again_for_other_text_or_when_damaged() {
        let store = store(&["local a = 1\n", "local b = 2\n"]);
        let path = file_of(&store);
        let modified = || fs::metadata(&path).unwrap().modified().unwrap();
        let first = modified();
        assert_eq!(open_lua(store.dir.path(), &store.tokenizer).unwrap().content(), store.tokens.content());
        assert_eq!(modified(), first);
        // What a kill leaves beside the file is nobody's.
        fs::write(path.with_extension("tokens.part"), "half").unwrap();
        for damage in [&fs::read(&path).unwrap()[..100], b"", b"something else altogether"] {
            fs::write(&path, damage).unwrap();
            assert_eq!(open_lua(store.dir.path(), &store.tokenizer).unwrap().content(), store.tokens.content());
        }
        write_shard(store.dir.path(), &[("p".to_owned(), "a.lua".to_owned(), "local c = 3\n")]);
        let other = open_lua(store.dir.path(), &store.tokenizer).unwrap();
        assert_eq!(other.n_documents(), 1);
        assert_ne!(other.content(), store.tokens.content());
    }

    #[test]
    fn each_tokenizer_has_tokens_of_its_own_and_large_ones_four_bytes() {
        let store = store(&["local a = 1\n"]);
        let other =
            store_of(&[("p".to_owned(), "a.lua".to_owned(), "while true do\nend\nwhile true do\nend\n")]).tokenizer;
        open_lua(store.dir.path(), &other).unwrap();
        assert_eq!(fs::read_dir(store.dir.path().join("tokens")).unwrap().count(), 2);
        let part = store.dir.path().join("large.tokens");
        let mut writer = Writer::create(&part, SHORT_VOCABULARY + 1).unwrap();
        let text = "local a = 1\n".to_owned();
        writer.push(&[Document { text, ..Document::default() }], &store.tokenizer).unwrap();
        writer.finish(7).unwrap();
        let large = Tokens::open(&part, 7).unwrap();
        assert_eq!(large.ids(large.document(0)), store.tokens.ids(store.tokens.document(0)));
        assert_eq!(
            fs::metadata(&part).unwrap().len() as usize,
            HEADER_BYTES + (large.n_tokens() * 4).next_multiple_of(8) + 20
        );
        let message = format!("{:#}", Tokens::open(&part, 8).unwrap_err());
        assert!(message.contains("key 0000000000000007, expected 0000000000000008"), "{message}");
    }

    #[test]
    fn a_shard_of_another_language_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "train", "lua").unwrap();
        let (text, language, path) = ("a = 1\n".to_owned(), "python".to_owned(), "a.py".to_owned());
        writer.push(Document { text, language, path, ..Document::default() }).unwrap();
        writer.finish().unwrap();
        let message = format!("{:#}", open_lua(dir.path(), &store(&["local a\n"]).tokenizer).unwrap_err());
        assert!(message.contains("`a.py`: language `python`, expected `lua`"), "{message}");
    }

    #[test]
    fn many_at_once_make_one_file() {
        let store = store(&["local a = 1\n", "local b = 2\n"]);
        fs::remove_file(file_of(&store)).unwrap();
        let contents: Vec<u64> = std::thread::scope(|scope| {
            let open = || open_lua(store.dir.path(), &store.tokenizer).unwrap().content();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(contents, [store.tokens.content(); 4]);
    }
}
