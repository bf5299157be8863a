//! Every mode of parallel training takes the steps of one process; ranks that cannot train together say why.
#![cfg(unix)]

mod devices;
mod equality;
mod failures;
mod fixture;
mod mpi;
