//! Kept files on their way to a stage file, ordered, in bounded memory: many of them become sorted runs on disk that are merged
//! at the end.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use multicoder_grammars::LanguageId;

use super::judge::KeptFile;
use super::minhash::Signature;
use super::order::imports_first;
use super::stage::StagedFile;
use super::{Error, Result};
use crate::data::shard::{ShardReader, write_file};

/// Bytes of text that one input holds in memory.
pub(super) const HELD_BYTES: u64 = 128 << 20;

/// Takes files in any order and writes them ordered: by path, and, while all of an input fits in memory, the files of a package
/// with imports before their users.
pub(super) struct Spill {
    parquet: PathBuf,
    held: Vec<KeptFile>,
    held_bytes: u64,
    max_held_bytes: u64,
    runs: Vec<Run>,
}

/// A sorted part on disk.
struct Run {
    path: PathBuf,
    files: Vec<StagedFile>,
}

impl Spill {
    /// A spill that will write `parquet`, and runs beside it.
    pub(super) fn new(parquet: &Path, max_held_bytes: u64) -> Self {
        Self { parquet: parquet.to_owned(), held: Vec::new(), held_bytes: 0, max_held_bytes, runs: Vec::new() }
    }

    /// Takes one file.
    pub(super) fn push(&mut self, kept: KeptFile) -> Result<()> {
        self.held_bytes += kept.file.bytes;
        self.held.push(kept);
        if self.held_bytes < self.max_held_bytes {
            return Ok(());
        }
        let path = self.parquet.with_extension(format!("run-{}.parquet", self.runs.len()));
        let mut held = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        held.sort_by(|a, b| a.file.path.cmp(&b.file.path));
        let files = write(&path, held.into_iter().map(Ok))?;
        self.runs.push(Run { path, files });
        Ok(())
    }

    /// Writes everything; the answer is in the order of the rows.
    pub(super) fn finish(mut self) -> Result<Vec<StagedFile>> {
        self.held.sort_by(|a, b| a.file.path.cmp(&b.file.path));
        if self.runs.is_empty() {
            return write(&self.parquet, users_last(self.held).into_iter().map(Ok));
        }
        let mut readers = self.runs.iter_mut().map(RunReader::open).collect::<Result<Vec<_>>>()?;
        let mut rest = self.held.into_iter().peekable();
        let merged = std::iter::from_fn(|| {
            let run_idx = (0..readers.len()).filter(|&idx| readers[idx].path().is_some());
            let run_idx = run_idx.min_by(|&a, &b| readers[a].path().cmp(&readers[b].path()));
            let of_run = run_idx.and_then(|idx| readers[idx].path());
            match (of_run, rest.peek()) {
                (Some(path), Some(held)) if held.file.path.as_str() < path => rest.next().map(Ok),
                (Some(_), _) => run_idx.and_then(|idx| readers[idx].next()),
                (None, _) => rest.next().map(Ok),
            }
        });
        let files = write(&self.parquet, merged)?;
        for run in &self.runs {
            for path in [&run.path, &signatures_path(&run.path)] {
                fs::remove_file(path).map_err(Error::io(path))?;
            }
        }
        Ok(files)
    }
}

/// The files of each package, which lie together, with imports before their users.
fn users_last(files: Vec<KeptFile>) -> Vec<KeptFile> {
    let mut ordered = Vec::with_capacity(files.len());
    let mut files = files.into_iter().peekable();
    while let Some(first) = files.next() {
        let mut package = vec![first];
        while let Some(next) = files.next_if(|next| next.document.package == package[0].document.package) {
            package.push(next);
        }
        let described: Option<Vec<(&str, &str, LanguageId)>> = package.iter().map(description).collect();
        let order = described.map_or_else(|| (0..package.len()).collect(), |described| imports_first(&described));
        let mut package: Vec<Option<KeptFile>> = package.into_iter().map(Some).collect();
        ordered.extend(order.into_iter().filter_map(|idx| package[idx].take()));
    }
    ordered
}

fn description(kept: &KeptFile) -> Option<(&str, &str, LanguageId)> {
    Some((&kept.document.path, &kept.document.text, LanguageId::by_name(&kept.file.language)?))
}

/// Path of the signatures of a stage file.
pub(super) fn signatures_path(parquet: &Path) -> PathBuf {
    parquet.with_extension("minhash")
}

fn write(parquet: &Path, files: impl Iterator<Item = Result<KeptFile>>) -> Result<Vec<StagedFile>> {
    let path = signatures_path(parquet);
    let mut signatures = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
    let mut staged = Vec::new();
    let documents = files.map(|kept| {
        let KeptFile { file, document, signature, .. } = kept?;
        signature.write(&mut signatures).map_err(Error::io(&path))?;
        staged.push(file);
        Ok::<_, Error>(document)
    });
    write_file(parquet, documents)?;
    signatures.flush().map_err(Error::io(&path))?;
    Ok(staged)
}

/// The files of a run, one in hand.
struct RunReader {
    files: std::vec::IntoIter<StagedFile>,
    documents: ShardReader,
    signatures: BufReader<File>,
    path: PathBuf,
}

impl RunReader {
    fn open(run: &mut Run) -> Result<Self> {
        let path = signatures_path(&run.path);
        Ok(Self {
            files: std::mem::take(&mut run.files).into_iter(),
            documents: ShardReader::open(&run.path)?,
            signatures: BufReader::new(File::open(&path).map_err(Error::io(&path))?),
            path,
        })
    }

    /// Path of the next file.
    fn path(&self) -> Option<&str> {
        self.files.as_slice().first().map(|file| file.path.as_str())
    }

    fn next(&mut self) -> Option<Result<KeptFile>> {
        let file = self.files.next()?;
        let document = self.documents.next()?;
        let signature = Signature::read(&mut self.signatures).map_err(Error::io(&self.path));
        Some(signature.and_then(|signature| Ok(KeptFile { file, document: document?, signature, masked: false })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shard::Document;

    fn kept(n: usize) -> KeptFile {
        let text = format!("value_{n} = {n}\n").repeat(30);
        let file = StagedFile {
            path: format!("src/{:04}.py", n * 37 % 101),
            language: "python".to_owned(),
            bytes: text.len() as u64,
            text_hash: n as u128,
            hits: Box::default(),
        };
        let signature = Signature::of(&text);
        let path = file.path.clone();
        KeptFile { file, document: Document { text, path, ..Document::default() }, signature, masked: false }
    }

    fn spilled(max_held_bytes: u64) -> (Vec<String>, Vec<Document>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let parquet = dir.path().join("it.parquet");
        let mut spill = Spill::new(&parquet, max_held_bytes);
        (0..101).for_each(|n| spill.push(kept(n)).unwrap());
        let files = spill.finish().unwrap();
        let documents = ShardReader::open(&parquet).unwrap().map(|document| document.unwrap()).collect();
        let signatures = fs::read(signatures_path(&parquet)).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "runs are removed");
        (files.into_iter().map(|file| file.path).collect(), documents, signatures)
    }

    #[test]
    fn imports_come_before_their_users_within_a_package() {
        let file = |package: &str, path: &str, text: &str| {
            let mut kept = kept(1);
            kept.file.path = format!("{package}/{path}");
            kept.document =
                Document { text: text.into(), path: path.into(), package: package.into(), ..Document::default() };
            kept
        };
        let files = vec![
            file("one", "one/app.py", "from one.shapes import Circle\n"),
            file("one", "one/shapes.py", "class Circle:\n    pass\n"),
            file("two", "two/a.py", "import two.b\n"),
            file("two", "two/b.py", "x = 1\n"),
        ];
        let order: Vec<String> = users_last(files).into_iter().map(|kept| kept.document.path).collect();
        assert_eq!(order, ["one/shapes.py", "one/app.py", "two/b.py", "two/a.py"]);
    }

    #[test]
    fn runs_on_disk_give_what_memory_gives() {
        let in_memory = spilled(u64::MAX);
        assert!(in_memory.0.is_sorted() && in_memory.0.len() == 101);
        assert!(in_memory.1.iter().map(|document| &document.path).eq(&in_memory.0));
        for max_held_bytes in [1, 1000, 6000, 20_000] {
            assert!(spilled(max_held_bytes) == in_memory, "{max_held_bytes} bytes held");
        }
    }
}
