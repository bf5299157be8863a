//! A corpus with planted duplicates: found, written without them, and the same by every engine.

use super::*;

/// Words of a text of its own, by number.
fn words(base: usize, range: std::ops::Range<usize>) -> String {
    range.map(|n| format!("{:x} ", xxhash_rust::xxh3::xxh3_64(format!("{base} {n}").as_bytes()))).collect()
}

/// Texts of one kind: alone, copies, a near copy, a chain whose ends are unlike, copies and near copies, a pair about the threshold.
fn family(base: usize) -> Vec<String> {
    let window = |start: usize| words(base, start..start + 400);
    match base % 6 {
        0 => vec![window(0)],
        1 => vec![window(0); 3],
        2 => vec![window(0), window(20)],
        3 => (0..5).map(|n| window(45 * n)).collect(),
        4 => vec![window(0), window(15), window(0), window(15)],
        _ => vec![window(0), window(62 + base % 17)],
    }
}

/// Two folders of shards: 80 families over splits, languages and packages, in no order, and rows that are equal in everything.
fn planted(root: &Path) -> Vec<PathBuf> {
    let texts: Vec<String> = (0..80).flat_map(family).chain(["".to_owned(), "+ -".to_owned()]).collect();
    let dirs = vec![root.join("a"), root.join("b")];
    let order = crate::rng::Rng::keyed(0, "planted duplicates", &[]).permutation(texts.len());
    for (dir_idx, dir) in dirs.iter().enumerate() {
        for (split, language) in
            Split::ALL.iter().flat_map(|split| ["c", "rust"].map(|language| (split.name(), language)))
        {
            let mut writer = ShardWriter::create(dir, split, language).unwrap();
            for idx in order.iter().map(|idx| *idx as usize) {
                let here = idx % 3 == Split::ALL.iter().position(|known| known.name() == split).unwrap();
                // The middle fifth is in both folders, the same or in another package.
                let twice = (texts.len() * 2 / 5..texts.len() * 3 / 5).contains(&idx);
                if here
                    && (idx / 3 % 2 == 0) == (language == "c")
                    && (twice || (idx < texts.len() / 2) == (dir_idx == 0))
                {
                    writer.push(row(idx, dir_idx, split, language, &texts[idx])).unwrap();
                }
            }
            writer.finish().unwrap();
        }
    }
    dirs
}

fn row(idx: usize, dir_idx: usize, split: &str, language: &str, text: &str) -> Document {
    Document {
        text: text.to_owned(),
        language: language.to_owned(),
        path: format!("src/{}.x", idx * 7 % 10),
        package: format!("package-{}", if idx.is_multiple_of(2) { idx % 5 } else { dir_idx }),
        source: "folder".to_owned(),
        licence: "MIT".to_owned(),
        split: split.to_owned(),
    }
}

fn rows_of(dirs: &[PathBuf]) -> Vec<Document> {
    let shards = shards_of(dirs).unwrap();
    let paths = shards.iter().flat_map(|(_, paths)| paths);
    paths.flat_map(|path| ShardReader::open(path).unwrap().map(|document| document.unwrap())).collect()
}

/// What `dedup` says of every row, with the path of the row that stays.
fn expected(rows: &[Document]) -> Vec<Option<(Drop, String)>> {
    let described: Vec<(String, u128, Signature)> = rows.iter().map(described).collect();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|&a, &b| described[a].0.cmp(&described[b].0));
    let mut rank_of = vec![0; rows.len()];
    order.iter().enumerate().for_each(|(rank, &idx)| rank_of[idx] = rank);
    let candidate = |(idx, (_, text_hash, signature)): (usize, &(String, u128, Signature))| {
        let bands = signature.bands();
        Candidate { rank: rank_of[idx], text_hash: *text_hash, bands }
    };
    let candidates: Vec<Candidate> = described.iter().enumerate().map(candidate).collect();
    let similar = |a: usize, b: usize| Ok(described[a].2.similarity(&described[b].2) >= THRESHOLD);
    let of = |removal: Removal| {
        let kept = &rows[removal.kept];
        (removal.reason, format!("{} {} {}", kept.split, kept.package, kept.path))
    };
    duplicates(&candidates, similar).unwrap().into_iter().map(|removal| removal.map(of)).collect()
}

/// What becomes of every row with the duplicates that an engine found.
fn judged(rows: &[Document], found: &Duplicates) -> Vec<Option<(Drop, String)>> {
    let mut seen = HashSet::new();
    let judge = |document| judge(document, found, &mut seen).map(|dropped| (dropped.reason, dropped.kept.join(" ")));
    rows.iter().map(judge).collect()
}

#[test]
fn every_row_is_judged_as_by_the_build() {
    let root = tempfile::tempdir().unwrap();
    let dirs = planted(root.path());
    let rows = rows_of(&dirs);
    let (expected, judged) = (expected(&rows), judged(&rows, &find(&dirs).unwrap()));
    assert_eq!(judged, expected);
    let n = |reason| expected.iter().flatten().filter(|(dropped, _)| *dropped == reason).count();
    let planted = (rows.len(), n(Drop::ExactDuplicate), n(Drop::NearDuplicate));
    assert!(planted.0 > 200 && planted.1 > 50 && planted.2 > 50, "the planting is thin: {planted:?}");
}

#[test]
fn what_is_written_has_no_duplicates_and_the_counts_add_up() {
    let root = tempfile::tempdir().unwrap();
    let dirs = planted(root.path());
    let out = root.path().join("out");
    let counts = write(&dirs, &out, &find(&dirs).unwrap()).unwrap();
    let lines = fs::read_to_string(out.join(DROPPED_NAME)).unwrap();
    let n_dropped = counts.n_dropped(Drop::ExactDuplicate).files + counts.n_dropped(Drop::NearDuplicate).files;
    let outs = [out];
    assert_eq!(counts.n_kept().files as usize, rows_of(&outs).len());
    assert_eq!((counts.n_kept().files + n_dropped) as usize, rows_of(&dirs).len());
    assert_eq!(lines.lines().count() as u64, n_dropped);
    assert_eq!(find(&outs).unwrap(), Duplicates::default());
    let error = write(&dirs, &outs[0], &Duplicates::default()).unwrap_err().to_string();
    assert!(error.contains("expected a folder without any"), "{error}");
}

#[test]
fn a_removal_that_was_ended_by_force_is_done_again() {
    let root = tempfile::tempdir().unwrap();
    let (dirs, out) = (planted(root.path()), root.path().join("out"));
    let duplicates = find(&dirs).unwrap();
    let counts = write(&dirs, &out, &duplicates).unwrap();
    let expected = rows_of(std::slice::from_ref(&out));
    fs::write(out.join(INCOMPLETE_NAME), "").unwrap();
    fs::write(out.join("train/rust-0000.parquet"), "the beginning of a shard").unwrap();
    assert_eq!(write(&dirs, &out, &duplicates).unwrap(), counts);
    assert_eq!(rows_of(&[out]), expected);
}

#[test]
fn what_is_no_such_shard_is_named() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let error = find(std::slice::from_ref(&dir)).unwrap_err().to_string();
    assert!(error.contains("no shards of split `train`"), "{error}");
    let mut writer = ShardWriter::create(&dir, "valid", "rust").unwrap();
    writer.push(row(1, 0, "train", "rust", "let x = 1;")).unwrap();
    writer.finish().unwrap();
    let out = root.path().join("out");
    let error = write(std::slice::from_ref(&dir), &out, &Duplicates::default()).unwrap_err().to_string();
    assert!(error.contains("split \"train\", expected \"valid\""), "{error}");
    fs::write(dir.join("valid/rust-0001.parquet"), "no Parquet").unwrap();
    let error = find(&[dir]).unwrap_err().to_string();
    assert!(error.contains("rust-0001.parquet: "), "{error}");
}

#[cfg(feature = "datafusion")]
mod by_plans {
    use super::*;
    use crate::corpus::fusion;

    /// Everything below a folder, by path.
    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = crate::corpus::walk::files_of_folder(dir).unwrap();
        files
            .into_iter()
            .map(|file| (file.path.strip_prefix(dir).unwrap().to_owned(), fs::read(&file.path).unwrap()))
            .collect()
    }

    #[test]
    fn plans_find_what_memory_finds_and_the_bytes_written_are_equal() {
        let root = tempfile::tempdir().unwrap();
        let dirs = planted(root.path());
        let (memory, plans) = (find(&dirs).unwrap(), fusion::find_here(&dirs, &root.path().join("work")).unwrap());
        assert_eq!(plans, memory);
        let rows = rows_of(&dirs);
        assert_eq!(judged(&rows, &plans), expected(&rows));
        let outs = [root.path().join("memory"), root.path().join("plans")];
        write(&dirs, &outs[0], &memory).unwrap();
        write(&dirs, &outs[1], &plans).unwrap();
        let [a, b] = outs.each_ref().map(|out| contents(out));
        assert!(a.len() >= 8 && a == b, "{:?} and {:?}", a.keys(), b.keys());
    }
}
