//! `cargo xtask package`: what a registry would get.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context;
use xshell::{Shell, cmd};

/// Packages every publishable crate. Each is built from its package, so a file that only the workspace has, or a
/// dependency without a version, fails here and not on the day of a release.
pub(crate) fn run(shell: &Shell, root: &Path) -> anyhow::Result<()> {
    let target = root.join("target/packages");
    forget_last_packages(shell, &target)?;
    // The working tree need not be committed while one works on it; CI's is.
    cmd!(shell, "cargo package --workspace --locked --allow-dirty --target-dir {target}")
        .args(["--exclude", "foveal-testkit", "--exclude", "foveal-tests", "--exclude", "foveal-benches"])
        .args(["--exclude", "xtask"])
        .run()?;
    Ok(())
}

/// Removes what the last run left of our own crates. Cargo serves the crates to one another from a registry of its own
/// under the target folder, unpacks them in its home, and takes a crate of the same version for the same crate: without
/// this, a crate would be built against yesterday's of the one below it.
fn forget_last_packages(shell: &Shell, target: &Path) -> anyhow::Result<()> {
    shell.remove_path(target)?;
    let sources = cargo_home()?.join("registry/src");
    if !sources.is_dir() {
        return Ok(());
    }
    for registry in shell.read_dir(&sources)? {
        // A registry without a host is a local one: cargo names its folder by the hash alone.
        if !name(&registry).starts_with('-') {
            continue;
        }
        for source in shell.read_dir(&registry)?.iter().filter(|source| name(source).starts_with("foveal-")) {
            shell.remove_path(source)?;
        }
    }
    Ok(())
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn cargo_home() -> anyhow::Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    Ok(env::home_dir().context("no home folder: set CARGO_HOME")?.join(".cargo"))
}
