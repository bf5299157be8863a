//! The real binaries, as a user runs them: from the shell, as a language server over stdio, in training, in a real editor.

#[cfg(unix)]
mod neovim;
#[cfg(unix)]
mod training;
