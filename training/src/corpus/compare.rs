//! Duplicates among all staged files. Of each file its bands are in memory, its signature lies in one file on disk.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::build::Row;
use super::dedup::{Candidate, duplicates};
use super::input::Input;
use super::minhash::{SIGNATURE_BYTES, Signature, THRESHOLD};
use super::stage::{self, Staged};
use super::{Error, Result};

/// Marks the duplicates among `rows` that are not dropped yet; rows are in the order of preference.
///
/// # Errors
/// Signatures that cannot be read, or be gathered in `folder`.
pub(super) fn drop_duplicates(rows: &mut [Row], inputs: &[Input], staged: &[Staged], folder: &Path) -> Result<()> {
    let mut first_row = Vec::with_capacity(staged.len());
    let mut n_files = 0;
    for staged in staged {
        first_row.push(n_files);
        n_files += staged.files.len();
    }
    let mut signatures = Signatures::gather(inputs, staged, folder)?;
    let left: Vec<usize> = (0..rows.len()).filter(|&rank| rows[rank].drop.is_none()).collect();
    let place = |rank: usize| first_row[rows[rank].input_idx] + rows[rank].row_idx;
    let candidate = |&rank: &usize| Candidate {
        rank,
        text_hash: staged[rows[rank].input_idx].files[rows[rank].row_idx].text_hash,
        bands: signatures.bands[place(rank)],
    };
    let candidates: Vec<Candidate> = left.iter().map(candidate).collect();
    let places: Vec<usize> = left.iter().map(|&rank| place(rank)).collect();
    signatures.bands = Vec::new();
    let removals = duplicates(&candidates, |a, b| {
        Ok(signatures.at(places[a])?.similarity(&signatures.at(places[b])?) >= THRESHOLD)
    })?;
    for (rank, removal) in left.into_iter().zip(removals) {
        rows[rank].drop = removal.map(|removal| removal.reason);
    }
    signatures.remove()
}

/// The signatures of all staged files, one after the other in a file.
struct Signatures {
    path: PathBuf,
    file: File,
    bands: Vec<[u64; super::minhash::N_BANDS]>,
}

impl Signatures {
    fn gather(inputs: &[Input], staged: &[Staged], folder: &Path) -> Result<Self> {
        let path = folder.join("signatures.part");
        let mut all = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
        let mut bands = Vec::with_capacity(staged.iter().map(|staged| staged.files.len()).sum());
        for (input, staged) in inputs.iter().zip(staged) {
            let from = stage::minhash_path(folder, input);
            let mut reader = BufReader::new(File::open(&from).map_err(Error::io(&from))?);
            for _ in &staged.files {
                let signature = Signature::read(&mut reader).map_err(Error::io(&from))?;
                signature.write(&mut all).map_err(Error::io(&path))?;
                bands.push(signature.bands());
            }
        }
        all.flush().map_err(Error::io(&path))?;
        let file = File::open(&path).map_err(Error::io(&path))?;
        Ok(Self { path, file, bands })
    }

    fn at(&mut self, place: usize) -> Result<Signature> {
        let mut bytes = [0; SIGNATURE_BYTES];
        let begin = SeekFrom::Start((place * SIGNATURE_BYTES) as u64);
        let read = self.file.seek(begin).and_then(|_| self.file.read_exact(&mut bytes));
        read.and_then(|()| Signature::read(&mut bytes.as_slice())).map_err(Error::io(&self.path))
    }

    fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(Error::io(&self.path))
    }
}
