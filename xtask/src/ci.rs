//! `cargo xtask ci`: the same command here and in CI.

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use xshell::{Shell, cmd};

/// Runs every check in the order in which it is cheapest to fail.
pub(crate) fn run(shell: &Shell, root: &Path) -> anyhow::Result<()> {
    step("formatting", || Ok(cmd!(shell, "cargo fmt --all --check").run()?))?;
    step("tidy", || Ok(cmd!(shell, "cargo xtask tidy").run()?))?;
    step("clippy", || Ok(cmd!(shell, "cargo clippy --workspace --all-targets --locked -- -D warnings").run()?))?;
    step("docs", || {
        let _strict = shell.push_env("RUSTDOCFLAGS", "-D warnings");
        Ok(cmd!(shell, "cargo doc --workspace --no-deps --locked").run()?)
    })?;
    // The README's test command, word for word.
    step("tests", || Ok(cmd!(shell, "cargo test --workspace").run()?))?;
    step("kernels", || crate::kernels::run_all(shell))?;
    step("the README's first command", || {
        let model = "tests/fixtures/tiny";
        let image = "tests/fixtures/images/shapes.png";
        let prompt = "Describe the picture.";
        let answer = cmd!(shell, "cargo run --release -- run --model {model} --image {image} {prompt}").read()?;
        println!("{answer}");
        ensure!(answer.starts_with("There are four shapes:"), "the picture has four shapes");
        Ok(())
    })?;
    // The program that the step before has built.
    let _program = shell.push_env("FOVEAL_BINARY", root.join("target/release/foveal"));
    step("clients", || Ok(cmd!(shell, "sh tests/clients/run.sh --quick").run()?))?;
    step("page", || page(shell))?;
    step("packages", || crate::package::run(shell, root))?;
    step("licences", || Ok(cmd!(shell, "cargo deny check licenses bans sources").run()?))?;
    println!("all checks passed");
    Ok(())
}

/// The page, where there is npm; the test itself says that it is skipped where there is no browser.
fn page(shell: &Shell) -> anyhow::Result<()> {
    if cmd!(shell, "npm --version").quiet().ignore_stderr().read().is_err() {
        println!("skipped: no npm");
        return Ok(());
    }
    let _folder = shell.push_dir("tests/page");
    cmd!(shell, "npm install --no-package-lock --no-audit --no-fund").run()?;
    Ok(cmd!(shell, "node test_page.mjs").run()?)
}

fn step(name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("=== {name}");
    let start = Instant::now();
    work().map_err(|e| e.context(format!("{name} failed")))?;
    println!("=== {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
