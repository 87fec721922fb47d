//! Whether every dependency has its reason, and how many packages there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::arrows::Package;

/// Where the reasons stand.
const REASONS: &str = "docs/dependencies.md";
/// The most packages of the lock file: what a newcomer's first build takes.
const MAX_PACKAGES: usize = 340;

/// Compares the manifests with the reasons.
pub(crate) fn check(root: &Path, packages: &[Package], faults: &mut Vec<String>) -> anyhow::Result<()> {
    let reasons = fs::read_to_string(root.join(REASONS))?;
    compare(packages, &reasons, faults);
    let lock = fs::read_to_string(root.join("Cargo.lock"))?;
    let num_packages = lock.lines().filter(|line| *line == "[[package]]").count();
    if num_packages > MAX_PACKAGES {
        faults.push(format!("Cargo.lock: {num_packages} packages; at most {MAX_PACKAGES}"));
    }
    Ok(())
}

fn compare(packages: &[Package], reasons: &str, faults: &mut Vec<String>) {
    let named: BTreeSet<&str> = reasons
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter(|(_, reason)| reason.len() > "|".len())
        .map(|(name, _)| name)
        .collect();
    let direct: BTreeSet<&str> = packages
        .iter()
        .flat_map(|package| &package.dependencies)
        .map(|dependency| dependency.name.as_str())
        .filter(|name| !name.starts_with("foveal-"))
        .collect();
    faults.extend(direct.difference(&named).map(|name| format!("{REASONS}: no line says what {name} is for")));
    faults.extend(named.difference(&direct).map(|name| format!("{REASONS}: {name} is no dependency any more")));
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::arrows::{Dependency, Package};
    use super::compare;

    #[test]
    fn every_dependency_has_a_line_and_every_line_a_dependency() {
        let dependencies =
            ["serde", "url", "foveal-types"].map(|name| Dependency { name: name.to_owned(), is_dev: true });
        let package = Package {
            name: "x".to_owned(),
            folder: PathBuf::new(),
            publishable: true,
            dependencies: dependencies.into(),
        };
        let mut faults = Vec::new();
        compare(&[package], "| package | for |\n| --- | --- |\n| `serde` | JSON |\n| `rand` | dice |\n", &mut faults);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("url") && faults[1].contains("rand"));
    }
}
