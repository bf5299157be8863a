//! The commands of the program, one file each. Only these write to standard output.
#![allow(clippy::print_stdout, reason = "a command's result; while serving nothing here runs")]

pub(crate) mod complete;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod serve;
