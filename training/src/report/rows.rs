//! Results that are kept as CSV: read whole, and written beside their place, then renamed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The rows of `path`; none where there is no such file.
///
/// # Errors
/// A file that cannot be read or has other columns.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut reader = csv::Reader::from_path(path).with_context(|| path.display().to_string())?;
    reader.deserialize().map(|row| row.map_err(|error| anyhow!("{}: {error}", path.display()))).collect()
}

/// Puts `new` into `path` in place of the rows that it holds and `is_old` picks; the others stay, before them.
///
/// # Errors
/// As of [`read`] and [`write`].
pub fn replace<T: Clone + Serialize + DeserializeOwned>(
    path: &Path,
    new: &[T],
    is_old: impl Fn(&T) -> bool,
) -> Result<()> {
    let mut rows: Vec<T> = read(path)?;
    rows.retain(|row| !is_old(row));
    rows.extend_from_slice(new);
    write(path, &rows)
}

/// Writes all `rows` in place of what `path` held.
///
/// # Errors
/// A file that cannot be written.
pub fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let part = path.with_extension("csv.part");
    let mut writer = csv::Writer::from_path(&part).with_context(|| part.display().to_string())?;
    for row in rows {
        writer.serialize(row).with_context(|| part.display().to_string())?;
    }
    writer.flush().with_context(|| part.display().to_string())?;
    fs::rename(&part, path).with_context(|| path.display().to_string())
}
