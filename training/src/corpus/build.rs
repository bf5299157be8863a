//! Building: stage every input, then judge all files together (benchmarks, duplicates across splits, budgets), then
//! write the shards. The same inputs give the same shards, byte for byte.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::PathBuf;

use super::budget::{divide_by_module, fill_level, repository, split_of_repository, taking_order};
use super::compare::drop_duplicates;
use super::filter::Drop;
use super::input::{Input, Inputs};
use super::judge::Rules;
use super::manifest::{Manifest, Split};
use super::progress;
use super::report::Report;
use super::stage::{self, Count, StageOptions, Staged};
use super::stages::{Stage, Stages};
use super::write::{Contents, write};
use super::{Error, Result, hold};

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
    /// What every file is held against.
    pub rules: Rules,
}

/// A window of a benchmark that so many packages, or so many files, share is boilerplate.
const BOILERPLATE_PACKAGES: usize = 3;
const BOILERPLATE_FILES: usize = 8;

/// One kept file on its way through the second half.
pub(super) struct Row {
    pub(super) input_idx: usize,
    /// Row in the staged Parquet file.
    pub(super) row_idx: usize,
    pub(super) split: Split,
    pub(super) drop: Option<Drop>,
}

/// Builds shards from `inputs`. In memory are, for each thread, 128 MiB of text of one input and what a block of its files takes; and
/// about half a kilobyte for every file that the filters keep.
///
/// # Errors
/// Unreadable inputs, folders not writable, nothing left to write.
pub fn build(inputs: &Inputs, manifest: Option<&Manifest>, options: &BuildOptions) -> Result<(Report, Stages)> {
    fs::create_dir_all(&options.stage).map_err(Error::io(&options.stage))?;
    let _held = hold(&options.stage)?;
    let budgets: BTreeMap<String, u64> = manifest
        .map(|m| m.language.iter().map(|(name, s)| (name.clone(), (s.budget_mb * 1e6) as u64)).collect())
        .unwrap_or_default();
    let mut stages = Stages::default();
    let staged = stages.time("filter", |log| stage_all(inputs, &budgets, options, log))?;
    let rows = stages.time("compare", |log| {
        let mut rows = split_rows(inputs, &staged);
        log.n_done = rows.len();
        log.read = left(&rows, &staged);
        drop_benchmarks(&mut rows, &staged);
        drop_duplicates(&mut rows, &inputs.usable, &staged, &options.stage)?;
        drop_over_budget(&mut rows, &staged, &budgets, options);
        log.kept = left(&rows, &staged);
        Ok(rows)
    })?;
    let report = report_of(inputs, &staged, &rows);
    if rows.iter().all(|row| row.drop.is_some()) {
        return Err(Error::format(&options.out, report.why_nothing_is_left()));
    }
    stages.time("write", |log| {
        log.kept = left(&rows, &staged);
        log.read = log.kept;
        write(&Contents::new(&rows, inputs, &staged), options, &report, log)
    })?;
    stages.write(&options.out)?;
    Ok((report, stages))
}

/// Files and bytes that are not dropped.
fn left(rows: &[Row], staged: &[Staged]) -> Count {
    let mut count = Count::default();
    let left = rows.iter().filter(|row| row.drop.is_none());
    left.for_each(|row| count.add(staged[row.input_idx].files[row.row_idx].bytes));
    count
}

fn stage_all(
    inputs: &Inputs,
    budgets: &BTreeMap<String, u64>,
    options: &BuildOptions,
    log: &mut Stage,
) -> Result<Vec<Staged>> {
    // Half as much again as the caps together: duplicates and benchmarks still take their part.
    let limit = |budget: u64| (budget + options.test_bytes + options.valid_bytes).saturating_mul(3) / 2;
    let limits = budgets.iter().map(|(name, budget)| (name.clone(), limit(*budget))).collect();
    let default_limit = limit(options.default_train_bytes);
    let bar = progress::bar(inputs.usable.len(), "filter");
    let (folder, rules) = (&options.stage, &options.rules);
    let stage_options = StageOptions { folder, limits: &limits, default_limit, rules, bar: &bar };
    let staged = progress::in_flight(&inputs.usable, |input: &Input| {
        bar.set_message(input.key.clone());
        let staged = stage::stage(input, &stage_options);
        bar.inc(1);
        staged
    });
    bar.finish_and_clear();
    let staged = staged?;
    for staged in &staged {
        let mut kept = Count::default();
        staged.files.iter().for_each(|file| kept.add(file.bytes));
        log.kept.add_all(kept);
        log.n_reused += usize::from(staged.reused);
        log.n_done += usize::from(!staged.reused);
        if !staged.reused {
            log.read.add_all(kept);
            staged.drops.values().flat_map(BTreeMap::values).for_each(|count| log.read.add_all(*count));
        }
    }
    Ok(staged)
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

fn drop_benchmarks(rows: &mut [Row], staged: &[Staged]) {
    let mut found_in: HashMap<u64, (HashSet<usize>, usize)> = HashMap::new();
    for (input_idx, staged) in staged.iter().enumerate() {
        for hit in staged.files.iter().flat_map(|file| file.hits.iter()) {
            let (packages, n_files) = found_in.entry(*hit).or_default();
            packages.insert(input_idx);
            *n_files += 1;
        }
    }
    let tells = |hit: &u64| {
        found_in.get(hit).is_some_and(|(packages, n)| packages.len() < BOILERPLATE_PACKAGES && *n < BOILERPLATE_FILES)
    };
    for row in rows {
        if staged[row.input_idx].files[row.row_idx].hits.iter().any(tells) {
            row.drop = Some(Drop::Benchmark);
        }
    }
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
