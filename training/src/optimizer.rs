//! Optimizers: what happens to parameters once their gradients are known.

pub mod adamw;
