//! What a programming language is: its table row, how a file of it is recognised, and what its syntax tree can answer.
//!
//! Modules in reading order:
//! - [`language`]: the meaning of each column of a table row, and the lookups by name and editor id.
//! - [`table`]: `LANGUAGES`, one row a language. Adding a language is adding a row there.
//! - [`detect`](mod@detect): which language a file is written in.
//! - [`relatives`]: which trained language serves one that was not trained.
//! - [`syntax`]: the syntax tree of one document and the questions asked of it.
//! - [`lexical`]: the same questions answered from one line alone.
//! - [`scope`]: names that are visible at a caret.
//! - [`regions`]: stretches of a file that are in another language.
//! - [`definitions`]: names that other files can use.
//! - [`similar`]: stretches of other texts that resemble a query.
//! - [`docs`]: the table as `docs/languages.md`.
//!
//! No tensors and no protocol types are named here; nothing is read from disk.

pub mod definitions;
pub mod detect;
pub mod docs;
pub mod language;
pub mod lexical;
pub mod regions;
pub mod relatives;
pub mod scope;
pub mod similar;
pub mod syntax;
pub mod table;

pub use detect::{detect, detect_with_prior};
pub use language::{Language, LanguageId};
pub use regions::Region;
pub use syntax::SyntaxTree;
pub use table::LANGUAGES;
