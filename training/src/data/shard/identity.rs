//! What a set of shards holds, told without reading its text.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use xxhash_rust::xxh3::Xxh3;

use super::{COLUMNS, Error, Result};

/// Last bytes of a Parquet file: the length of its footer, then a magic word.
const TRAILER_BYTES: u64 = 8;

/// What is known of a set of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Differs when any text, path, package or language does.
    pub hash: u64,
    /// Bytes of text, about.
    pub text_bytes: u64,
}

/// Looks at the names, lengths and footers of `paths` (places and statistics of all columns) and at the hashes of their texts.
///
/// # Errors
/// A file that cannot be read or is no Parquet.
pub fn identity(paths: &[PathBuf]) -> Result<Identity> {
    let mut hash = Xxh3::new();
    let mut text_bytes = 0;
    for path in paths {
        let io_error = |error| Error::Io { path: path.clone(), error };
        let mut file = File::open(path).map_err(io_error)?;
        let reader = SerializedFileReader::new(file.try_clone().map_err(io_error)?);
        let reader = reader.map_err(|error| Error::Parquet { path: path.clone(), error })?;
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        add_footer(&mut hash, &mut file).map_err(io_error)?;
        let chunks = hashed_chunks(reader.metadata());
        chunks.iter().try_for_each(|chunk| add_chunk(&mut hash, &mut file, chunk, path))?;
        text_bytes += n_text_bytes(reader.metadata());
    }
    Ok(Identity { hash: hash.digest(), text_bytes })
}

fn add_footer(hash: &mut Xxh3, file: &mut File) -> std::io::Result<()> {
    let n_bytes = file.seek(SeekFrom::End(0))?;
    hash.update(&n_bytes.to_le_bytes());
    let mut length = [0; 4];
    file.seek(SeekFrom::Start(n_bytes.saturating_sub(TRAILER_BYTES)))?;
    file.read_exact(&mut length)?;
    let footer_bytes = u64::from(u32::from_le_bytes(length)) + TRAILER_BYTES;
    file.seek(SeekFrom::Start(n_bytes.saturating_sub(footer_bytes)))?;
    let mut footer = Vec::new();
    file.read_to_end(&mut footer)?;
    hash.update(&footer);
    Ok(())
}

/// The column of hashes, which says all about the text; all columns of a shard without it.
fn hashed_chunks(metadata: &ParquetMetaData) -> Vec<&ColumnChunkMetaData> {
    let all = || metadata.row_groups().iter().flat_map(|group| group.columns());
    let is_hash = |chunk: &&ColumnChunkMetaData| chunk.column_descr().name() == COLUMNS[COLUMNS.len() - 1];
    let hashes: Vec<_> = all().filter(is_hash).collect();
    if hashes.is_empty() { all().collect() } else { hashes }
}

/// Adds a column's pages as they are stored. What a broken footer points at, its reader will refuse.
fn add_chunk(hash: &mut Xxh3, file: &mut File, chunk: &ColumnChunkMetaData, path: &Path) -> Result<()> {
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let [start, n_bytes] = [start, chunk.compressed_size()].map(|number| number.max(0).unsigned_abs());
    let mut pages = Vec::new();
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.take(n_bytes).read_to_end(&mut pages));
    read.map_err(|error| Error::Io { path: path.to_owned(), error })?;
    hash.update(&pages);
    Ok(())
}

fn n_text_bytes(metadata: &ParquetMetaData) -> u64 {
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    let text = chunks.filter(|chunk| chunk.column_descr().name() == COLUMNS[0]);
    text.map(|chunk| chunk.uncompressed_size().max(0).unsigned_abs()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::{Document, write_file};

    fn identity_of(documents: &[(&str, &str)]) -> Identity {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lua-0000.parquet");
        let document = |(text, path): &(&str, &str)| Document {
            text: (*text).to_owned(),
            path: (*path).to_owned(),
            ..Document::default()
        };
        write_file(&path, documents.iter().map(|n| Ok::<_, Error>(document(n)))).unwrap();
        identity(&[path]).unwrap()
    }

    #[test]
    fn another_letter_of_text_or_path_is_another_identity() {
        let same = identity_of(&[("local a = 1\n", "a.lua"), ("local b\n", "b.lua")]);
        assert_eq!(same, identity_of(&[("local a = 1\n", "a.lua"), ("local b\n", "b.lua")]));
        assert_ne!(same.hash, identity_of(&[("local a = 2\n", "a.lua"), ("local b\n", "b.lua")]).hash);
        assert_ne!(same.hash, identity_of(&[("local a = 1\n", "a.lua"), ("local b\n", "c.lua")]).hash);
        assert!(same.text_bytes >= 20);
    }

    #[test]
    fn what_is_no_shard_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c-0000.parquet");
        std::fs::write(&path, "not parquet").unwrap();
        assert!(identity(&[path]).unwrap_err().to_string().contains("c-0000.parquet"));
    }
}
