//! The subcommands of `multicoder`, one file each: `Args` (what clap parses) and `run(Args)`.

pub mod bench;
pub mod corpus;
pub mod eval;
pub mod export;
pub mod lab;
pub mod pack;
pub mod tokenizer;
pub mod train;
