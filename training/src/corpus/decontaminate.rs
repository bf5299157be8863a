//! Benchmarks out of the corpus: hashes of 13-token windows of benchmark texts, and which of them a file contains.
//!
//! Tokens are `[A-Za-z0-9_]+` or one other visible character, lower case; 13 of them joined by a space are hashed with
//! FNV-1a 64. A window with few words (loops, lists of numbers) tells nothing alone; a dozen of them one after the other do. A window that
//! occurs in several packages is boilerplate, which the build decides, not this file.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::{Error, Result, lines};

/// Tokens of a window.
const WINDOW_TOKENS: usize = 13;
/// Least number of different words of two letters or more in a window that tells something alone.
const MIN_WORDS: usize = 5;
/// Windows in a row, 24 tokens, that tell something with so many different names in them, be they of one letter.
const MIN_RUN: usize = 12;

/// Hashes of all windows of a set of benchmarks.
#[derive(Default)]
pub struct Benchmarks {
    hashes: HashSet<u64>,
}

impl Benchmarks {
    /// Reads every `.jsonl`, `.jsonl.gz` (all strings of every record) and `.u64le` (ready hashes) file below `path`, or `path` itself.
    ///
    /// # Errors
    /// Unreadable or malformed files, or none at all.
    pub fn read(path: &Path) -> Result<Self> {
        let mut benchmarks = Self::default();
        let mut n_files = 0;
        let files = match path.is_file() {
            true => vec![path.to_owned()],
            false => super::walk::files_of_folder(path)?.into_iter().map(|file| file.path).collect(),
        };
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            if name.ends_with(".u64le") {
                let bytes = fs::read(&file).map_err(Error::io(&file))?;
                let words = bytes.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok().map(u64::from_le_bytes));
                benchmarks.hashes.extend(words);
            } else if name.ends_with(".jsonl") || name.ends_with(".jsonl.gz") {
                benchmarks.add_records(&file)?;
            } else {
                continue;
            }
            n_files += 1;
        }
        if n_files == 0 {
            return Err(Error::format(path, "no .jsonl, .jsonl.gz or .u64le file; expected benchmark files"));
        }
        Ok(benchmarks)
    }

    fn add_records(&mut self, path: &Path) -> Result<()> {
        for line in lines::open(path)? {
            let (number, line) = line?;
            let wrong = |error| Error::format(path, format!("line {number}: {}", lines::json_error(&error)));
            let record: serde_json::Value = serde_json::from_str(&line).map_err(wrong)?;
            self.add_value(&record);
        }
        Ok(())
    }

    fn add_value(&mut self, value: &serde_json::Value) {
        match value {
            serde_json::Value::String(text) => self.hashes.extend(window_hashes(text)),
            serde_json::Value::Array(values) => values.iter().for_each(|value| self.add_value(value)),
            // The harness of the tests is the language's more than the benchmark's: half of all Rust begins its tests alike.
            serde_json::Value::Object(fields) => fields
                .iter()
                .filter(|(name, _)| !name.to_lowercase().contains("test"))
                .for_each(|(_, value)| self.add_value(value)),
            _ => {}
        }
    }

    /// Changes when the windows do.
    pub fn fingerprint(&self) -> u64 {
        // A sum does not depend on the order in which a set gives its members.
        self.hashes.len() as u64 ^ HashSet::iter(&self.hashes).fold(0, |sum: u64, hash| sum.wrapping_add(*hash))
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there is nothing to compare with.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The windows of `text` that occur in a benchmark and tell something, alone or in a row, each once.
    pub fn hits(&self, text: &str) -> Vec<u64> {
        if self.is_empty() {
            return Vec::new();
        }
        let lower = text.to_lowercase();
        let tokens = tokens(&lower);
        let windows: Vec<u64> = tokens.windows(WINDOW_TOKENS).map(hash_window).collect();
        let mut hits = Vec::new();
        let mut begin = 0;
        for run in windows.chunk_by(|a, b| self.hashes.contains(a) == self.hashes.contains(b)) {
            let is_hit = run.first().is_some_and(|hash| self.hashes.contains(hash));
            let passage = &tokens[begin..begin + run.len() + WINDOW_TOKENS - 1];
            let tells = is_hit && run.len() >= MIN_RUN && n_words(passage, 1) >= MIN_WORDS;
            for (idx, hash) in run.iter().enumerate().filter(|_| is_hit) {
                let window = &tokens[begin + idx..][..WINDOW_TOKENS];
                hits.extend((tells || n_words(window, 2) >= MIN_WORDS).then_some(*hash));
            }
            begin += run.len();
        }
        hits.sort_unstable();
        hits.dedup();
        hits
    }
}

/// FNV-1a 64 of every window of 13 tokens.
pub fn window_hashes(text: &str) -> Vec<u64> {
    let lower = text.to_lowercase();
    let tokens = tokens(&lower);
    tokens.windows(WINDOW_TOKENS).map(hash_window).collect()
}

/// Number of different words of `min_letters` or more; numbers and signs are none.
fn n_words(tokens: &[&str], min_letters: usize) -> usize {
    let is_word = |token: &&&str| token.len() >= min_letters && token.starts_with(|c: char| c.is_ascii_alphabetic());
    tokens.iter().filter(is_word).collect::<HashSet<_>>().len()
}

fn hash_window(window: &[&str]) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for (idx, token) in window.iter().enumerate() {
        if idx > 0 {
            hash = step(hash, b' ');
        }
        hash = token.bytes().fold(hash, step);
    }
    hash
}

fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut word_begin = None;
    for (at, c) in text.char_indices() {
        if c.is_ascii_alphanumeric() || c == '_' {
            word_begin.get_or_insert(at);
            continue;
        }
        if let Some(begin) = word_begin.take() {
            tokens.push(&text[begin..at]);
        }
        if !c.is_whitespace() {
            tokens.push(&text[at..at + c.len_utf8()]);
        }
    }
    if let Some(begin) = word_begin {
        tokens.push(&text[begin..]);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn tokens_and_hash_are_as_specified() {
        assert_eq!(tokens("ab_1+=(é x)"), ["ab_1", "+", "=", "(", "é", "x", ")"]);
        // FNV-1a 64 of "a" and of "foobar", from the definition's test vectors.
        assert_eq!(hash_window(&["a"]), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash_window(&["foobar"]), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_shared_passage_is_found_in_any_layout_and_case() {
        let dir = tempfile::tempdir().unwrap();
        let solution = "def weigh(left, right, factor): total = left + right; return total * factor";
        let loops = "for (i = 0; i < n; i++) { x[i] = 0; }";
        let record = serde_json::json!({"task": 1, "parts": [{"solution": solution}, loops]});
        fs::write(dir.path().join("x.jsonl"), format!("{record}\n")).unwrap();
        let benchmarks = Benchmarks::read(dir.path()).unwrap();
        assert_eq!(Benchmarks::read(&dir.path().join("x.jsonl")).unwrap().fingerprint(), benchmarks.fingerprint());
        let leaked = format!("import x\n{}", solution.replace(' ', "\n   ").to_uppercase());
        assert!(!benchmarks.hits(&leaked).is_empty());
        assert!(benchmarks.hits(loops).is_empty(), "loops are no passage");
        let numbers = (0..40).map(|n| format!("{n}.0, ")).collect::<String>();
        fs::write(dir.path().join("z.jsonl"), serde_json::json!({"code": numbers, "test_list": ["assert that left and right are the same thing as one other thing"]}).to_string()).unwrap();
        let more = Benchmarks::read(dir.path()).unwrap();
        assert!(more.hits(&format!("x = [{numbers}]")).is_empty(), "numbers are no passage");
        assert!(more.hits("# assert that left and right are the same thing as one other thing").is_empty(), "a test");
        let few_words = "def turn(s, d): t = s[d:] + s[0:d]; u = t[d:] + t[0:d]; return u";
        assert!(benchmarks.hits(few_words).is_empty());
        fs::write(dir.path().join("y.jsonl"), serde_json::json!({"code": few_words}).to_string()).unwrap();
        let both = Benchmarks::read(dir.path()).unwrap();
        assert!(!both.hits(&format!("x = 1\n{few_words}")).is_empty(), "a whole item of few words");
        assert!(both.hits(&few_words[..few_words.len() / 2]).is_empty(), "half of it");
        assert!(benchmarks.hits("def sub(left, right):\n    return left - right\n").is_empty());
        fs::write(dir.path().join("x.jsonl"), "{").unwrap();
        assert!(Benchmarks::read(dir.path()).is_err());
    }

    #[test]
    fn a_truncated_gzip_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        // Random enough to stay long when packed, so that half of the file unpacks to whole lines.
        let line = |n: u64| format!("{{\"text\": \"{:x}\"}}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        fs::write(&path, (0..20_000).map(line).collect::<String>()).unwrap();
        if !Command::new("gzip").arg(&path).status().is_ok_and(|status| status.success()) {
            println!("skipped: gzip is not installed");
            return;
        }
        let packed = dir.path().join("x.jsonl.gz");
        Benchmarks::read(dir.path()).unwrap();
        let bytes = fs::read(&packed).unwrap();
        fs::write(&packed, &bytes[..bytes.len() / 2]).unwrap();
        let message = Benchmarks::read(dir.path()).err().unwrap().to_string();
        assert!(message.contains("x.jsonl.gz") && message.contains("gzip"), "{message}");
    }
}
