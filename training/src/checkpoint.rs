//! A whole run on disk: weights, moments, data cursor, step, configuration. Written beside its place and renamed.
//!
//! `RUN/checkpoints/step-00001000/` is a model folder (config.json, model.safetensors, tokenizer.json) with optimizer.safetensors,
//! state.json and run.toml beside, and manifest.json, written last, with the size and hash of each file. A folder that exists under
//! its final name is whole; a damaged one is recognised by its manifest.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use multicoder_model::{CodeLm, Tokenizer};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::{self, RunConfig};
use crate::data::packer::Cursor;
use crate::optimizer::{Optimizer, OptimizerState};

/// The folder of the checkpoints, in that of a run.
pub const FOLDER: &str = "checkpoints";
const STATE: &str = "state.json";
const CONFIG: &str = "run.toml";
const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const MOMENTS: &str = "optimizer.safetensors";
const MANIFEST: &str = "manifest.json";

/// How far a run is: all that it needs besides weights and moments. Random draws are keyed by seed and cursor, so there is no other
/// generator state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: u64,
    /// Steps of the whole run; moves only when `max_hours` ends it earlier.
    pub n_steps: u64,
    /// Wall time so far, over all stretches.
    pub elapsed_s: f64,
    /// Where the data stands.
    pub cursor: Cursor,
    /// Of the texts that the cursor belongs to.
    pub texts_fingerprint: u64,
    /// Steps of each parameter, in the model's order.
    pub parameter_steps: Vec<u64>,
}

/// A checkpoint read back.
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Weights by name.
    pub weights: HashMap<String, Tensor>,
    /// The run's tokenizer.
    pub tokenizer: Tokenizer,
    /// Moments.
    pub moments: OptimizerState,
    /// Step, cursor and clock.
    pub state: RunState,
    /// The configuration of the run, as a table, to which `--set` may be applied.
    pub config: toml::Table,
}

#[derive(Serialize, Deserialize)]
struct FileEntry {
    bytes: u64,
    xxh3: String,
}

/// Whether something that is due every `every_steps` is due now. `every_steps` 0 means at the end only.
pub fn due(every_steps: u64, step: u64, last: bool) -> bool {
    last || (every_steps > 0 && step > 0 && step.is_multiple_of(every_steps))
}

/// Writes the checkpoint of `state.step` and removes all of later steps, and all but the newest `keep`.
///
/// # Errors
/// Anything the file system refuses; the checkpoints written before stay as they are.
pub fn save(
    run_folder: &Path,
    lm: &CodeLm,
    tokenizer: &Tokenizer,
    optimizer: &Optimizer,
    state: &RunState,
    config: &RunConfig,
) -> Result<PathBuf> {
    let (folder, name) = (run_folder.join(FOLDER), folder_name(state.step));
    let part = folder.join(format!(".{name}.part"));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    sweep(&folder)?;

    let write = || -> Result<()> {
        fs::create_dir_all(&part)?;
        multicoder_model::checkpoint::save_folder(lm, tokenizer, &part)?;
        candle_core::safetensors::save(&optimizer.state().tensors, part.join(MOMENTS))?;
        fs::write(part.join(STATE), serde_json::to_string_pretty(state)?)?;
        fs::write(part.join(CONFIG), config.to_toml()?)?;
        fs::write(part.join(MANIFEST), serde_json::to_string_pretty(&manifest(&part)?)?)?;
        sync_folder(&part)
    };
    write().with_context(|| format!("cannot write checkpoint {}", part.display()))?;

    let path = folder.join(&name);
    if path.exists() {
        discard(&folder, &path)?;
    }
    fs::rename(&part, &path).with_context(|| path.display().to_string())?;
    sync(&folder)?;
    // Newer ones are what a resume passed over: damaged, and of steps that this run does again.
    for (_, newer) in numbered(&folder)?.into_iter().filter(|(step, _)| *step > state.step) {
        discard(&folder, &newer)?;
    }
    let mut all = list(run_folder)?;
    while all.len() > config.checkpoint.keep.max(1) {
        discard(&folder, &all.remove(0))?;
    }
    Ok(path)
}

/// Where the checkpoint of `step` is, or will be.
pub fn path_of(run_folder: &Path, step: u64) -> PathBuf {
    run_folder.join(FOLDER).join(folder_name(step))
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The newest intact checkpoint of a run, or `None` when there is none at all. Damaged ones are reported to `warn` and passed over.
///
/// # Errors
/// Checkpoints exist and none is intact; the message names the newest one and its defect.
pub fn load_newest(run_folder: &Path, device: &Device, warn: &mut dyn FnMut(&str)) -> Result<Option<Checkpoint>> {
    newest(run_folder, warn, &mut |path| load(path, device))
}

/// What `open` makes of the newest checkpoint that it accepts.
fn newest<T>(
    run_folder: &Path,
    warn: &mut dyn FnMut(&str),
    open: &mut dyn FnMut(&Path) -> Result<T>,
) -> Result<Option<T>> {
    let mut newest_defect = None;
    for path in list(run_folder)?.into_iter().rev() {
        match open(&path) {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) => {
                warn(&format!("warning: checkpoint passed over: {error:#}"));
                newest_defect.get_or_insert(error);
            }
        }
    }
    match newest_defect {
        None => Ok(None),
        Some(error) => Err(error.context(format!("{}: no intact checkpoint", run_folder.join(FOLDER).display()))),
    }
}

/// Reads one checkpoint folder.
///
/// # Errors
/// A file that is missing, of another size or of another content than the manifest says, named.
pub fn load(path: &Path, device: &Device) -> Result<Checkpoint> {
    verify(path)?;
    let state_path = path.join(STATE);
    let state: RunState =
        serde_json::from_str(&read(&state_path)?).with_context(|| state_path.display().to_string())?;
    let tensors = |name: &str| {
        let file = path.join(name);
        candle_core::safetensors::load(&file, device).with_context(|| file.display().to_string())
    };
    let moments = OptimizerState { tensors: tensors(MOMENTS)?, n_steps: state.parameter_steps.clone() };
    let weights = tensors(WEIGHTS)?;
    let tokenizer = Tokenizer::from_file(&path.join(TOKENIZER))?;
    let config = config::read(&path.join(CONFIG))?;
    Ok(Checkpoint { path: path.to_owned(), weights, tokenizer, moments, state, config })
}

/// Folder of the newest checkpoint of a run whose files are what was written, or `None` when there is none at all. Damaged ones are
/// reported to `warn` and passed over.
///
/// # Errors
/// Checkpoints exist and none is intact; the message names the newest one and its defect.
pub fn newest_intact(run_folder: &Path, warn: &mut dyn FnMut(&str)) -> Result<Option<PathBuf>> {
    newest(run_folder, warn, &mut |path| verify(path).map(|()| path.to_owned()))
}

/// Folders of the checkpoints of a run, oldest first. Not verified.
///
/// # Errors
/// A folder that cannot be listed.
pub fn list(run_folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(numbered(&run_folder.join(FOLDER))?.into_iter().map(|(_, path)| path).collect())
}

fn numbered(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut steps: Vec<(u64, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            steps.push((step, path));
        }
    }
    steps.sort();
    Ok(steps)
}

fn verify(path: &Path) -> Result<()> {
    let manifest_path = path.join(MANIFEST);
    let entries: BTreeMap<String, FileEntry> =
        serde_json::from_str(&read(&manifest_path)?).with_context(|| manifest_path.display().to_string())?;
    for (name, entry) in &entries {
        let file = path.join(name);
        let bytes = fs::read(&file).with_context(|| format!("{}: cannot read", file.display()))?;
        let got = bytes.len() as u64;
        ensure!(
            got == entry.bytes,
            "{}: {got} bytes, expected {}: the file is truncated or was changed",
            file.display(),
            entry.bytes
        );
        if hash(&bytes) != entry.xxh3 {
            bail!("{}: content differs from what was written (xxh3 expected {})", file.display(), entry.xxh3);
        }
    }
    for name in [STATE, MOMENTS, CONFIG, WEIGHTS, TOKENIZER] {
        ensure!(entries.contains_key(name), "{}: it does not list {name}", manifest_path.display());
    }
    Ok(())
}

fn manifest(folder: &Path) -> Result<BTreeMap<String, FileEntry>> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let bytes = fs::read(entry.path())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        entries.insert(name, FileEntry { bytes: bytes.len() as u64, xxh3: hash(&bytes) });
    }
    Ok(entries)
}

fn hash(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))
}

/// Brings every file of `folder`, and the folder itself, onto the disk.
fn sync_folder(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        sync(&entry?.path())?;
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<()> {
    // Only Unix can open a folder as a file, and only there a rename needs it.
    if cfg!(unix) || path.is_file() {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        file.sync_all().with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Removes a checkpoint in such an order that a kill leaves nothing that looks like one.
fn discard(folder: &Path, path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("checkpoint");
    let trash = folder.join(format!(".{name}.trash"));
    let _ = fs::remove_dir_all(&trash);
    fs::rename(path, &trash).with_context(|| path.display().to_string())?;
    fs::remove_dir_all(&trash).with_context(|| trash.display().to_string())
}

/// Removes what a killed run left half written or half removed.
fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if name.starts_with(".step-") && (name.ends_with(".part") || name.ends_with(".trash")) {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_at_multiples_and_at_the_end() {
        let steps: Vec<u64> = (0..=7).filter(|&step| due(3, step, step == 7)).collect();
        assert_eq!(steps, [3, 6, 7]);
        assert!(!due(0, 5, false) && due(0, 5, true));
    }

    #[test]
    fn listing_is_by_step_and_ignores_parts() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["step-00000010", "step-00000009", ".step-00000011.part", "other"] {
            fs::create_dir_all(dir.path().join(FOLDER).join(name)).unwrap();
        }
        let names: Vec<_> = list(dir.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["step-00000009", "step-00000010"]);
        sweep(&dir.path().join(FOLDER)).unwrap();
        assert!(!dir.path().join(FOLDER).join(".step-00000011.part").exists());
    }

    fn write_folder(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for name in [STATE, MOMENTS, CONFIG, WEIGHTS, TOKENIZER] {
            fs::write(folder.join(name), "content").unwrap();
        }
        let text = serde_json::to_string(&manifest(folder).unwrap()).unwrap();
        fs::write(folder.join(MANIFEST), text).unwrap();
    }

    #[test]
    fn the_newest_intact_folder_is_taken_and_damaged_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest_intact(dir.path(), &mut |_| ()).unwrap(), None);
        let folder = |step: u64| dir.path().join(FOLDER).join(format!("step-{step:08}"));
        [2, 4].map(folder).iter().for_each(|folder| write_folder(folder));
        assert_eq!(newest_intact(dir.path(), &mut |_| ()).unwrap(), Some(folder(4)));
        fs::write(folder(4).join(WEIGHTS), "cont").unwrap();
        let mut warnings = Vec::new();
        let found = newest_intact(dir.path(), &mut |message| warnings.push(message.to_owned())).unwrap();
        assert_eq!(found, Some(folder(2)));
        assert!(warnings.len() == 1 && warnings[0].contains("step-00000004"), "{warnings:?}");
        fs::remove_file(folder(2).join(MANIFEST)).unwrap();
        let message = newest_intact(dir.path(), &mut |_| ()).unwrap_err().to_string();
        assert!(message.contains("no intact checkpoint"), "{message}");
    }

    #[test]
    fn a_truncated_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write_folder(dir.path());
        verify(dir.path()).unwrap();
        fs::write(dir.path().join(MOMENTS), "cont").unwrap();
        let message = verify(dir.path()).unwrap_err().to_string();
        assert!(message.contains(MOMENTS) && message.contains("4 bytes, expected 7"), "{message}");
        fs::write(dir.path().join(MOMENTS), "c0ntent").unwrap();
        assert!(verify(dir.path()).unwrap_err().to_string().contains("content differs"));
    }
}
