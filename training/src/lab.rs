//! The lab: named comparisons of variants at equal compute, over seeds, that can be stopped and go on.
//!
//! A study is a TOML file ([`study`]): a preset and variants of it. A trial ([`trial`]) is one variant with one seed: `multicoder train` and
//! `multicoder eval` as child processes, then rows in a CSV file ([`record`]). [`summary`] makes means, deviations and verdicts of them,
//! [`scaling`] a law where the variants differ in compute.

pub mod record;
pub mod scaling;
pub mod study;
pub mod summary;
pub mod trial;
