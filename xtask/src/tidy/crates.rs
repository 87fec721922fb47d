//! What every crate must have.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::arrows::Package;

/// Where unsafe code may stand.
const MAY_BE_UNSAFE: &[&str] = &["device", "checkpoint", "kernels", "pinned", "graphs"];

/// Checks the files of every package.
pub(crate) fn check(root: &Path, packages: &[Package], faults: &mut Vec<String>) -> anyhow::Result<()> {
    let mut examples = Vec::new();
    for package in packages {
        let name = &package.name;
        let own = example_names(&package.folder);
        let lib = package.folder.join("src/lib.rs");
        let entry = if lib.exists() { lib } else { package.folder.join("src/main.rs") };
        let source = fs::read_to_string(&entry)?;
        if !MAY_BE_UNSAFE.contains(&name.as_str()) && !source.contains("#![forbid(unsafe_code)]") {
            faults.push(format!("{}: `#![forbid(unsafe_code)]` is missing", shown(root, &entry)));
        }
        if entry.ends_with("lib.rs") {
            only_declarations(root, &entry, &source, faults);
        }
        let manifest = fs::read_to_string(package.folder.join("Cargo.toml"))?;
        if !manifest.contains("[lints]\nworkspace = true") {
            faults.push(format!("{name}: Cargo.toml doesn't take the workspace's lints"));
        }
        if package.publishable {
            publishable(package, own.is_empty(), faults);
        }
        examples.extend(own.into_iter().map(|example| (name.as_str(), example)));
    }
    told_apart(&examples, faults);
    Ok(())
}

/// The files of a package's examples; none if it has no such folder.
fn example_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("examples")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Cargo builds the examples of all packages into one folder, where two of one name overwrite each other.
fn told_apart(examples: &[(&str, String)], faults: &mut Vec<String>) {
    let mut owners = BTreeMap::new();
    for (package, example) in examples {
        if let Some(other) = owners.insert(example, package) {
            faults.push(format!("{other} and {package} both have an example {example}; rename one"));
        }
    }
}

/// `lib.rs` holds docs, attributes, `mod` and `use` lines and nothing else.
fn only_declarations(root: &Path, path: &Path, source: &str, faults: &mut Vec<String>) {
    let mut inside_use = false;
    for (number, line) in source.lines().enumerate() {
        let line = line.trim();
        let declares = ["//", "#", "mod ", "pub mod ", "pub(crate) mod ", "use ", "pub use ", "pub(crate) use "]
            .iter()
            .any(|start| line.starts_with(start));
        if !line.is_empty() && !declares && !inside_use {
            faults.push(format!("{}:{}: lib.rs holds only docs, mod and use lines", shown(root, path), number + 1));
        }
        if line.contains("use ") || inside_use {
            inside_use = !line.ends_with(';') && !line.starts_with("//");
        }
    }
}

/// What a registry and its readers ask for.
fn publishable(package: &Package, has_no_example: bool, faults: &mut Vec<String>) {
    for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        if !package.folder.join(file).exists() {
            faults.push(format!("{}: {file} is missing", package.name));
        }
    }
    if has_no_example {
        faults.push(format!("{}: a library has an example in examples/", package.name));
    }
}

/// A path as a reader knows it.
pub(crate) fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::told_apart;

    #[test]
    fn examples_have_names_of_their_own() {
        let faults = |names: [&str; 3]| {
            let examples =
                [("llm", names[0].to_owned()), ("llm", names[1].to_owned()), ("engine", names[2].to_owned())];
            let mut faults = Vec::new();
            told_apart(&examples, &mut faults);
            faults
        };
        assert_eq!(faults(["a.rs", "b.rs", "c.rs"]), [""; 0]);
        assert_eq!(faults(["a.rs", "b.rs", "a.rs"]), ["llm and engine both have an example a.rs; rename one"]);
    }
}
