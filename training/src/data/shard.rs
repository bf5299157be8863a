//! Parquet shards of source documents: `DIR/<split>/<language>-NNNN.parquet`, one row a file, zstd.
//!
//! Columns, all UTF-8 and required: text, language, path, package, source, licence, split, sha256 (hex, of the text).
//! Shards are written beside their place and renamed, so a shard that exists is whole.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use sha2::{Digest, Sha256};

mod identity;
mod reader;

pub use identity::{Identity, identity};
pub use reader::{ShardReader, read_split};

/// Column names in file order.
pub const COLUMNS: [&str; 8] = ["text", "language", "path", "package", "source", "licence", "split", "sha256"];

const SCHEMA: &str = "message document {
  required binary text (utf8); required binary language (utf8); required binary path (utf8);
  required binary package (utf8); required binary source (utf8); required binary licence (utf8);
  required binary split (utf8); required binary sha256 (utf8); }";

/// Text bytes gathered before a row group is written; also about what a reader holds at once.
const ROW_GROUP_BYTES: usize = 8 << 20;
/// Text bytes of one shard file, after which the next number begins.
const SHARD_BYTES: usize = 64 << 20;

/// Name of the file that a folder of shards has while a build replaces its splits: what is there is neither the old nor the new.
pub const INCOMPLETE_NAME: &str = "incomplete";

/// What went wrong with a shard.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    /// The file is not the Parquet that we write.
    #[error("{path}: {error}")]
    Parquet { path: PathBuf, error: parquet::errors::ParquetError },
    /// A column is absent or of another type.
    #[error("{path}: column `{column}` must be required UTF-8 text, {found}")]
    Column { path: PathBuf, column: &'static str, found: String },
    /// There is nothing to read.
    #[error("{path}: no shards of split `{split}` (expected {path}/{split}/<language>-NNNN.parquet)")]
    NoShards { path: PathBuf, split: String },
    /// A build was ended while it replaced the splits.
    #[error("{path}: the corpus build did not finish; expected no such file: build again")]
    Incomplete { path: PathBuf },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// One source file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// The whole text, UTF-8, newlines as in the file.
    pub text: String,
    /// Name of the language as in `multicoder_grammars::LANGUAGES`.
    pub language: String,
    /// Path inside the package, `/` between its parts.
    pub path: String,
    /// Name of the package, with its version: `flask-3.1.0`.
    pub package: String,
    /// How the package came: `pypi`, `npm`, `crate`, `deb`, `debsrc`, `folder`, `git`.
    pub source: String,
    /// Licence of the package, SPDX where known.
    pub licence: String,
    /// `train`, `valid` or `test`.
    pub split: String,
}

impl Document {
    /// Hex SHA-256 of the text.
    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(self.text.as_bytes()))
    }

    fn field(&mut self, slot: usize) -> &mut String {
        match slot {
            0 => &mut self.text,
            1 => &mut self.language,
            2 => &mut self.path,
            3 => &mut self.package,
            4 => &mut self.source,
            5 => &mut self.licence,
            _ => &mut self.split,
        }
    }

    fn column(&self, idx: usize) -> Vec<u8> {
        let value = match idx {
            0 => &self.text,
            1 => &self.language,
            2 => &self.path,
            3 => &self.package,
            4 => &self.source,
            5 => &self.licence,
            6 => &self.split,
            _ => return self.sha256().into_bytes(),
        };
        value.clone().into_bytes()
    }
}

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the documents of one split and one language, in the order given.
pub struct ShardWriter {
    folder: PathBuf,
    language: String,
    n_shards: usize,
    rows: Vec<Document>,
    row_bytes: usize,
    open: Option<OpenShard>,
}

struct OpenShard {
    part: PathBuf,
    path: PathBuf,
    writer: SerializedFileWriter<File>,
    text_bytes: usize,
}

impl ShardWriter {
    /// Starts `dir/split/language-0000.parquet`; nothing is on disk until the first document.
    pub fn create(dir: &Path, split: &str, language: &str) -> Result<Self> {
        let folder = dir.join(split);
        fs::create_dir_all(&folder).map_err(|error| Error::Io { path: folder.clone(), error })?;
        let language = language.to_owned();
        Ok(Self { folder, language, n_shards: 0, rows: Vec::new(), row_bytes: 0, open: None })
    }

    /// Adds one document.
    pub fn push(&mut self, document: Document) -> Result<()> {
        self.row_bytes += document.text.len();
        self.rows.push(document);
        if self.row_bytes >= ROW_GROUP_BYTES {
            self.flush_rows()?;
        }
        Ok(())
    }

    /// Writes what is left and puts the last shard in its place; returns the number of shards.
    pub fn finish(mut self) -> Result<usize> {
        self.flush_rows()?;
        self.close_shard()?;
        Ok(self.n_shards)
    }

    fn flush_rows(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let row_bytes = std::mem::take(&mut self.row_bytes);
        if self.open.is_none() {
            self.open = Some(self.open_shard()?);
        }
        if let Some(shard) = &mut self.open {
            shard.write(&rows)?;
            shard.text_bytes += row_bytes;
            if shard.text_bytes >= SHARD_BYTES {
                self.close_shard()?;
            }
        }
        Ok(())
    }

    fn open_shard(&self) -> Result<OpenShard> {
        OpenShard::create(self.folder.join(format!("{}-{:04}.parquet", self.language, self.n_shards)), 9)
    }

    fn close_shard(&mut self) -> Result<()> {
        let Some(shard) = self.open.take() else { return Ok(()) };
        shard.close()?;
        self.n_shards += 1;
        Ok(())
    }
}

/// Writes `documents` as one Parquet file at `path`, fast rather than small; one row group of them in memory.
///
/// # Errors
/// The first one among the documents; the file cannot be written.
pub fn write_file<E: From<Error>>(
    path: &Path,
    documents: impl IntoIterator<Item = std::result::Result<Document, E>>,
) -> std::result::Result<(), E> {
    let mut shard = OpenShard::create(path.to_owned(), 1)?;
    let mut rows = Vec::new();
    let mut row_bytes = 0;
    for document in documents {
        let document = document?;
        row_bytes += document.text.len();
        rows.push(document);
        if row_bytes >= ROW_GROUP_BYTES {
            shard.write(&rows)?;
            rows.clear();
            row_bytes = 0;
        }
    }
    if !rows.is_empty() {
        shard.write(&rows)?;
    }
    Ok(shard.close()?)
}

impl OpenShard {
    fn create(path: PathBuf, zstd_level: i32) -> Result<Self> {
        let part = path.with_extension("parquet.part");
        let file = File::create(&part).map_err(|error| Error::Io { path: part.clone(), error })?;
        let parquet_error = |error| Error::Parquet { path: part.clone(), error };
        let schema = Arc::new(parse_message_type(SCHEMA).map_err(parquet_error)?);
        let level = ZstdLevel::try_new(zstd_level).map_err(parquet_error)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_created_by("multicoder".to_owned())
            .build();
        let writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(parquet_error)?;
        Ok(OpenShard { part, path, writer, text_bytes: 0 })
    }

    fn write(&mut self, rows: &[Document]) -> Result<()> {
        let path = &self.part;
        write_row_group(&mut self.writer, rows).map_err(|error| Error::Parquet { path: path.clone(), error })
    }

    fn close(self) -> Result<()> {
        let Self { part, path, writer, .. } = self;
        writer.close().map_err(|error| Error::Parquet { path: part.clone(), error })?;
        fs::rename(&part, &path).map_err(|error| Error::Io { path, error })
    }
}

fn write_row_group(writer: &mut SerializedFileWriter<File>, rows: &[Document]) -> parquet::errors::Result<()> {
    let mut group = writer.next_row_group()?;
    let mut idx = 0;
    while let Some(mut column) = group.next_column()? {
        let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row.column(idx))).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None)?;
        column.close()?;
        idx += 1;
    }
    group.close()?;
    Ok(())
}

/// The language that a shard's name says: `NAME-0000.parquet`.
pub fn language_of(path: &Path) -> &str {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.rsplit_once('-').map_or(stem, |(name, _)| name)
}

/// Paths of the shards of `split` under `dir`, sorted.
///
/// # Errors
/// [`Error::NoShards`] when the folder is absent or holds none; [`Error::Incomplete`] when a build of it did not finish.
pub fn shard_paths(dir: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let missing = || Error::NoShards { path: dir.to_owned(), split: split.to_owned() };
    let marker = dir.join(INCOMPLETE_NAME);
    if marker.exists() {
        return Err(Error::Incomplete { path: marker });
    }
    let folder = dir.join(split);
    let entries = fs::read_dir(&folder).map_err(|error| match error.kind() {
        ErrorKind::NotFound => missing(),
        _ => Error::Io { path: folder.clone(), error },
    })?;
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "parquet")).collect();
    paths.sort();
    if paths.is_empty() { Err(missing()) } else { Ok(paths) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(n: usize) -> Document {
        Document {
            text: format!("let x = {n};\n// größer\n").repeat(n + 1),
            language: "rust".into(),
            path: format!("src/{n}.rs"),
            package: "demo-1.0".into(),
            source: "crate".into(),
            licence: "MIT".into(),
            split: "train".into(),
        }
    }

    #[test]
    fn documents_come_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "train", "rust").unwrap();
        let documents: Vec<_> = (0..50).map(document).collect();
        for d in &documents {
            writer.push(d.clone()).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), 1);
        let back: Vec<_> = read_split(dir.path(), "train").unwrap().collect::<Result<_>>().unwrap();
        assert_eq!(back, documents);
    }

    #[test]
    fn large_input_makes_several_row_groups_and_shards() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "train", "c").unwrap();
        let text = "int a;\n".repeat(150_000);
        for n in 0..70 {
            writer.push(Document { text: text.clone(), path: n.to_string(), ..Document::default() }).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), 2);
        let paths: Vec<_> = read_split(dir.path(), "train").unwrap().map(|d| d.unwrap().path).collect();
        assert_eq!(paths, (0..70).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_folder_whose_build_did_not_finish_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::create(dir.path(), "train", "rust").unwrap();
        writer.push(document(1)).unwrap();
        writer.finish().unwrap();
        assert_eq!(shard_paths(dir.path(), "train").unwrap().len(), 1);
        fs::write(dir.path().join(INCOMPLETE_NAME), "").unwrap();
        assert!(matches!(read_split(dir.path(), "train"), Err(Error::Incomplete { .. })));
    }

    #[test]
    fn absent_split_and_broken_shard_are_clear_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_split(dir.path(), "test"), Err(Error::NoShards { .. })));
        fs::create_dir(dir.path().join("test")).unwrap();
        fs::write(dir.path().join("test/c-0000.parquet"), b"not parquet").unwrap();
        let first = read_split(dir.path(), "test").unwrap().next().unwrap();
        assert!(first.unwrap_err().to_string().contains("c-0000.parquet"));
    }
}
