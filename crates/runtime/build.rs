//! Says whether the demonstration model's files are there to be built in: they are in the repository, not in a package.

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(built_in_model)");
    println!("cargo::rerun-if-changed=built_in");
    if Path::new("built_in/model.safetensors").exists() {
        println!("cargo::rustc-cfg=built_in_model");
    }
}
