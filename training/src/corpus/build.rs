//! Building: stage every input, then judge all files together (benchmarks, duplicates across splits, budgets), then
//! write the shards. The same inputs give the same shards, byte for byte.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use super::budget::{divide_by_module, fill_level, repository, split_of_repository, taking_order};
use super::decontaminate::Benchmarks;
use super::dedup::{Candidate, duplicates};
use super::filter::Drop;
use super::input::{Input, Inputs};
use super::manifest::{Manifest, Split};
use super::minhash::Signature;
use super::report::{REPORT_NAME, Report};
use super::stage::{self, StageOptions, Staged};
use super::{Error, Result};
use crate::data::shard::{Document, INCOMPLETE_NAME, ShardReader, ShardWriter};

/// What a build is asked for.
pub struct BuildOptions {
    /// Folder of the shards: `OUT/<split>/<language>-NNNN.parquet` and `OUT/report.json`.
    pub out: PathBuf,
    /// Folder of what is kept between builds.
    pub stage: PathBuf,
    /// Cap on a language's test text, bytes.
    pub test_bytes: u64,
    /// Cap on a language's validation text, bytes.
    pub valid_bytes: u64,
    /// Cap on a language's training text where the manifest gives none, bytes.
    pub default_train_bytes: u64,
    /// Folder of benchmarks whose passages must not be in the corpus.
    pub benchmarks: Option<PathBuf>,
}

/// A window of a benchmark that so many packages, or so many files, share is boilerplate.
const BOILERPLATE_PACKAGES: usize = 3;
const BOILERPLATE_FILES: usize = 8;

/// One kept file on its way through the second half.
struct Row {
    input_idx: usize,
    /// Row in the staged Parquet file.
    row_idx: usize,
    split: Split,
    drop: Option<Drop>,
}

/// Builds shards from `inputs`.
///
/// # Errors
/// Unreadable inputs, folders not writable, nothing left to write.
pub fn build(inputs: &Inputs, manifest: Option<&Manifest>, options: &BuildOptions) -> Result<Report> {
    fs::create_dir_all(&options.stage).map_err(Error::io(&options.stage))?;
    let budgets: BTreeMap<String, u64> = manifest
        .map(|m| m.language.iter().map(|(name, s)| (name.clone(), (s.budget_mb * 1e6) as u64)).collect())
        .unwrap_or_default();
    let benchmarks = options.benchmarks.as_deref().map(Benchmarks::read).transpose()?.unwrap_or_default();
    let staged = stage_all(inputs, &budgets, options)?;
    let marks = marks(inputs, &benchmarks, options)?;
    let mut rows = split_rows(inputs, &staged);
    drop_benchmarks(&mut rows, &marks);
    drop_duplicates(&mut rows, &staged, &marks);
    drop_over_budget(&mut rows, &staged, &budgets, options);
    let report = report_of(inputs, &staged, &rows);
    if rows.iter().all(|row| row.drop.is_some()) {
        return Err(Error::format(&options.out, "no file is left; expected some source in the listed languages"));
    }
    let part = write_shards(&rows, inputs, &staged, options)?;
    take_place(&part, options, &report)?;
    Ok(report)
}

/// Does `work` for every item on all cores, under a progress bar; results in the order of the items.
fn with_bar<T: Sync, R: Send>(items: &[T], what: &str, work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let template = format!("{what:8} {{bar:30}} {{pos}}/{{len}} {{elapsed}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(items.len() as u64).with_style(style);
    let counted = |item: &T| {
        let result = work(item);
        bar.inc(1);
        result
    };
    let results = items.par_iter().with_max_len(1).map(counted).collect();
    bar.finish_and_clear();
    results
}

fn stage_all(inputs: &Inputs, budgets: &BTreeMap<String, u64>, options: &BuildOptions) -> Result<Vec<Staged>> {
    // Half as much again as the caps together: duplicates and benchmarks still take their part.
    let limit = |budget: u64| (budget + options.test_bytes + options.valid_bytes).saturating_mul(3) / 2;
    let limits = budgets.iter().map(|(name, budget)| (name.clone(), limit(*budget))).collect();
    let stage_options =
        StageOptions { folder: &options.stage, limits: &limits, default_limit: limit(options.default_train_bytes) };
    let stage_one = |input: &Input| stage::stage(input, &stage_options);
    with_bar(&inputs.usable, "filter", stage_one)
}

fn split_rows(inputs: &Inputs, staged: &[Staged]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (input_idx, (input, staged)) in inputs.usable.iter().zip(staged).enumerate() {
        let splits = match input.split.whole() {
            Some(split) => vec![split; staged.files.len()],
            // A repository may have rows in several files of a data set: its split must follow from its name alone.
            None if input.columns.is_some() => {
                staged.files.iter().map(|f| split_of_repository(repository(&f.path, &input.package))).collect()
            }
            None => {
                let files: Vec<(&str, u64)> = staged.files.iter().map(|f| (f.path.as_str(), f.bytes)).collect();
                divide_by_module(&files)
            }
        };
        let new = splits.into_iter().enumerate();
        rows.extend(new.map(|(row_idx, split)| Row { input_idx, row_idx, split, drop: None }));
    }
    // Order of preference among duplicates: by split, then by input and path.
    rows.sort_by_key(|row| (row.split, row.input_idx, row.row_idx));
    rows
}

/// What the comparison needs of a text.
struct Mark {
    signature: Signature,
    /// Windows shared with a benchmark.
    hits: Vec<u64>,
}

/// The marks of every staged file, by input and row.
fn marks(inputs: &Inputs, benchmarks: &Benchmarks, options: &BuildOptions) -> Result<Vec<Vec<Mark>>> {
    let of_text = |text: &str| Mark { signature: Signature::of(text), hits: benchmarks.hits(text) };
    with_bar(&inputs.usable, "compare", |input| {
        documents(input, options)?.map(|document| Ok(of_text(&document?.text))).collect()
    })
}

fn drop_benchmarks(rows: &mut [Row], marks: &[Vec<Mark>]) {
    let mut found_in: HashMap<u64, (HashSet<usize>, usize)> = HashMap::new();
    for (input_idx, marks) in marks.iter().enumerate() {
        for hit in marks.iter().flat_map(|mark| &mark.hits) {
            let (packages, n_files) = found_in.entry(*hit).or_default();
            packages.insert(input_idx);
            *n_files += 1;
        }
    }
    let tells = |hit: &u64| {
        found_in.get(hit).is_some_and(|(packages, n)| packages.len() < BOILERPLATE_PACKAGES && *n < BOILERPLATE_FILES)
    };
    for row in rows {
        if marks[row.input_idx][row.row_idx].hits.iter().any(tells) {
            row.drop = Some(Drop::Benchmark);
        }
    }
}

fn drop_duplicates(rows: &mut [Row], staged: &[Staged], marks: &[Vec<Mark>]) {
    let left: Vec<usize> = (0..rows.len()).filter(|&rank| rows[rank].drop.is_none()).collect();
    let candidate = |&rank: &usize| {
        let row = &rows[rank];
        let text_hash = &staged[row.input_idx].files[row.row_idx].text_hash;
        Candidate {
            rank,
            text_hash: u128::from_str_radix(text_hash, 16).unwrap_or_default(),
            signature: marks[row.input_idx][row.row_idx].signature.clone(),
        }
    };
    let candidates: Vec<Candidate> = left.iter().map(candidate).collect();
    for (rank, removal) in left.into_iter().zip(duplicates(&candidates)) {
        rows[rank].drop = removal.map(|removal| removal.reason);
    }
}

fn documents(input: &Input, options: &BuildOptions) -> Result<impl Iterator<Item = Result<Document>> + use<>> {
    let reader = ShardReader::open(&stage::parquet_path(&options.stage, input))?;
    Ok(reader.map(|document| document.map_err(Error::from)))
}

/// Per language and split: packages share the cap evenly; inside a package code goes before tests.
fn drop_over_budget(rows: &mut [Row], staged: &[Staged], budgets: &BTreeMap<String, u64>, options: &BuildOptions) {
    let mut groups: BTreeMap<(String, Split), BTreeMap<usize, Vec<usize>>> = BTreeMap::new();
    for (rank, row) in rows.iter().enumerate().filter(|(_, row)| row.drop.is_none()) {
        let language = staged[row.input_idx].files[row.row_idx].language.clone();
        groups.entry((language, row.split)).or_default().entry(row.input_idx).or_default().push(rank);
    }
    for ((language, split), packages) in groups {
        let cap = match split {
            Split::Test => options.test_bytes,
            Split::Valid => options.valid_bytes,
            Split::Train => budgets.get(&language).copied().unwrap_or(options.default_train_bytes),
        };
        let bytes = |rank: usize| staged[rows[rank].input_idx].files[rows[rank].row_idx].bytes;
        let sizes: Vec<u64> = packages.values().map(|ranks| ranks.iter().map(|&rank| bytes(rank)).sum()).collect();
        let level = fill_level(&sizes, cap);
        for ranks in packages.into_values() {
            let over = ranks_over(ranks, level, rows, staged);
            over.into_iter().for_each(|rank| rows[rank].drop = Some(Drop::OverBudget));
        }
    }
}

/// The ranks that no longer fit under `level` bytes.
fn ranks_over(mut ranks: Vec<usize>, level: u64, rows: &[Row], staged: &[Staged]) -> Vec<usize> {
    let file = |rank: usize| &staged[rows[rank].input_idx].files[rows[rank].row_idx];
    ranks.sort_by_cached_key(|&rank| (taking_order(&file(rank).path), rank));
    let mut taken = 0;
    ranks.retain(|&rank| {
        let fits = taken + file(rank).bytes <= level;
        taken += if fits { file(rank).bytes } else { 0 };
        !fits
    });
    ranks
}

fn report_of(inputs: &Inputs, staged: &[Staged], rows: &[Row]) -> Report {
    let mut report = Report::new(inputs, staged);
    for row in rows {
        let file = &staged[row.input_idx].files[row.row_idx];
        match row.drop {
            Some(reason) => report.add_drop(&file.language, reason, file.bytes),
            None => report.add_kept(&inputs.usable[row.input_idx], row.split, &file.language, file.bytes),
        }
    }
    report
}

/// Writes beside the old shards, in the folder that is returned.
fn write_shards(rows: &[Row], inputs: &Inputs, staged: &[Staged], options: &BuildOptions) -> Result<PathBuf> {
    let part = options.out.join(".part");
    if part.exists() {
        fs::remove_dir_all(&part).map_err(Error::io(&part))?;
    }
    let mut split_of: Vec<Vec<Option<Split>>> = staged.iter().map(|s| vec![None; s.files.len()]).collect();
    for row in rows.iter().filter(|row| row.drop.is_none()) {
        split_of[row.input_idx][row.row_idx] = Some(row.split);
    }
    let languages: HashSet<&str> = staged.iter().flat_map(|s| &s.files).map(|f| f.language.as_str()).collect();
    let mut languages: Vec<&str> = languages.into_iter().collect();
    languages.sort_unstable();
    with_bar(&languages, "write", |language| write_language(language, &split_of, inputs, staged, options, &part))?;
    Ok(part)
}

/// Puts the shards of `part` and then the report in the place of the old ones. Readers refuse the folder meanwhile, and for good if
/// this is ended on the way.
fn take_place(part: &Path, options: &BuildOptions, report: &Report) -> Result<()> {
    let marker = options.out.join(INCOMPLETE_NAME);
    fs::write(&marker, "").map_err(Error::io(&marker))?;
    let old_report = options.out.join(REPORT_NAME);
    if old_report.exists() {
        fs::remove_file(&old_report).map_err(Error::io(&old_report))?;
    }
    for split in Split::ALL {
        let (new, old) = (part.join(split.name()), options.out.join(split.name()));
        if old.exists() {
            fs::remove_dir_all(&old).map_err(Error::io(&old))?;
        }
        if new.exists() {
            fs::rename(&new, &old).map_err(Error::io(&old))?;
        }
    }
    fs::remove_dir_all(part).map_err(Error::io(part))?;
    report.write(&options.out)?;
    fs::remove_file(&marker).map_err(Error::io(&marker))
}

fn write_language(
    language: &str,
    split_of: &[Vec<Option<Split>>],
    inputs: &Inputs,
    staged: &[Staged],
    options: &BuildOptions,
    part: &Path,
) -> Result<()> {
    let mut writers: BTreeMap<Split, ShardWriter> = BTreeMap::new();
    for (input_idx, input) in inputs.usable.iter().enumerate() {
        let files = &staged[input_idx].files;
        let wanted = |idx: usize| split_of[input_idx][idx].filter(|_| files[idx].language == language);
        if !(0..files.len()).any(|idx| wanted(idx).is_some()) {
            continue;
        }
        for (idx, document) in documents(input, options)?.enumerate() {
            let Some(split) = wanted(idx) else { continue };
            let document = Document { split: split.name().to_owned(), ..document? };
            let writer = match writers.entry(split) {
                Entry::Occupied(slot) => slot.into_mut(),
                Entry::Vacant(slot) => slot.insert(ShardWriter::create(part, split.name(), language)?),
            };
            writer.push(document)?;
        }
    }
    writers.into_values().try_for_each(|writer| writer.finish().map(|_| ()).map_err(Error::from))
}
