//! `cargo xtask tidy`: the invariants that no compiler keeps. Each check says what it found, where, and what is right.

mod arrows;
mod crates;
mod dependencies;
mod sources;

use std::path::Path;

use anyhow::bail;

/// Runs every check and reports all faults at once.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    let packages = arrows::packages(root)?;
    arrows::check(&packages, &mut faults);
    crates::check(root, &packages, &mut faults)?;
    dependencies::check(root, &packages, &mut faults)?;
    sources::check(root, &mut faults)?;
    if faults.is_empty() {
        println!("tidy: {} crates, no fault", packages.len());
        return Ok(());
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    bail!("{} faults", faults.len())
}
