//! `cargo xtask kernels`: every kernel compiles, for every architecture, without a warning or a spilled register.
//!
//! NVRTC needs no GPU, so that CI finds what a machine with another GPU would. The work is an example of the kernels'
//! crate: this crate depends on nothing that takes long to build.

use xshell::{Shell, cmd};

/// One of each generation: A100; L4 and RTX 40; H100 and H200; B200.
pub(crate) const ARCHS: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_100a"];

/// What to compile.
#[derive(clap::Args)]
pub(crate) struct KernelsArgs {
    /// An architecture, as `sm_90a`; may be given again. By default sm_80, sm_89, sm_90a and sm_100a.
    #[arg(long = "arch")]
    archs: Vec<String>,
    /// Only kernels whose names hold one of these words
    #[arg(value_name = "WORD")]
    words: Vec<String>,
}

/// Compiles the kernels and prints what each takes.
pub(crate) fn run(shell: &Shell, args: &KernelsArgs) -> anyhow::Result<()> {
    let archs = match args.archs.as_slice() {
        [] => ARCHS.map(str::to_owned).to_vec(),
        archs => archs.to_vec(),
    };
    let words = &args.words;
    cmd!(
        shell,
        "cargo run --quiet --locked --package foveal-kernels --example compile_kernels -- {archs...} {words...}"
    )
    .run()?;
    Ok(())
}

/// All of them for all architectures.
pub(crate) fn run_all(shell: &Shell) -> anyhow::Result<()> {
    run(shell, &KernelsArgs { archs: Vec::new(), words: Vec::new() })
}
