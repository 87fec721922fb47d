//! Which crate may depend on which.

use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The arrows of docs/ARCHITECTURE.md: a crate and everything inside of the workspace that it may depend on. Crates that
/// never leave the workspace (tests, benches, xtask) are free.
const ARROWS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("mrope", &[]),
    ("device", &[]),
    ("checkpoint", &["types", "device"]),
    ("kernels", &["device"]),
    ("pinned", &["device"]),
    ("processor", &["types", "mrope"]),
    ("vision", &["mrope", "device", "kernels", "checkpoint"]),
    ("llm", &["types", "mrope", "device", "kernels", "checkpoint"]),
    ("engine", &["types", "mrope", "device", "kernels", "checkpoint", "pinned", "vision", "llm"]),
    (
        "runtime",
        &["types", "mrope", "device", "kernels", "checkpoint", "pinned", "processor", "vision", "llm", "engine"],
    ),
    ("testkit", &[]),
];

/// Dependencies that only one crate may name.
const OWNED: &[(&str, &str)] = &[("cudarc", "device"), ("memmap2", "checkpoint"), ("tokenizers", "processor")];

/// One package of the workspace.
pub(crate) struct Package {
    /// Without the `foveal-` prefix.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Whether it goes to a registry.
    pub(crate) publishable: bool,
    /// Names of its normal dependencies.
    pub(crate) dependencies: Vec<String>,
}

/// Every package of the workspace.
pub(crate) fn packages(root: &Path) -> anyhow::Result<Vec<Package>> {
    let metadata = MetadataCommand::new().current_dir(root).no_deps().exec()?;
    Ok(metadata
        .packages
        .iter()
        .map(|package| Package {
            name: short(&package.name).to_owned(),
            folder: package.manifest_path.parent().map(|p| p.as_std_path().to_owned()).unwrap_or_default(),
            publishable: package.publish.as_ref().is_none_or(|registries| !registries.is_empty()),
            dependencies: package
                .dependencies
                .iter()
                .filter(|d| d.kind == DependencyKind::Normal)
                .map(|d| d.name.clone())
                .collect(),
        })
        .collect())
}

fn short(name: &str) -> &str {
    name.strip_prefix("foveal-").unwrap_or(name)
}

/// Checks each package's dependencies against the arrows.
pub(crate) fn check(packages: &[Package], faults: &mut Vec<String>) {
    for package in packages {
        for (dependency, owner) in OWNED {
            if package.name != *owner && package.dependencies.iter().any(|d| d == dependency) {
                faults.push(format!("{} depends on {dependency}; only {owner} may", package.name));
            }
        }
        if ["tests", "benches", "xtask"].contains(&package.name.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            faults.push(format!(
                "{} is in no arrow: add it to xtask/src/tidy/arrows.rs and ARCHITECTURE.md",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter_map(|d| d.strip_prefix("foveal-")) {
            if !allowed.contains(&dependency) {
                faults.push(format!("{} depends on {dependency}; it may depend on {allowed:?}", package.name));
            }
        }
    }
}
