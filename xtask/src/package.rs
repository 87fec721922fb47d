//! `cargo xtask package`: what a registry would get.

use xshell::{Shell, cmd};

/// Packages every publishable crate. Each is built from its package, so a file that only the workspace has, or a
/// dependency without a version, fails here and not on the day of a release.
pub(crate) fn run(shell: &Shell) -> anyhow::Result<()> {
    // The working tree need not be committed while one works on it; CI's is.
    cmd!(shell, "cargo package --workspace --locked --allow-dirty")
        .args(["--exclude", "foveal-testkit", "--exclude", "foveal-tests", "--exclude", "foveal-benches"])
        .args(["--exclude", "xtask"])
        .run()?;
    Ok(())
}
