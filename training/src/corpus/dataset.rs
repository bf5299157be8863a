//! Existing data sets as an input: Parquet, or JSON lines (plain or `.gz`), one source file a row.
//!
//! Which column holds what is found by the names in use (The Stack, CodeSearchNet, `{"content", "path"}`) or said by the user. A row
//! without a text, or with a text that is none, is an error that names file and row: nothing is guessed.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::{Error, Result, lines};

/// What is read of a row, and the names under which data sets have it, the likeliest first.
const FIELDS: [(&str, &[&str]); 5] = [
    ("text", &["content", "text", "original_string", "whole_func_string", "code", "source"]),
    ("path", &["path", "max_stars_repo_path", "func_path_in_repository", "file_path", "file_name", "filename"]),
    ("package", &["package", "repo_name", "repository_name", "max_stars_repo_name", "repo", "repository"]),
    ("language", &["language", "lang", "programming_language"]),
    ("licence", &["licence", "license", "licenses", "max_stars_repo_licenses", "detected_licenses"]),
];

/// One source file of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The whole text.
    pub text: String,
    /// Path inside the package; empty where the set has none.
    pub path: String,
    /// Repository or package; empty where the set has none.
    pub package: String,
    /// As the set names it; empty where it does not.
    pub language: String,
    /// An SPDX expression; a list of licences counts as all of them together; empty where the set has none.
    pub licence: String,
}

/// The user's names of columns, by field; [`FIELDS`] for the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns([Option<String>; FIELDS.len()]);

impl Columns {
    /// Reads `text=body,path=file`.
    ///
    /// # Errors
    /// A field that there is not, with those that there are.
    pub fn parse(pairs: &[String]) -> Result<Columns> {
        let mut columns = Columns::default();
        for pair in pairs {
            let known = FIELDS.map(|(name, _)| name).join(", ");
            let wrong = || Error::Client(format!("--columns {pair:?}: expected FIELD=COLUMN with one of {known}"));
            let (field, column) = pair.split_once('=').filter(|(_, column)| !column.is_empty()).ok_or_else(wrong)?;
            let idx = FIELDS.iter().position(|(name, _)| *name == field).ok_or_else(wrong)?;
            columns.0[idx] = Some(column.to_owned());
        }
        Ok(columns)
    }

    /// The column of each field among `names`, by its index there.
    fn find(&self, path: &Path, names: &[&str]) -> Result<[Option<usize>; FIELDS.len()]> {
        let mut found = [None; FIELDS.len()];
        for (idx, (field, usual)) in FIELDS.iter().enumerate() {
            let position = |wanted: &str| names.iter().position(|name| *name == wanted);
            found[idx] = match &self.0[idx] {
                Some(name) => Some(position(name).ok_or_else(|| absent(path, field, name, names))?),
                None => usual.iter().find_map(|name| position(name)),
            };
        }
        match found[0] {
            Some(_) => Ok(found),
            None => Err(absent(path, "text", &FIELDS[0].1.join("`, `"), names)),
        }
    }
}

fn absent(path: &Path, field: &str, expected: &str, names: &[&str]) -> Error {
    let has = names.join(", ");
    Error::format(path, format!("no column `{expected}` for the {field}; it has {has} (--columns {field}=COLUMN)"))
}

/// The files of a data set: `path` itself, or every Parquet or JSON lines file below it, sorted.
///
/// # Errors
/// A path that is neither, or a folder without such files.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        kind_of(path)?;
        return Ok(vec![path.to_owned()]);
    }
    let all = super::walk::files_of_folder(path)?;
    let files: Vec<PathBuf> = all.into_iter().map(|file| file.path).filter(|path| kind_of(path).is_ok()).collect();
    match files.is_empty() {
        true => Err(Error::format(path, "no .parquet, .jsonl or .jsonl.gz file in this folder")),
        false => Ok(files),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Parquet,
    JsonLines,
}

fn kind_of(path: &Path) -> Result<Kind> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.ends_with(suffix));
    match () {
        () if ends(&[".parquet"]) => Ok(Kind::Parquet),
        () if ends(&[".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"]) => Ok(Kind::JsonLines),
        () => Err(Error::format(path, "expected a .parquet, .jsonl or .jsonl.gz file")),
    }
}

/// An iterator over the rows of one file, in their order; after an error nothing follows.
pub type Records = Box<dyn Iterator<Item = Result<Record>> + Send>;

/// The rows of one file; some of them in memory at a time.
///
/// # Errors
/// A file that is not what its name says, or without a column for the text.
pub fn records(path: &Path, columns: &Columns) -> Result<Records> {
    match kind_of(path)? {
        Kind::Parquet => parquet_records(path, columns),
        Kind::JsonLines => {
            let (path, columns) = (path.to_owned(), columns.clone());
            Ok(until_error(lines::open(&path)?.map(move |line| {
                let (number, line) = line?;
                record_of_json(&path, number, &line, &columns)
            })))
        }
    }
}

/// The same, ended by the first error.
fn until_error(mut records: impl Iterator<Item = Result<Record>> + Send + 'static) -> Records {
    let mut ended = false;
    Box::new(std::iter::from_fn(move || {
        let record = if ended { None } else { records.next() };
        ended |= !matches!(record, Some(Ok(_)));
        record
    }))
}

fn record_of_json(path: &Path, line: usize, text: &str, columns: &Columns) -> Result<Record> {
    let wrong = |message: String| Error::format(path, format!("line {line}: {message}"));
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| wrong(lines::json_error(&error)))?;
    let Some(object) = value.as_object() else { return Err(wrong("expected a JSON object".to_owned())) };
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    let found = columns.find(path, &names).map_err(|error| match error {
        Error::Format { message, .. } => wrong(message),
        other => other,
    })?;
    record_of(found, |idx| match &object[names[idx]] {
        serde_json::Value::Null if Some(idx) != found[0] => Ok(String::new()),
        serde_json::Value::String(text) => Ok(text.clone()),
        serde_json::Value::Array(values) => {
            Ok(values.iter().filter_map(|value| value.as_str()).collect::<Vec<_>>().join(" AND "))
        }
        _ => Err(wrong(format!("{}: expected text", names[idx]))),
    })
}

fn parquet_records(path: &Path, columns: &Columns) -> Result<Records> {
    let wrong = |path: &Path, error: parquet::errors::ParquetError| Error::format(path, error.to_string());
    let file = File::open(path).map_err(Error::io(path))?;
    let reader = SerializedFileReader::new(file).map_err(|error| wrong(path, error))?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let names: Vec<String> = schema.root_schema().get_fields().iter().map(|field| field.name().to_owned()).collect();
    columns.find(path, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let (path, columns) = (path.to_owned(), columns.clone());
    let rows = reader.into_iter().enumerate();
    let record = move |(idx, row): (usize, parquet::errors::Result<parquet::record::Row>)| {
        let wrong = |message: String| Error::format(&path, format!("row {}: {message}", idx + 1));
        let row = row.map_err(|error| wrong(error.to_string()))?;
        let fields: Vec<(&String, &Field)> = row.get_column_iter().collect();
        let found = columns.find(&path, &fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>())?;
        record_of(found, |idx| match fields[idx].1 {
            Field::Null if Some(idx) != found[0] => Ok(String::new()),
            Field::Str(text) => Ok(text.clone()),
            Field::Bytes(bytes) => {
                String::from_utf8(bytes.data().to_vec()).map_err(|error| wrong(format!("{}: {error}", fields[idx].0)))
            }
            Field::ListInternal(list) => Ok(texts_of(list.elements()).join(" AND ")),
            other => Err(wrong(format!("{}: expected text, found {other}", fields[idx].0))),
        })
    };
    Ok(until_error(rows.map(record)))
}

fn texts_of(fields: &[Field]) -> Vec<String> {
    let text = |field: &Field| match field {
        Field::Str(text) => Some(text.clone()),
        _ => None,
    };
    fields.iter().filter_map(text).collect()
}

/// The fields that were found; `value` gives those of a column.
fn record_of(found: [Option<usize>; FIELDS.len()], value: impl Fn(usize) -> Result<String>) -> Result<Record> {
    let mut values: [String; FIELDS.len()] = Default::default();
    for (to, idx) in values.iter_mut().zip(found) {
        *to = idx.map_or_else(|| Ok(String::new()), &value)?;
    }
    let [text, path, package, language, licence] = values;
    Ok(Record { text, path, package, language, licence })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::{Document, write_file};

    fn written(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn error_of(path: &Path, columns: &Columns) -> String {
        match records(path, columns) {
            Err(error) => error.to_string(),
            Ok(records) => records.filter_map(Result::err).map(|error| error.to_string()).collect(),
        }
    }

    #[test]
    fn json_lines_in_the_usual_layouts_are_read() {
        let stack = r#"{"content": "x = 1\n", "max_stars_repo_path": "a.py", "max_stars_repo_name": "me/it", "lang": "Python", "max_stars_repo_licenses": ["MIT", "GPL-3.0"], "size": 6}"#;
        let (_dir, path) = written("a.jsonl", &format!("{stack}\n\n{{\"content\": \"y\", \"path\": null}}\n"));
        let all: Vec<Record> = records(&path, &Columns::default()).unwrap().map(|record| record.unwrap()).collect();
        let text = |s: &str| s.to_owned();
        let first = Record {
            text: text("x = 1\n"),
            path: text("a.py"),
            package: text("me/it"),
            language: text("Python"),
            licence: text("MIT AND GPL-3.0"),
        };
        assert_eq!(all, [first, Record { text: text("y"), ..Record::default() }]);
        let columns = Columns::parse(&[text("text=body")]).unwrap();
        let (_dir, path) = written("b.jsonl", "{\"body\": \"z\", \"content\": \"not this\"}\n");
        assert_eq!(records(&path, &columns).unwrap().next().unwrap().unwrap().text, "z");
    }

    #[test]
    fn code_search_net_gives_whole_functions_under_its_own_names() {
        let of_site = r#"{"repo": "a/b", "path": "c.py", "func_name": "f", "original_string": "def f(): 1", "code": "1", "language": "python"}"#;
        let of_hub = r#"{"repository_name": "a/b", "func_path_in_repository": "c.py", "whole_func_string": "def f(): 1", "func_code_string": "1", "language": "python"}"#;
        let (_dir, path) = written("a.jsonl", &format!("{of_site}\n{of_hub}\n"));
        let all: Vec<Record> = records(&path, &Columns::default()).unwrap().map(|record| record.unwrap()).collect();
        let named =
            |record: &Record| [&record.package, &record.path, &record.text, &record.language].map(String::clone);
        assert_eq!(named(&all[0]), ["a/b", "c.py", "def f(): 1", "python"]);
        assert_eq!(all[0], all[1]);
    }

    #[test]
    fn what_is_no_such_row_is_named_with_file_and_row() {
        let (_dir, path) =
            written("a.jsonl", "{\"content\": \"x\"}\n{\"content\": 7}\n{\"content\": \"never read\"}\n");
        let error = error_of(&path, &Columns::default());
        assert!(error.ends_with("a.jsonl: line 2: content: expected text"), "{error}");
        let (_dir, path) = written("b.jsonl", "{\"body\": \"x\", \"n\": 1}\n");
        let error = error_of(&path, &Columns::default());
        assert!(
            error.contains("line 1: no column `content`") && error.contains("it has body, n (--columns"),
            "{error}"
        );
        let (_dir, path) = written("c.jsonl", "[1]\n");
        assert!(error_of(&path, &Columns::default()).ends_with("line 1: expected a JSON object"));
        let (_dir, path) = written("g.jsonl", "{\"content\": \"x\"}\n{\"content\": null}\n");
        assert!(error_of(&path, &Columns::default()).ends_with("line 2: content: expected text"));
        let (_dir, path) = written("h.jsonl", "{\"content\": \"x\"}\n{content: 1}\n");
        let error = error_of(&path, &Columns::default());
        assert!(error.ends_with("h.jsonl: line 2: column 2: key must be a string"), "{error}");
        let (_dir, path) = written("d.jsonl.gz", "this is no gzip\n");
        assert!(error_of(&path, &Columns::default()).contains("expected a whole gzip file"));
        let (_dir, path) = written("e.parquet", "this is no Parquet\n");
        assert!(error_of(&path, &Columns::default()).contains("e.parquet: "));
        let (_dir, path) = written("f.csv", "a,b\n");
        assert!(error_of(&path, &Columns::default()).contains("expected a .parquet, .jsonl or .jsonl.gz file"));
        assert!(files(path.parent().unwrap()).unwrap_err().to_string().contains("no .parquet, .jsonl"));
        for wrong in ["txt=a", "text", "text="] {
            let error = Columns::parse(&[wrong.to_owned()]).unwrap_err().to_string();
            assert!(error.contains("text, path, package, language, licence"), "{error}");
        }
    }

    #[test]
    fn a_row_of_parquet_that_holds_no_text_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let schema = parquet::schema::parser::parse_message_type("message m { required binary content; }").unwrap();
        let file = File::create(&path).unwrap();
        let mut writer =
            parquet::file::writer::SerializedFileWriter::new(file, schema.into(), Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values = [&b"x = 1"[..], b"caf\xe9", b"y"].map(|value| parquet::data_type::ByteArray::from(value.to_vec()));
        column.typed::<parquet::data_type::ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let error = error_of(&path, &Columns::default());
        assert!(error.contains("a.parquet: row 2: content: incomplete utf-8"), "{error}");
    }

    #[test]
    fn parquet_is_read_by_the_names_of_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let document = |n: usize| Document {
            text: format!("x = {n}\n"),
            path: format!("{n}.py"),
            package: "it-1.0".to_owned(),
            language: "python".to_owned(),
            licence: "MIT".to_owned(),
            ..Document::default()
        };
        write_file(&path, (0..3).map(|n| Ok::<_, Error>(document(n)))).unwrap();
        let all: Vec<Record> = records(&path, &Columns::default()).unwrap().map(|record| record.unwrap()).collect();
        assert_eq!((all.len(), all[2].text.as_str(), all[2].path.as_str()), (3, "x = 2\n", "2.py"));
        assert_eq!((all[0].package.as_str(), all[0].licence.as_str()), ("it-1.0", "MIT"));
        let error = error_of(&path, &Columns::parse(&["text=body".to_owned()]).unwrap());
        assert!(error.contains("no column `body` for the text; it has text, language, path"), "{error}");
        assert_eq!(files(dir.path()).unwrap(), [path]);
    }
}
