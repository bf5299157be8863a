//! A split as tokens, per language, for the n-gram baseline; kept on disk so that a second evaluation does not tokenize again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use multicoder_model::Tokenizer;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::data::shard;
use crate::ngram::Documents;

/// First bytes of a file of tokens; the digit is the version of the layout.
const MAGIC: &[u8; 8] = b"mctokn01";

/// The token files of one tokenizer and one corpus.
#[derive(Debug)]
pub struct TokenStore {
    dir: PathBuf,
    key: u64,
}

impl TokenStore {
    /// A store in `dir` for what `tokenizer` makes of `shards`; both are known by a hash (of shards: names and lengths).
    ///
    /// # Errors
    /// Missing shards; a tokenizer that cannot be written as JSON.
    pub fn open(dir: &Path, shards: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let mut identity = tokenizer.to_json()?;
        for split in ["train", "valid"] {
            let paths = match shard::shard_paths(shards, split) {
                Err(shard::Error::NoShards { .. }) => Vec::new(),
                paths => paths?,
            };
            for path in paths {
                let n_bytes = fs::metadata(&path).with_context(|| path.display().to_string())?.len();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                identity += &format!("{split}/{name} {n_bytes}\n");
            }
        }
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        Ok(Self { dir: dir.to_owned(), key: xxh3_64(identity.as_bytes()) })
    }

    /// Hash of tokenizer and shards.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// Path of a file of this store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{:016x}-{name}", self.key))
    }

    /// Tokens of every language of `split`, from disk or from the shards; `progress` is told of bytes of text tokenized.
    ///
    /// # Errors
    /// Unreadable shards or files of tokens.
    pub fn load(
        &self,
        shards: &Path,
        split: &str,
        tokenizer: &Tokenizer,
        progress: &dyn Fn(u64),
    ) -> Result<BTreeMap<String, Documents>> {
        let path = self.path(&format!("{split}.tokens"));
        if let Ok(bytes) = fs::read(&path) {
            return decode(&bytes).ok_or_else(|| {
                anyhow!("{}: not a file of tokens that we wrote whole: delete it and try again", path.display())
            });
        }
        let languages = tokenize(shards, split, tokenizer, progress)?;
        let part = path.with_extension("part");
        fs::write(&part, encode(&languages)).with_context(|| part.display().to_string())?;
        fs::rename(&part, &path).with_context(|| path.display().to_string())?;
        Ok(languages)
    }
}

fn tokenize(
    shards: &Path,
    split: &str,
    tokenizer: &Tokenizer,
    progress: &dyn Fn(u64),
) -> Result<BTreeMap<String, Documents>> {
    let mut languages: BTreeMap<String, Documents> = BTreeMap::new();
    let mut chunk: Vec<shard::Document> = Vec::new();
    let mut chunk_bytes = 0;
    let mut flush = |chunk: &mut Vec<shard::Document>| -> Result<()> {
        let encode = |document: &shard::Document| Ok(tokenizer.encode(&document.text)?);
        let encoded: Vec<Vec<u32>> = chunk.par_iter().map(encode).collect::<Result<_>>()?;
        for (document, ids) in chunk.drain(..).zip(encoded) {
            progress(document.text.len() as u64);
            languages.entry(document.language).or_default().push(&ids);
        }
        Ok(())
    };
    for document in shard::read_split(shards, split)? {
        let document = document?;
        chunk_bytes += document.text.len();
        chunk.push(document);
        if chunk_bytes > 8 << 20 {
            flush(&mut chunk)?;
            chunk_bytes = 0;
        }
    }
    flush(&mut chunk)?;
    Ok(languages)
}

/// Magic, then per language: name length, name, number of documents, their lengths, their tokens; all u32, little endian.
fn encode(languages: &BTreeMap<String, Documents>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let mut put = |value: u32| bytes.extend_from_slice(&value.to_le_bytes());
    for (name, documents) in languages {
        put(name.len() as u32);
        name.bytes().for_each(|byte| put(u32::from(byte)));
        put(documents.len() as u32);
        documents.iter().for_each(|document| put(document.len() as u32));
        documents.iter().flatten().for_each(|&token| put(token));
    }
    let checksum = xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<String, Documents>> {
    let (body, checksum) = bytes.split_last_chunk::<8>()?;
    if xxh3_64(body) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let mut values = body.strip_prefix(MAGIC)?.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    let mut languages = BTreeMap::new();
    while let Some(name_bytes) = values.next() {
        let name: Vec<u8> = values.by_ref().take(name_bytes as usize).map(|value| value as u8).collect();
        let n_documents = values.next()?;
        let lengths: Vec<u32> = values.by_ref().take(n_documents as usize).collect();
        let mut documents = Documents::default();
        for length in lengths {
            let tokens: Vec<u32> = values.by_ref().take(length as usize).collect();
            documents.push(&tokens);
        }
        languages.insert(String::from_utf8(name).ok()?, documents);
    }
    Some(languages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_files_come_back_and_damage_is_seen() {
        let mut documents = Documents::default();
        documents.push(&[1, 70_000, 3]);
        documents.push(&[]);
        let languages = BTreeMap::from([("c".to_owned(), documents.clone()), ("rust".to_owned(), documents)]);
        let bytes = encode(&languages);
        let back = decode(&bytes).unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), ["c", "rust"]);
        assert_eq!(back["rust"].iter().collect::<Vec<_>>(), [&[1, 70_000, 3][..], &[]]);
        let mut damaged = bytes.clone();
        damaged[20] ^= 1;
        assert!(decode(&damaged).is_none() && decode(&bytes[..bytes.len() - 1]).is_none());
    }
}
