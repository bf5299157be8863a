//! The subcommands of `multicoder`, one file each: `Args` (what clap parses) and `run(Args)`.

pub mod corpus;
pub mod tokenizer;
pub mod train;
pub mod eval;
