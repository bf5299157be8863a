//! The real binaries, as a user runs them: from the shell, as a language server over stdio, in training, in a real editor.
//!
//! `MULTICODER_BIN` and `MULTICODER_LSP_BIN` name other binaries than those beside this test, `MULTICODER_TEST_MODEL` another
//! model than the one inside the server, `MULTICODER_NVIM` the Neovim to drive.
#![cfg(unix)]

mod bad_input;
mod bench;
mod clients;
mod corpus;
mod lab;
mod neovim;
mod replay;
mod server;
mod session;
mod shell;
mod suites;
mod training;
