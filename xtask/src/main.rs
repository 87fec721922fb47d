//! Automation of the Foveal workspace: `cargo xtask <command>`. Avoid adding more dependencies to this crate.
#![forbid(unsafe_code)]

mod bench;
mod bench_serve;
mod ci;
mod dist;
mod fuzz;
mod kernels;
mod package;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Automation of the Foveal workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that CI runs: formatting, tidy, clippy, docs, tests, clients, the page, packages, licences.
    Ci,
    /// Checks the workspace's invariants: crate arrows, where unsafe may stand, file sizes, what crates must have.
    Tidy,
    /// Packages every publishable crate, as a registry would get it, and builds it from the package.
    Package,
    /// Compiles every CUDA kernel for every architecture, with no GPU, and prints registers, shared memory and spills.
    Kernels(kernels::KernelsArgs),
    /// Builds a folder and an archive for a machine that has a GPU and neither Rust nor NVRTC: the program, its compiled
    /// kernels, and the test and benchmark programs that need a GPU.
    Dist(dist::DistArgs),
    /// Micro-benchmarks, what each of the engine's ideas brings, then a model of Qwen3-VL-2B's shape on this machine's CPU
    /// beside HF transformers; `serve` measures a server.
    Bench(bench::BenchArgs),
    /// Fuzzes what strangers can reach, for an hour in all: requests' bodies, URLs, pictures' files, weights' headers.
    ///
    /// It needs cargo-fuzz (`cargo install --locked cargo-fuzz`), a C++ compiler, and no other Rust than the one at hand. What it
    /// does with findings and with new inputs stands in fuzz/README.md.
    Fuzz(fuzz::FuzzArgs),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let root = workspace_root()?;
    let shell = xshell::Shell::new()?;
    shell.change_dir(&root);
    match Args::parse().command {
        Command::Ci => ci::run(&shell, &root),
        Command::Tidy => tidy::run(&root),
        Command::Package => package::run(&shell, &root),
        Command::Kernels(args) => kernels::run(&shell, &args),
        Command::Dist(args) => dist::run(&shell, &root, &args),
        Command::Bench(args) => bench::run(&shell, &root, &args),
        Command::Fuzz(args) => fuzz::run(&shell, &root, &args),
    }
}

/// The folder that holds the workspace's manifest.
fn workspace_root() -> anyhow::Result<std::path::PathBuf> {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().ok_or_else(|| anyhow::anyhow!("{} has no parent folder", manifest.display()))?;
    Ok(root.to_owned())
}
