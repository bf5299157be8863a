//! Text in, checkpoint out: corpus, tokenizer, loader, trainer, optimizer, evaluation. Modules in reading order.

pub mod commands;

pub mod config;
pub mod corpus;
pub mod data;
pub mod device;

pub mod run;
pub mod step;

pub mod checkpoint;
pub mod clock;
pub mod curriculum;
pub mod dry_run;
pub mod interrupt;
pub mod lock;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod parallel;
pub mod rng;
pub mod schedule;
pub mod threads;
pub mod validate;
pub mod weights;

pub mod bench;
pub mod evaluate;
pub mod lab;
pub mod ngram;
pub mod report;
pub mod suites;
