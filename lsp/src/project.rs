//! Files of the open folders, the nearest to a document first. They are looked for on a thread of its own: a disk may be slow.
//!
//! What the folders' ignore files name is left out, as are hidden files and those that the settings exclude.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use ignore::{DirEntry, WalkBuilder};
use multicoder_grammars::{LanguageId, detect_with_prior};

use crate::config::Settings;
use crate::documents::Snapshot;
use crate::elsewhere::{MAX_BYTES, MAX_BYTES_EACH};

/// Files and folders that are looked at before it is enough.
const MAX_ENTRIES: usize = 4096;
/// Folders between a folder that a document lies below and a file that is read.
const MAX_DEPTH: usize = 8;
/// Larger files are hardly written by hand.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// After which it is looked again, when something is asked for.
const FRESH: Duration = Duration::from_secs(60);

/// The open folders and what was found near the document that was asked for last.
#[derive(Clone, Debug, Default)]
pub struct Project {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    folders: Vec<PathBuf>,
    /// Near which folder, in which language and when it was looked last.
    looked: Option<(PathBuf, LanguageId, Instant)>,
    found: Arc<[Snapshot]>,
    is_looking: bool,
}

impl Project {
    /// Opens folders and closes others.
    pub fn change(&self, opened: impl IntoIterator<Item = PathBuf>, closed: &[PathBuf]) {
        let mut shared = self.lock();
        shared.folders.extend(opened);
        shared.folders.retain(|folder| !closed.contains(folder));
        (shared.looked, shared.found) = (None, Arc::default());
    }

    /// What is known of files near `document`, open or not: at first nothing, for it is looked for beside this.
    pub fn near(&self, document: &Snapshot, settings: &Arc<Settings>) -> Arc<[Snapshot]> {
        let mut shared = self.lock();
        let holds = |folder: &&PathBuf| document.path.starts_with(folder);
        let root = shared.folders.iter().filter(holds).max_by_key(|folder| folder.as_os_str().len());
        let (Some(root), Some(dir), Some(language)) = (root.cloned(), document.path.parent(), document.language) else {
            return Arc::default();
        };
        let is_fresh = shared
            .looked
            .as_ref()
            .is_some_and(|(near, of, when)| near.as_path() == dir && *of == language && when.elapsed() < FRESH);
        if !is_fresh && !shared.is_looking {
            shared.is_looking = true;
            shared.looked = Some((dir.to_owned(), language, Instant::now()));
            let (project, dir, settings) = (self.clone(), dir.to_owned(), settings.clone());
            let look = move || {
                let found = look(&root, &dir, language, &settings);
                let mut shared = project.lock();
                // A folder may have been closed meanwhile.
                if shared.looked.is_some() {
                    shared.found = found.into();
                }
                shared.is_looking = false;
            };
            if let Err(error) = std::thread::Builder::new().name("project".to_string()).spawn(look) {
                tracing::warn!(%error, "no thread to look for files");
                shared.is_looking = false;
            }
        }
        shared.found.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Files below `root` in `language`: those beside and below a document in `dir`, then those beside and below that folder, and so on.
fn look(root: &Path, dir: &Path, language: LanguageId, settings: &Settings) -> Vec<Snapshot> {
    let (mut files, mut n_bytes, mut n_left) = (Vec::new(), 0, MAX_ENTRIES);
    let mut seen: Option<&Path> = None;
    for dir in dir.ancestors().take_while(|dir| dir.starts_with(root)) {
        for path in below(dir, seen, &mut n_left) {
            let is_wanted = detect_with_prior(None, &path, "", Some(language)) == Some(language);
            if !is_wanted || settings.exclusions.excludes(&path).is_some() {
                continue;
            }
            let Some(file) = read(path) else { continue };
            n_bytes += file.text.len_bytes();
            files.push(file);
            if n_bytes >= MAX_BYTES {
                return files;
            }
        }
        seen = Some(dir);
    }
    files
}

/// The files below `dir` that are not below `seen`, those in the fewest folders first.
fn below(dir: &Path, seen: Option<&Path>, n_left: &mut usize) -> Vec<PathBuf> {
    let seen = seen.map(Path::to_owned);
    let mut walk = WalkBuilder::new(dir);
    walk.require_git(false).max_depth(Some(MAX_DEPTH)).max_filesize(Some(MAX_FILE_BYTES));
    walk.filter_entry(move |entry| seen.as_deref() != Some(entry.path()));
    let entries: Vec<DirEntry> = walk.build().flatten().take(*n_left).collect();
    *n_left -= entries.len();
    let is_file = |entry: &DirEntry| entry.file_type().is_some_and(|kind| kind.is_file());
    let mut files: Vec<DirEntry> = entries.into_iter().filter(is_file).collect();
    files.sort_by(|a, b| (a.depth(), a.path()).cmp(&(b.depth(), b.path())));
    files.into_iter().map(DirEntry::into_path).collect()
}

/// The beginning of a file of text, with the time of its last change as its revision.
fn read(path: PathBuf) -> Option<Snapshot> {
    let file = File::open(&path).ok()?;
    let changed = file.metadata().and_then(|of| of.modified()).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES_EACH as u64).read_to_end(&mut bytes).ok()?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        // It was cut inside a character.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let revision = u64::try_from(changed.as_nanos()).ok()?;
    (!text.contains('\0')).then(|| Snapshot { revision, ..Snapshot::from_file(path, text) })
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

    #[test]
    fn the_nearest_files_of_the_language_come_first() {
        let files = ["top.py", "a/b/here.py", "a/b/c/below.py", "a/beside.py", "a/x/far.py", "a/b/main.rs", "z/z.py"];
        let folder = folder(&files);
        let found = look(folder.path(), &folder.path().join("a/b"), python(), &Settings::standard());
        let expected = ["a/b/here.py", "a/b/c/below.py", "a/beside.py", "a/x/far.py", "top.py", "z/z.py"];
        assert_eq!(names(&found, folder.path()), expected);
        assert_eq!(found[0].text, "# a/b/here.py\n");
        let root = folder.path().join("a");
        let found = look(&root, &root.join("b"), python(), &Settings::standard());
        assert_eq!(names(&found, folder.path()), expected[..4], "nothing outside of the folder");
        assert!(look(&root, folder.path(), python(), &Settings::standard()).is_empty());
    }

    #[test]
    fn what_is_ignored_hidden_excluded_or_no_text_is_left_alone() {
        let files = ["build/made.py", "kept.py", ".hidden/x.py", "secrets/key.py", "sub/generated.py"];
        let folder = folder(&files);
        std::fs::write(folder.path().join(".gitignore"), "build/\ngenerated.py\n").unwrap();
        std::fs::write(folder.path().join("binary.py"), b"x = 1\0\n").unwrap();
        std::fs::write(folder.path().join("latin.py"), b"x = '\xe9'\n").unwrap();
        std::fs::write(folder.path().join("huge.py"), "x = 1\n".repeat(1 << 18)).unwrap();
        let mut settings = Settings::standard();
        settings.merge(&serde_json::json!({"exclude": ["secrets/"]}));
        let found = look(folder.path(), folder.path(), python(), &settings);
        assert_eq!(names(&found, folder.path()), ["kept.py"]);
    }

    #[test]
    fn no_more_is_read_than_is_used() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..20 {
            std::fs::write(folder.path().join(format!("{i:02}.py")), "\u{e9} = 1\n".repeat(MAX_BYTES_EACH / 7))
                .unwrap();
        }
        let found = look(folder.path(), folder.path(), python(), &Settings::standard());
        let n_bytes: usize = found.iter().map(|file| file.text.len_bytes()).sum();
        assert!((MAX_BYTES..MAX_BYTES + MAX_BYTES_EACH).contains(&n_bytes), "{n_bytes}");
        assert!(found.iter().all(|file| file.text.len_bytes() <= MAX_BYTES_EACH));
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
        project.change([folder.path().to_owned(), folder.path().join("in")], &[]);
        assert_eq!(names(&wait(&project, &document, 3), folder.path()), ["a.py", "b.py", "in/c.py"]);
        let inside = Snapshot::from_file(folder.path().join("in/c.py"), "x = 1\n");
        assert_eq!(names(&wait(&project, &inside, 1), folder.path()), ["in/c.py"], "the innermost folder counts");
        project.change([], &[folder.path().to_owned()]);
        assert!(project.near(&document, &settings).is_empty());
        let unknown = Snapshot { language: None, ..inside };
        assert!(project.near(&unknown, &settings).is_empty());
    }
}
