//! The rules of the house, checked: what ARCHITECTURE.md says is absent, the form of files, documents made from tables.

mod dependencies;
mod documents;
mod form;
mod names;
