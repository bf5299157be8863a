//! The one error type of this package: every variant says what was expected and what came.

use std::path::PathBuf;

/// What can go wrong between a file of weights and a completion.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration that describes no model.
    #[error("model config: {field} = {value}: expected {expected}")]
    Config { field: &'static str, value: String, expected: String },
    /// A file that cannot be read as what it should be.
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// A weight that is absent from a checkpoint or has another shape.
    #[error("{origin}: weight {name}: expected shape {expected:?}, found {found}")]
    Weight { origin: String, name: String, expected: Vec<usize>, found: String },
    /// A serving file whose content is not what was written.
    #[error("{origin}: {reason}")]
    Corrupt { origin: String, reason: String },
    /// The tokenizer could not be trained, loaded or applied.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The caller asked to stop; the cache is still valid.
    #[error("cancelled")]
    Cancelled,
    /// A batch or prompt that does not fit the model.
    #[error("input: {0}")]
    Input(String),
    /// A device that is missing, that failed, or that has no kernel for what is asked.
    #[error("{0}")]
    Device(String),
    /// An error of the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// `Result` with this package's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A [`Error::File`] for `path`.
    pub fn file(path: &std::path::Path, reason: impl std::fmt::Display) -> Error {
        Error::File { path: path.to_path_buf(), reason: reason.to_string() }
    }

    /// A [`Error::Corrupt`] for `origin`.
    pub fn corrupt(origin: &str, reason: impl std::fmt::Display) -> Error {
        Error::Corrupt { origin: origin.to_string(), reason: reason.to_string() }
    }
}

/// What `read` returns, or what a library said that panics at damaged bytes.
pub(crate) fn caught<T>(read: impl FnOnce() -> T) -> std::result::Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
    })
}
