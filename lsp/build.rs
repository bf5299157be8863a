//! Says whether the starter model lies beside the sources, so that the package also builds without it.

#![allow(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(embedded_model)");
    println!("cargo::rerun-if-changed=model");
    if Path::new("model/starter.gguf").is_file() {
        println!("cargo::rustc-cfg=embedded_model");
    }
}
