//! Tests of the language table, of detection, and of the syntax tree's answers in every language that has a grammar.

mod detection;
mod docs;
mod limits;
mod questions;
mod samples;
mod scope;
mod table;
