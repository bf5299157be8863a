//! Reading shards back: one row group in memory at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::{COLUMNS, Document, Error, Result, shard_paths};

/// All documents of `split` (`train`, `valid`, `test`) under `dir`, by shard name, then by row; one row group in memory.
///
/// # Errors
/// [`Error::NoShards`] at once; a broken shard yields its error as an item and is left.
pub fn read_split(dir: &Path, split: &str) -> Result<impl Iterator<Item = Result<Document>> + use<>> {
    Ok(shard_paths(dir, split)?.into_iter().flat_map(|path| match ShardReader::open(&path) {
        Ok(reader) => Box::new(reader) as Box<dyn Iterator<Item = Result<Document>>>,
        Err(error) => Box::new(std::iter::once(Err(error))),
    }))
}

/// The documents of one shard file.
pub struct ShardReader {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column_idx: [usize; 7],
    next_group: usize,
    rows: std::vec::IntoIter<Document>,
}

impl ShardReader {
    /// Opens a shard and checks its columns (sha256 is not read back).
    ///
    /// # Errors
    /// Unreadable file, not Parquet, or a column absent.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::Io { path: path.to_owned(), error })?;
        let file = SerializedFileReader::new(file).map_err(|error| Error::Parquet { path: path.to_owned(), error })?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let mut column_idx = [0; 7];
        for (slot, name) in column_idx.iter_mut().zip(COLUMNS) {
            let found = schema.columns().iter().position(|column| column.name() == name);
            *slot = found.ok_or_else(|| Error::Column {
                path: path.to_owned(),
                column: name,
                found: "but it is absent".to_owned(),
            })?;
        }
        Ok(Self { path: path.to_owned(), file, column_idx, next_group: 0, rows: Vec::new().into_iter() })
    }

    fn read_group(&mut self) -> Result<Vec<Document>> {
        let parquet_error = |error| Error::Parquet { path: self.path.clone(), error };
        let group = self.file.get_row_group(self.next_group).map_err(parquet_error)?;
        let n_rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let mut documents = vec![Document::default(); n_rows];
        for (slot, name) in COLUMNS.iter().take(self.column_idx.len()).enumerate() {
            let values = read_column(group.as_ref(), self.column_idx[slot], n_rows).map_err(parquet_error)?;
            let bad = |found: String| Error::Column { path: self.path.clone(), column: name, found };
            let values = values.ok_or_else(|| bad("but it has another type".to_owned()))?;
            if values.len() != n_rows {
                return Err(bad(format!("but it has {} values in {n_rows} rows", values.len())));
            }
            for (document, value) in documents.iter_mut().zip(values) {
                let text = String::from_utf8(value.data().to_vec()).map_err(|e| bad(format!("but: {e}")))?;
                *document.field(slot) = text;
            }
        }
        Ok(documents)
    }
}

fn read_column(
    group: &dyn RowGroupReader,
    idx: usize,
    n_rows: usize,
) -> parquet::errors::Result<Option<Vec<ByteArray>>> {
    let ColumnReader::ByteArrayColumnReader(mut reader) = group.get_column_reader(idx)? else { return Ok(None) };
    let mut values = Vec::with_capacity(n_rows);
    while values.len() < n_rows {
        let (n_read, _, _) = reader.read_records(n_rows - values.len(), None, None, &mut values)?;
        if n_read == 0 {
            break;
        }
    }
    Ok(Some(values))
}

impl Iterator for ShardReader {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(document) = self.rows.next() {
                return Some(Ok(document));
            }
            if self.next_group >= self.file.num_row_groups() {
                return None;
            }
            match self.read_group() {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(error) => {
                    self.next_group = self.file.num_row_groups();
                    return Some(Err(error));
                }
            }
            self.next_group += 1;
        }
    }
}
