//! The harness that the suites beside this folder share: where things are, running the binaries, a language client.
//!
//! | suite | what it holds |
//! |---|---|
//! | `tidy/` | the rules of the house: who may import whom, sizes, words, generated documents |
//! | `contract/` | what every router, every language and every preset must obey, by looping over the tables |
//! | `golden/` | our logits, ids, loss and gradients against the reference implementation |
//! | `e2e/` | the real binaries: shell, language server over stdio, training, a real Neovim |
//!
//! `cargo test --release` builds the binaries and runs everything; nothing here builds anything itself.

pub mod client;
pub mod editor;
pub mod program;
pub mod source;

use std::path::{Path, PathBuf};

/// The folder that holds the workspace's `Cargo.toml`.
pub fn repository_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// Prints why a test does nothing on this machine; `cargo test -- --nocapture` and `.ci/run` show it.
pub fn skipped(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
}
