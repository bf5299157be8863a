//! The language server: documents, the engine thread, what to show and when.
//!
//! Modules in the order of a request: [`wire`] and [`eager`] bring a message in, [`server`] names its handler in `handlers`, which takes
//! a snapshot from [`documents`], converts the caret with [`position`], builds a [`complete::Request`] and awaits the [`engine`]. The
//! engine's thread asks a [`completer`] with the text of [`prompt`], and [`trim`] decides what is worth showing. [`reuse`] answers who types
//! what was shown. When nothing is asked, [`elsewhere`] reads other open documents and files of the [`project`]. Silence has a [`reason`].
//!
//! Nothing here opens a socket, and standard output is the protocol's alone. [`replay`] and [`bench`] measure all this.

pub mod bench;
pub mod capabilities;
pub mod complete;
pub mod completer;
pub mod config;
pub mod documents;
pub mod eager;
pub mod elsewhere;
pub mod engine;
pub mod exclude;
mod handlers;
pub mod lifecycle;
pub mod model_completer;
pub mod position;
pub mod priority;
pub mod project;
pub mod prompt;
pub mod quantile;
mod read_speed;
pub mod reason;
pub mod replay;
pub mod reuse;
pub mod scripted;
pub mod server;
pub mod state;
pub mod status;
pub mod trim;
pub mod uri;
mod uuid;
pub mod wire;
