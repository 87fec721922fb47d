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
    ("graphs", &["device"]),
    ("processor", &["types", "mrope"]),
    ("load", &["types", "processor"]),
    ("hub", &[]),
    ("fetch", &["types"]),
    ("server", &["types", "processor", "engine", "fetch"]),
    ("vision", &["mrope", "device", "kernels", "checkpoint"]),
    ("llm", &["types", "mrope", "device", "kernels", "checkpoint"]),
    ("engine", &["types", "mrope", "device", "kernels", "checkpoint", "pinned", "graphs", "vision", "llm"]),
    (
        "runtime",
        &[
            "types",
            "mrope",
            "device",
            "kernels",
            "checkpoint",
            "pinned",
            "load",
            "hub",
            "fetch",
            "server",
            "processor",
            "vision",
            "llm",
            "engine",
        ],
    ),
    ("testkit", &["device"]),
];

/// Dependencies that only one crate may name, for its tests or its build script no less than for its code.
const OWNED: &[(&str, &str)] = &[("cudarc", "device"), ("memmap2", "checkpoint"), ("tokenizers", "processor")];

/// One package of the workspace.
pub(crate) struct Package {
    /// Without the `foveal-` prefix.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Whether it goes to a registry.
    pub(crate) publishable: bool,
    /// What it names in its manifest.
    pub(crate) dependencies: Vec<Dependency>,
}

/// One dependency of a package.
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Only its tests, examples and benchmarks have it.
    pub(crate) is_dev: bool,
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
                .map(|d| Dependency { name: d.name.clone(), is_dev: d.kind == DependencyKind::Development })
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
            if package.name != *owner && package.dependencies.iter().any(|d| d.name == *dependency) {
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
        let shipped = package.dependencies.iter().filter(|d| !d.is_dev);
        for dependency in shipped.filter_map(|d| d.name.strip_prefix("foveal-")) {
            if !allowed.contains(&dependency) {
                faults.push(format!("{} depends on {dependency}; it may depend on {allowed:?}", package.name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Dependency, Package, PathBuf, check};

    /// What is wrong with a package that has one dependency.
    fn faults(package: &str, dependency: &str, is_dev: bool) -> Vec<String> {
        let mut faults = Vec::new();
        let dependencies = vec![Dependency { name: dependency.to_owned(), is_dev }];
        let package = Package { name: package.to_owned(), folder: PathBuf::new(), publishable: true, dependencies };
        check(&[package], &mut faults);
        faults
    }

    #[test]
    fn crates_depend_along_the_arrows() {
        assert_eq!(faults("vision", "foveal-mrope", false), [""; 0]);
        assert_eq!(faults("vision", "foveal-llm", false).len(), 1);
        assert_eq!(faults("vision", "foveal-processor", true), [""; 0], "tests may put crates together");
        assert_eq!(faults("unheard-of", "serde", false).len(), 1);
    }

    #[test]
    fn the_driver_the_map_and_the_tokenizer_have_one_owner() {
        assert_eq!(faults("device", "cudarc", false), [""; 0]);
        for is_dev in [false, true] {
            assert_eq!(faults("kernels", "cudarc", is_dev), ["kernels depends on cudarc; only device may"]);
            assert_eq!(faults("tests", "memmap2", is_dev), ["tests depends on memmap2; only checkpoint may"]);
        }
    }
}
