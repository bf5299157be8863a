//! Text on its way to the model: shards on disk, then whatever samples and packs them.

pub mod cut;
pub mod density;
pub mod loader;
pub mod packer;
pub mod shard;
pub mod texts;
