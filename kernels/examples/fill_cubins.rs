//! Compiles every kernel variant that the published models use into a folder, for a machine without NVRTC: a program
//! beside which the folder lies as `cubins` compiles none of them. `cargo xtask dist` runs it.
//!
//! `cargo run -p foveal-kernels --example fill_cubins -- target/cubins sm_90a`

use std::path::PathBuf;
use std::process::ExitCode;

use foveal_device::{CubinCache, DeviceError};
use foveal_kernels::kernel_variants;

fn main() -> Result<ExitCode, DeviceError> {
    let mut args = std::env::args_os().skip(1);
    let folder = args.next().map(PathBuf::from);
    let archs: Vec<String> = args.map(|arch| arch.to_string_lossy().into_owned()).collect();
    let Some(folder) = folder.filter(|_| !archs.is_empty()) else {
        eprintln!("fill_cubins FOLDER ARCH...");
        return Ok(ExitCode::from(2));
    };
    let archs: Vec<&str> = archs.iter().map(String::as_str).collect();
    let filled = CubinCache::open_default().fill(&folder, &kernel_variants(), &archs)?;
    let new = filled.iter().filter(|cubin| cubin.is_new).count();
    println!("{} kernels for {}, {new} of them compiled now", filled.len(), archs.join(", "));
    Ok(ExitCode::SUCCESS)
}
