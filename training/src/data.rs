//! Text on its way to the model: shards on disk, their tokens beside them, then what cuts and packs those.

pub mod cut;
pub mod density;
pub mod lines;
pub mod loader;
pub mod packer;
mod piece;
pub mod retrieve;
pub mod shard;
pub mod texts;
pub mod tokenize;
pub mod tokens;
pub mod vocabulary;
