//! Which files of a package an imported name means: paths are sorted by their parts from the last to the first, so that all paths
//! that end in a name stand together.

use std::collections::BTreeMap;

use multicoder_grammars::LanguageId;

use super::names::{Base, FAMILIES, Family, Import, family_of, part};

/// A name that this many paths end in says nothing.
const MAX_MEANINGS: usize = 16;

/// The files of a package by their names. Nodes are the files in their order, then the folders whose files are imported together.
pub(super) struct Index {
    places: Vec<Option<Place>>,
    folders: Vec<Vec<usize>>,
    /// Family and reversed parts of a path as one text, and its node; sorted.
    entries: Vec<(String, usize)>,
}

/// Where a file stands.
struct Place {
    family_idx: usize,
    folder: Vec<String>,
    /// The path without extension; a folder's own file (`__init__.py`, `mod.rs`) stands for the folder.
    module: Vec<String>,
}

impl Index {
    /// `files` are paths and languages in the order of the nodes.
    pub(super) fn new<'a>(files: impl Iterator<Item = (&'a str, LanguageId)>) -> Index {
        let places: Vec<Option<Place>> =
            files.map(|(path, language)| family_of(language).map(|idx| place_of(path, idx))).collect();
        let mut folders: BTreeMap<(usize, &[String]), Vec<usize>> = BTreeMap::new();
        let mut entries = Vec::new();
        for (node, place) in places.iter().enumerate().filter_map(|(node, place)| Some((node, place.as_ref()?))) {
            entries.push((key(place.family_idx, &[&place.module]), node));
            if FAMILIES[place.family_idx].imports_folders {
                folders.entry((place.family_idx, &place.folder)).or_default().push(node);
            }
        }
        let folder_keys = folders.keys().enumerate();
        entries.extend(folder_keys.map(|(n, (family_idx, folder))| (key(*family_idx, &[folder]), places.len() + n)));
        entries.sort_unstable();
        let folders = folders.into_values().collect();
        Index { places, folders, entries }
    }

    /// Number of files and folders.
    pub(super) fn n_nodes(&self) -> usize {
        self.places.len() + self.folders.len()
    }

    /// The files of each folder, in the order of the folders' nodes.
    pub(super) fn files_of_folders(&self) -> Vec<Vec<usize>> {
        self.folders.clone()
    }

    /// The nodes that a name in the file `node` means; none when it means nothing in this package.
    pub(super) fn resolve(&self, node: usize, import: &Import) -> Vec<usize> {
        let Some(place) = &self.places[node] else { return Vec::new() };
        let family = &FAMILIES[place.family_idx];
        let n_parts = import.parts.len();
        // The last parts may be names inside a file.
        for n_kept in (n_parts.saturating_sub(family.n_members)..=n_parts).rev() {
            let parts = &import.parts[..n_kept];
            let mut found = match import.base {
                Base::Folder(n_up) => self.below(place, &place.folder, n_up, parts),
                Base::Module(n_up) => self.below(place, &place.module, n_up, parts),
                Base::Anywhere => self.anywhere(place, family, parts),
            };
            found.retain(|&other| other != node);
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// What is at `parts` from the folder `n_up` above `start`.
    fn below(&self, place: &Place, start: &[String], n_up: usize, parts: &[String]) -> Vec<usize> {
        let Some(n_left) = start.len().checked_sub(n_up) else { return Vec::new() };
        self.exact(&key(place.family_idx, &[&start[..n_left], parts]))
    }

    /// What a name means that does not say from where: seen from the folders around the file, then as the end of any path, then
    /// without its first parts, which may be the package's own name.
    fn anywhere(&self, place: &Place, family: &Family, parts: &[String]) -> Vec<usize> {
        let Some(last) = parts.last() else { return Vec::new() };
        if self.ending_in(&key(place.family_idx, &[std::slice::from_ref(last)])).is_empty() {
            return Vec::new();
        }
        let depth = place.folder.len();
        for step in 0..=depth {
            let n_up = if family.from_the_top { depth - step } else { step };
            let found = self.below(place, &place.folder, n_up, parts);
            if !found.is_empty() {
                return found;
            }
        }
        for rest in (0..parts.len()).map(|n_dropped| &parts[n_dropped..]) {
            let key = key(place.family_idx, &[rest]);
            // A single part out of many says too little to be sought in all folders.
            let found = if rest.len() > 1 || parts.len() == 1 { self.nearest(place, &key) } else { self.exact(&key) };
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    fn exact(&self, key: &str) -> Vec<usize> {
        let start = self.entries.partition_point(|(entry, _)| entry.as_str() < key);
        self.entries[start..].iter().take_while(|(entry, _)| entry == key).map(|(_, node)| *node).collect()
    }

    /// The paths that end in `key`.
    fn ending_in(&self, key: &str) -> &[(String, usize)] {
        let start = self.entries.partition_point(|(entry, _)| entry.as_str() < key);
        let n = self.entries[start..].partition_point(|(entry, _)| entry.starts_with(key));
        &self.entries[start..start + n]
    }

    /// Of the paths that end in `key` the one that shares most folders with the file; none when there are too many.
    fn nearest(&self, place: &Place, key: &str) -> Vec<usize> {
        let found = self.ending_in(key);
        if found.len() > MAX_MEANINGS {
            return Vec::new();
        }
        let n_shared = |entry: &str| {
            let parts = entry.split('/').rev().skip(1);
            parts.zip(&place.folder).take_while(|(a, b)| a == b).count()
        };
        let best = found.iter().max_by_key(|(entry, node)| (n_shared(entry), std::cmp::Reverse(*node)));
        best.map(|(_, node)| *node).into_iter().collect()
    }
}

fn place_of(path: &str, family_idx: usize) -> Place {
    let family = &FAMILIES[family_idx];
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let folder: Vec<String> = folder.split('/').filter(|part| !part.is_empty()).map(part).collect();
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let mut module = folder.clone();
    if !family.folder_files.contains(&stem) {
        module.push(part(if family.keeps_extension { file } else { stem }));
    }
    Place { family_idx, folder, module }
}

/// Reversed parts, each followed by a slash, so that a name is the beginning of the keys of all paths that end in it.
fn key(family_idx: usize, parts: &[&[String]]) -> String {
    let mut key = format!("{family_idx}/");
    for part in parts.iter().rev().flat_map(|parts| parts.iter().rev()) {
        key.push_str(part);
        key.push('/');
    }
    key
}
