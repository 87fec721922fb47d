//! What every source file keeps to.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// No source file is longer: one idea a file.
const MAX_LINES: usize = 800;
/// No module has more lines of code, its tests, comments and blank lines not counted.
const MAX_CODE_LINES: usize = 400;

/// Files that may be longer, each with its reason.
const LONGER: &[(&str, &str)] = &[];

/// Words that no source file holds, with what is wrong with them.
const BANNED: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "finish it or leave it out"),
    (concat!("FIX", "ME"), "mend it or leave it out"),
    (concat!("todo", "!("), "a stub is not code"),
    (concat!("unimple", "mented!("), "a stub is not code"),
    (concat!("#[ig", "nore"), "a test that doesn't run is no test; report `skipped` from inside"),
    (concat!("#[should_", "panic"), "assert the error instead"),
    (concat!("dbg", "!("), "left over from debugging"),
];

/// Checks every file that git tracks.
pub(crate) fn check(root: &Path, faults: &mut Vec<String>) -> anyhow::Result<()> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().context("git ls-files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    for name in String::from_utf8(output.stdout)?.split_terminator('\0') {
        let path = root.join(name);
        let text = ["rs", "toml", "md", "cu", "cuh", "py", "yml"];
        let is_text = path.extension().is_some_and(|e| text.iter().any(|t| e == *t));
        // A file that was removed but not yet committed is no fault.
        if !is_text || path.is_symlink() || !path.exists() || name == "Cargo.lock" {
            continue;
        }
        let source = fs::read_to_string(&path).with_context(|| name.to_owned())?;
        hygiene(name, &source, faults);
        if name.ends_with(".md") {
            links(&path, name, &source, faults);
        }
        if name.ends_with(".rs") {
            rust(name, &source, faults);
        }
    }
    Ok(())
}

/// White space.
fn hygiene(name: &str, source: &str, faults: &mut Vec<String>) {
    if !source.is_empty() && !source.ends_with('\n') {
        faults.push(format!("{name}: the last line has no end"));
    }
    for (number, line) in source.lines().enumerate() {
        if line.ends_with([' ', '\t', '\r']) {
            faults.push(format!("{name}:{}: white space at the line's end", number + 1));
        }
        if line.contains('\t') && !name.ends_with(".md") {
            faults.push(format!("{name}:{}: a tab", number + 1));
        }
    }
}

/// Links to files of the repository lead somewhere.
fn links(path: &Path, name: &str, source: &str, faults: &mut Vec<String>) {
    let folder = path.parent().unwrap_or(path);
    for rest in source.split("](").skip(1) {
        let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
        let is_file = !target.is_empty() && !target.contains(':');
        if is_file && !folder.join(target).exists() {
            faults.push(format!("{name}: the link to {target} leads nowhere"));
        }
    }
}

/// Sizes and words.
fn rust(name: &str, source: &str, faults: &mut Vec<String>) {
    for (word, why) in BANNED {
        if let Some(number) = source.lines().position(|line| line.contains(word)) {
            faults.push(format!("{name}:{}: `{word}`: {why}", number + 1));
        }
    }
    if LONGER.iter().any(|(longer, _)| *longer == name) {
        return;
    }
    let lines = source.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{name}: {lines} lines, at most {MAX_LINES}"));
    }
    let code = source
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
        .count();
    if code > MAX_CODE_LINES {
        faults.push(format!("{name}: {code} lines of code, at most {MAX_CODE_LINES}"));
    }
}
