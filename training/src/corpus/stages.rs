//! What each stage of a build did and how long it took: `stages.json`, beside a report that does not depend on the clock.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::stage::Count;
use super::{Error, Result, write_whole};
use crate::memory::peak_rss_bytes;

/// Name of the file in the folder of shards.
pub const STAGES_NAME: &str = "stages.json";

/// One stage of a build.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stage {
    /// `filter`, `compare`, `write`.
    pub name: String,
    /// Wall time.
    pub seconds: f64,
    /// Packages, folders and files of data sets, or shards, that were worked on.
    pub n_done: usize,
    /// Those that were there already, unchanged.
    pub n_reused: usize,
    /// Text that was read in what was worked on.
    pub read: Count,
    /// Text that went on to the next stage, of what was worked on and what was there.
    pub kept: Count,
    /// Largest resident memory of the process up to the end of the stage, bytes; 0 where unknown.
    pub peak_rss_bytes: u64,
}

impl Stage {
    /// 10^6 bytes of text read a second.
    pub fn mb_per_s(&self) -> f64 {
        self.read.bytes as f64 / 1e6 / self.seconds.max(1e-9)
    }
}

/// The stages of a build in their order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stages {
    /// Threads of the build.
    pub n_threads: usize,
    /// Each stage.
    pub stages: Vec<Stage>,
}

impl Stages {
    /// Does `work`, which says in the [`Stage`] what it did, and adds its time and memory.
    pub(super) fn time<T>(&mut self, name: &str, work: impl FnOnce(&mut Stage) -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let mut stage = Stage { name: name.to_owned(), ..Stage::default() };
        let result = work(&mut stage)?;
        stage.seconds = begin.elapsed().as_secs_f64();
        stage.peak_rss_bytes = peak_rss_bytes();
        self.n_threads = rayon::current_num_threads();
        self.stages.push(stage);
        Ok(result)
    }

    /// Writes `dir/stages.json`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(STAGES_NAME);
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::format(&path, e.to_string()))?;
        write_whole(&path, &json)
    }

    /// Reads `dir/stages.json`; `None` where a build of an older version left none.
    ///
    /// # Errors
    /// A file that is no such list.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(STAGES_NAME);
        let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::format(&path, e.to_string()))
    }

    /// The table for the terminal.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{:10} {:>8} {:>7} {:>7} {:>10} {:>10} {:>8} {:>9}\n",
            "stage", "seconds", "done", "reused", "read MB", "kept MB", "MB/s", "peak MB"
        );
        for stage in &self.stages {
            out += &format!(
                "{:10} {:>8.1} {:>7} {:>7} {:>10.1} {:>10.1} {:>8.1} {:>9}\n",
                stage.name,
                stage.seconds,
                stage.n_done,
                stage.n_reused,
                stage.read.bytes as f64 / 1e6,
                stage.kept.bytes as f64 / 1e6,
                stage.mb_per_s(),
                stage.peak_rss_bytes / 1_000_000
            );
        }
        out
    }
}
