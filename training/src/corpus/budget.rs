//! Shares: how much of each package enters a language's budget, and how one large package is divided into splits.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::manifest::Split;

/// The level at which packages of these sizes are cut so that together they fill `budget`: small packages enter whole,
/// large ones give the same number of bytes each.
pub fn fill_level(sizes: &[u64], budget: u64) -> u64 {
    let mut sorted = sizes.to_vec();
    sorted.sort_unstable();
    let mut left = budget;
    for (idx, &size) in sorted.iter().enumerate() {
        let n_left = (sorted.len() - idx) as u64;
        if size.saturating_mul(n_left) > left {
            return left / n_left;
        }
        left -= size;
    }
    u64::MAX
}

/// Order in which files of a package are taken: code before tests, then by a hash of the path.
pub fn taking_order(path: &str) -> (bool, u64) {
    (super::filter::is_test_material(path), xxh3_64(path.as_bytes()))
}

/// What decides the split of a data set's row: the owner of its repository, or, where rows of `set` name none, the first folder.
pub fn repository<'a>(path: &'a str, set: &str) -> &'a str {
    let inside = path.strip_prefix(set).and_then(|rest| rest.strip_prefix('/')).unwrap_or(path);
    inside.split('/').next().unwrap_or(inside)
}

/// About 8 % of all names are test, 4 % valid.
pub fn split_of_repository(name: &str) -> Split {
    match xxh3_64(name.as_bytes()) % 100 {
        0..8 => Split::Test,
        8..12 => Split::Valid,
        _ => Split::Train,
    }
}

/// Divides one package by module directory: about 8 % of its bytes (1.2 MB at most) to test, 4 % (0.6 MB at most) to
/// valid, whole directories only. `files` are path and bytes; the answer has the same order.
pub fn divide_by_module(files: &[(&str, u64)]) -> Vec<Split> {
    let total: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    let depth = module_depth(files, total);
    let mut modules: BTreeMap<&str, u64> = BTreeMap::new();
    for (path, bytes) in files {
        *modules.entry(module_of(path, depth)).or_default() += bytes;
    }
    let mut order: Vec<(&str, u64)> = modules.iter().map(|(module, bytes)| (*module, *bytes)).collect();
    order.sort_by_key(|(module, _)| xxh3_64(module.as_bytes()));
    let targets = [(Split::Test, (total * 8 / 100).min(1_200_000)), (Split::Valid, (total * 4 / 100).min(600_000))];
    let mut split_of: BTreeMap<&str, Split> = BTreeMap::new();
    for (split, target) in targets {
        let mut taken = 0;
        for (module, bytes) in &order {
            if taken < target && !split_of.contains_key(module) && taken + bytes <= target + target / 2 {
                split_of.insert(module, split);
                taken += bytes;
            }
        }
    }
    files.iter().map(|(path, _)| split_of.get(module_of(path, depth)).copied().unwrap_or(Split::Train)).collect()
}

/// The least depth with a dozen modules, none of them above 30 % of the bytes; else the depth with most modules.
fn module_depth(files: &[(&str, u64)], total: u64) -> usize {
    let mut best = (0, 1);
    for depth in 1..=8 {
        let mut modules: BTreeMap<&str, u64> = BTreeMap::new();
        for (path, bytes) in files {
            *modules.entry(module_of(path, depth)).or_default() += bytes;
        }
        let largest = modules.values().max().copied().unwrap_or(0);
        if modules.len() >= 12 && largest * 10 <= total * 3 {
            return depth;
        }
        best = best.max((modules.len(), usize::MAX - depth));
    }
    usize::MAX - best.1
}

/// The first `depth` folders of a path; a file that lies higher is a module with its folder.
fn module_of(path: &str, depth: usize) -> &str {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    folder.match_indices('/').nth(depth - 1).map_or(folder, |(at, _)| &folder[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_packages_enter_whole_and_large_ones_share() {
        assert_eq!(fill_level(&[10, 20, 30], 100), u64::MAX);
        assert_eq!(fill_level(&[10, 100, 100], 70), 30);
        assert_eq!(fill_level(&[100], 7), 7);
        assert_eq!(fill_level(&[], 7), u64::MAX);
    }

    #[test]
    fn whole_modules_go_to_one_split() {
        let paths: Vec<String> = (0..40).flat_map(|m| (0..5).map(move |f| format!("lib/std/m{m}/f{f}.zig"))).collect();
        let files: Vec<(&str, u64)> = paths.iter().map(|p| (p.as_str(), 1000)).collect();
        let splits = divide_by_module(&files);
        for module in splits.chunks(5) {
            assert!(module.iter().all(|split| *split == module[0]));
        }
        let share = |split| splits.iter().filter(|s| **s == split).count() as f64 / splits.len() as f64;
        assert!((0.05..0.15).contains(&share(Split::Test)), "{}", share(Split::Test));
        assert!((0.02..0.10).contains(&share(Split::Valid)), "{}", share(Split::Valid));
    }
}
