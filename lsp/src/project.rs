//! Files of the open folders, the nearest to a document first. They are looked for on a thread of its own: a disk may be slow.
//!
//! What the folders' ignore files name is left out, as are hidden files, links and what the settings exclude. A document in a folder that
//! is left out has no files near it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use ignore::WalkBuilder;
use multicoder_grammars::{LanguageId, detect_with_prior};

use crate::config::Settings;
use crate::documents::Snapshot;
use crate::elsewhere::{MAX_BYTES, MAX_BYTES_EACH};
use crate::uri;

/// Files and folders that are looked at before it is enough.
const MAX_ENTRIES: usize = 4096;
/// Files that are read.
const MAX_FILES: usize = 128;
/// Larger files are hardly written by hand.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// After which it is looked again, when something is asked for.
const FRESH: Duration = Duration::from_secs(60);
/// Places whose files are remembered.
const MAX_PLACES: usize = 4;

/// The open folders and what was found near documents.
#[derive(Clone, Debug, Default)]
pub struct Project {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    folders: Vec<PathBuf>,
    /// The last asked for is the last.
    found: Vec<Found>,
    is_looking: bool,
}

/// Where files are looked for.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    /// An open folder, and the one below it that the document is in.
    root: PathBuf,
    dir: PathBuf,
    language: LanguageId,
}

#[derive(Debug)]
struct Found {
    place: Place,
    files: Arc<[Snapshot]>,
    when: Instant,
}

impl Project {
    /// Closes folders and opens others.
    pub fn change(&self, closed: &[PathBuf], opened: impl IntoIterator<Item = PathBuf>) {
        let mut shared = self.lock();
        shared.folders.retain(|folder| !closed.contains(folder));
        shared.folders.extend(opened);
        let Shared { folders, found, .. } = &mut *shared;
        found.retain(|found| folders.contains(&found.place.root));
    }

    /// What is known of files near `document`, open or not: at first nothing, for it is looked for beside this.
    pub fn near(&self, document: &Snapshot, settings: &Arc<Settings>) -> Arc<[Snapshot]> {
        let mut shared = self.lock();
        let Some(place) = shared.place_of(document) else { return Arc::default() };
        let known = shared.found.iter().position(|found| found.place == place);
        let found = known.map(|at| shared.found.remove(at));
        let is_fresh = found.as_ref().is_some_and(|found| found.when.elapsed() < FRESH);
        let files = found.as_ref().map_or_else(Arc::default, |found| found.files.clone());
        shared.found.extend(found);
        if !is_fresh && !shared.is_looking {
            let (project, settings) = (self.clone(), settings.clone());
            let look = std::thread::Builder::new().name("project".to_string());
            match look.spawn(move || project.look(place, &settings)) {
                Ok(_) => shared.is_looking = true,
                Err(error) => tracing::warn!(%error, "no thread to look for files"),
            }
        }
        files
    }

    fn look(&self, place: Place, settings: &Settings) {
        let files = catch_unwind(|| look(&place, settings)).unwrap_or_else(|_| {
            tracing::error!(?place, "looking for files panicked");
            Vec::new()
        });
        let mut shared = self.lock();
        shared.is_looking = false;
        shared.found.retain(|found| found.place != place);
        // It may have been closed meanwhile.
        if shared.folders.contains(&place.root) {
            let excess = (shared.found.len() + 1).saturating_sub(MAX_PLACES);
            shared.found.drain(..excess);
            shared.found.push(Found { place, files: files.into(), when: Instant::now() });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// In the innermost folder that holds the document, if that is a file and in a known language.
    fn place_of(&self, document: &Snapshot) -> Option<Place> {
        let path = uri::to_file(&document.uri)?;
        let holds = |folder: &&PathBuf| path.starts_with(folder);
        let root = self.folders.iter().filter(holds).max_by_key(|folder| folder.components().count())?;
        Some(Place { root: root.clone(), dir: path.parent()?.to_owned(), language: document.language? })
    }
}

/// Files of a place: those beside and below the document, then those beside and below its folder, and so on up to the root.
fn look(place: &Place, settings: &Settings) -> Vec<Snapshot> {
    let Place { root, dir, language } = place;
    let (mut files, mut n_bytes, mut n_left) = (Vec::new(), 0, MAX_ENTRIES);
    if !is_reached(root, dir) {
        return files;
    }
    let mut seen: Option<&Path> = None;
    for above in dir.ancestors().take_while(|above| above.starts_with(root)) {
        let mut folders = VecDeque::from([above.to_owned()]);
        while let Some(folder) = folders.pop_front() {
            let children = children(&folder, &mut n_left);
            folders.extend(children.folders.into_iter().filter(|folder| Some(folder.as_path()) != seen));
            let is_wanted = |path: &PathBuf| {
                detect_with_prior(None, path, "", Some(*language)) == Some(*language)
                    && settings.exclusions.excludes(path).is_none()
            };
            for file in children.files.into_iter().filter(is_wanted).filter_map(read) {
                n_bytes += file.text.len_bytes();
                files.push(file);
                if n_bytes >= MAX_BYTES || files.len() == MAX_FILES {
                    return files;
                }
            }
        }
        seen = Some(above);
    }
    files
}

/// Whether one comes from `root` to `dir` through folders that are not left out.
fn is_reached(root: &Path, dir: &Path) -> bool {
    let below: Vec<&Path> = dir.ancestors().take_while(|above| *above != root).collect();
    let is_child = |path: &&Path| {
        path.parent()
            .is_some_and(|parent| children(parent, &mut { 1 << 16 }).folders.iter().any(|folder| folder == path))
    };
    below.iter().all(is_child)
}

#[derive(Default)]
struct Children {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

/// What is in a folder and not left out, by name; at most `n_left`.
fn children(folder: &Path, n_left: &mut usize) -> Children {
    let mut walk = WalkBuilder::new(folder);
    walk.require_git(false).max_depth(Some(1)).max_filesize(Some(MAX_FILE_BYTES));
    let mut children = Children::default();
    for entry in walk.build().flatten().filter(|entry| entry.depth() > 0).take(*n_left) {
        *n_left -= 1;
        match entry.file_type() {
            Some(kind) if kind.is_file() => children.files.push(entry.into_path()),
            Some(kind) if kind.is_dir() => children.folders.push(entry.into_path()),
            _ => {}
        }
    }
    children.files.sort();
    children.folders.sort();
    children
}

/// The beginning of a file of text, in whole lines, with the time of its last change as its revision.
fn read(path: PathBuf) -> Option<Snapshot> {
    let file = File::open(&path).ok()?;
    let changed = file.metadata().and_then(|of| of.modified()).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES_EACH as u64 + 1).read_to_end(&mut bytes).ok()?;
    if bytes.len() > MAX_BYTES_EACH {
        bytes.truncate(bytes[..MAX_BYTES_EACH].iter().rposition(|&byte| byte == b'\n')? + 1);
    }
    let text = std::str::from_utf8(&bytes).ok().filter(|text| !text.contains('\0'))?;
    let revision = u64::try_from(changed.as_nanos()).ok()?;
    Some(Snapshot { revision, ..Snapshot::from_file(path, text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files of some text each.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("# {file}\n")).unwrap();
        }
        folder
    }

    fn names(files: &[Snapshot], root: &Path) -> Vec<String> {
        files.iter().map(|file| file.path.strip_prefix(root).unwrap().to_string_lossy().into_owned()).collect()
    }

    fn python() -> LanguageId {
        LanguageId::by_name("python").unwrap()
    }

    fn look_in(root: &Path, dir: &Path, settings: &Settings) -> Vec<Snapshot> {
        look(&Place { root: root.to_owned(), dir: dir.to_owned(), language: python() }, settings)
    }

    #[test]
    fn the_nearest_files_of_the_language_come_first() {
        let files = ["top.py", "a/b/here.py", "a/b/c/below.py", "a/beside.py", "a/x/far.py", "a/b/main.rs", "z/z.py"];
        let folder = folder(&files);
        let found = look_in(folder.path(), &folder.path().join("a/b"), &Settings::standard());
        let expected = ["a/b/here.py", "a/b/c/below.py", "a/beside.py", "a/x/far.py", "top.py", "z/z.py"];
        assert_eq!(names(&found, folder.path()), expected);
        assert_eq!(found[0].text, "# a/b/here.py\n");
        let root = folder.path().join("a");
        let found = look_in(&root, &root.join("b"), &Settings::standard());
        assert_eq!(names(&found, folder.path()), expected[..4], "nothing outside of the folder");
        assert!(look_in(&root, folder.path(), &Settings::standard()).is_empty());
    }

    #[test]
    fn what_is_ignored_hidden_excluded_or_no_text_is_left_alone() {
        let files =
            ["build/in/made.py", "kept.py", ".hidden/x.py", "secrets/key.py", "sub/generated.py", "sub/made/y.py"];
        let folder = folder(&files);
        std::fs::write(folder.path().join(".gitignore"), "build/\ngenerated.py\n/sub/made/\n").unwrap();
        std::fs::write(folder.path().join("binary.py"), b"x = 1\0\n").unwrap();
        std::fs::write(folder.path().join("latin.py"), b"x = '\xe9'\n").unwrap();
        std::fs::write(folder.path().join("huge.py"), "x = 1\n".repeat(1 << 18)).unwrap();
        let mut settings = Settings::standard();
        settings.merge(&serde_json::json!({"exclude": ["secrets/"]}));
        let found = look_in(folder.path(), folder.path(), &settings);
        assert_eq!(names(&found, folder.path()), ["kept.py"]);
        for left_out in ["build", "build/in", ".hidden", "sub/made", "nowhere", "sub/.."] {
            let found = look_in(folder.path(), &folder.path().join(left_out), &settings);
            assert!(found.is_empty(), "of a document in {left_out}: {:?}", names(&found, folder.path()));
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let (inside, outside) = (folder(&["a.py"]), folder(&["b.py", "c.py"]));
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("b.py"), inside.path().join("b.py")).unwrap();
        let look_in = |dir: &Path| look_in(inside.path(), dir, &Settings::standard());
        assert_eq!(names(&look_in(inside.path()), inside.path()), ["a.py"]);
        assert!(look_in(&inside.path().join("link")).is_empty());
    }

    #[test]
    fn a_large_folder_beside_a_document_hides_nothing() {
        let folder = folder(&["main.py", "util.py", "aaa/0.py", "zzz/1.py"]);
        for i in 0..MAX_ENTRIES {
            std::fs::write(folder.path().join(format!("aaa/{i}.txt")), "").unwrap();
        }
        let found = look_in(folder.path(), folder.path(), &Settings::standard());
        assert_eq!(names(&found, folder.path())[..2], ["main.py", "util.py"]);
        assert!(found.iter().all(|file| !file.path.ends_with("1.py")), "it is enough some time");
    }

    #[test]
    fn many_small_files_are_enough_some_time() {
        let folder = tempfile::tempdir().unwrap();
        (0..MAX_FILES + 9).for_each(|i| std::fs::write(folder.path().join(format!("{i}.py")), "").unwrap());
        assert_eq!(look_in(folder.path(), folder.path(), &Settings::standard()).len(), MAX_FILES);
    }

    #[test]
    fn no_more_is_read_than_is_used() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..20 {
            let lines = "\u{e9} = 1\n".repeat(MAX_BYTES_EACH / 7 + 9);
            std::fs::write(folder.path().join(format!("{i:02}.py")), lines).unwrap();
        }
        std::fs::write(folder.path().join("00-one-line.py"), "\u{e9}".repeat(MAX_BYTES_EACH)).unwrap();
        let found = look_in(folder.path(), folder.path(), &Settings::standard());
        let n_bytes: usize = found.iter().map(|file| file.text.len_bytes()).sum();
        assert!((MAX_BYTES..MAX_BYTES + MAX_BYTES_EACH).contains(&n_bytes), "{n_bytes}");
        assert!(found.iter().all(|file| file.text.len_bytes() == MAX_BYTES_EACH / 7 * 7), "whole lines");
    }

    /// Asks until something is found: the thread takes its time.
    fn wait(project: &Project, document: &Snapshot, n: usize) -> Arc<[Snapshot]> {
        let settings = Arc::new(Settings::standard());
        for _ in 0..10_000 {
            let found = project.near(document, &settings);
            if found.len() == n {
                return found;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{:?}", project.near(document, &settings));
    }

    #[test]
    fn folders_open_and_close() {
        let folder = folder(&["a.py", "b.py", "in/c.py"]);
        let document = Snapshot::from_file(folder.path().join("a.py"), "x = 1\n");
        let project = Project::default();
        let settings = Arc::new(Settings::standard());
        assert!(project.near(&document, &settings).is_empty(), "no folder is open");
        project.change(&[], [folder.path().to_owned(), folder.path().join("in")]);
        assert_eq!(names(&wait(&project, &document, 3), folder.path()), ["a.py", "b.py", "in/c.py"]);
        let inside = Snapshot::from_file(folder.path().join("in/c.py"), "x = 1\n");
        assert!(project.near(&inside, &settings).is_empty(), "what was found for another place is not given");
        assert_eq!(names(&wait(&project, &inside, 1), folder.path()), ["in/c.py"], "the innermost folder counts");
        assert_eq!(project.near(&document, &settings).len(), 3, "the former place is remembered");
        let known = [Snapshot { language: None, ..inside.clone() }, Snapshot { uri: "vscode-vfs:/x".into(), ..inside }];
        assert!(known.iter().all(|of| project.near(of, &settings).is_empty()));
        project.change(&[folder.path().to_owned()], [folder.path().to_owned()]);
        assert_eq!(wait(&project, &document, 3).len(), 3, "a folder that is closed and opened is open");
        project.change(&[folder.path().to_owned()], []);
        assert!(project.near(&document, &settings).is_empty());
    }
}
