//! Reads the data of benchmarks: JSON lines, packed by gzip, one record of known fields each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde::de::DeserializeOwned;

use crate::corpus::lines;

/// What packed data ends in.
const ENDING: &str = ".jsonl.gz";

/// The records of one file, each with what errors about it begin with: file and line.
///
/// # Errors
/// A file that cannot be read or is no gzip; a line that is no JSON or lacks a field.
pub fn records<T: DeserializeOwned>(path: &Path) -> Result<Vec<(String, T)>> {
    let mut records = Vec::new();
    for line in lines::open(path).map_err(|error| anyhow!("{error}"))? {
        let (n, text) = line.map_err(|error| anyhow!("{error}"))?;
        let place = format!("{}: line {n}", path.display());
        let record = serde_json::from_str(&text).map_err(|error| anyhow!("{place}: {}", lines::json_error(&error)))?;
        records.push((place, record));
    }
    ensure!(!records.is_empty(), "{}: expected at least one record", path.display());
    Ok(records)
}

/// The packed files of a folder by name, each with its name without the ending.
///
/// # Errors
/// A folder that cannot be read or has no such file.
pub fn files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry.with_context(|| dir.display().to_string())?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(ENDING));
        if let Some(name) = name.map(str::to_owned) {
            files.push((name, path));
        }
    }
    ensure!(!files.is_empty(), "{}: expected a file *{ENDING}", dir.display());
    files.sort();
    Ok(files)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::process::Command;

    /// Writes `lines` into `dir`/`name`.jsonl.gz.
    pub(in crate::suites) fn pack(dir: &Path, name: &str, lines: &[serde_json::Value]) -> PathBuf {
        let path = dir.join(format!("{name}.jsonl"));
        fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        assert!(Command::new("gzip").arg("-f").arg(&path).status().unwrap().success());
        dir.join(format!("{name}{ENDING}"))
    }

    #[derive(Debug, serde::Deserialize)]
    struct Record {
        #[allow(dead_code)]
        prompt: String,
    }

    #[test]
    fn a_record_without_a_field_is_an_error_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let lines = [serde_json::json!({"prompt": "x"}), serde_json::json!({"promt": "y"})];
        let path = pack(dir.path(), "a", &lines);
        let error = records::<Record>(&path).unwrap_err().to_string();
        assert!(error.contains("a.jsonl.gz: line 2") && error.contains("missing field `prompt`"), "{error}");
        assert_eq!(records::<Record>(&pack(dir.path(), "b", &lines[..1])).unwrap().len(), 1);
        assert_eq!(files(dir.path()).unwrap().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        fs::write(dir.path().join("c.jsonl.gz"), "no gzip").unwrap();
        let error = records::<Record>(&dir.path().join("c.jsonl.gz")).unwrap_err().to_string();
        assert!(error.contains("c.jsonl.gz") && error.contains("gzip"), "{error}");
    }
}
