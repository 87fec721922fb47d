//! `cargo xtask fuzz`: inputs made to break what strangers can reach.

use std::fs;
use std::path::Path;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use xshell::{Shell, cmd};

/// What to fuzz, and for how long.
#[derive(clap::Args)]
pub(crate) struct FuzzArgs {
    /// One target alone; all of them, one after another, by default.
    #[arg(value_enum)]
    target: Option<Target>,
    /// Seconds for each target. The default makes an hour of all of them, and the time to build them.
    #[arg(long, value_name = "N", default_value_t = 720, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// A program below fuzz/fuzz_targets.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    /// A chat's body: JSON, parameters, messages.
    ChatRequest,
    /// A picture's data URL.
    DataUrl,
    /// A picture's file: its header, and the pixels of a small one.
    PictureHeader,
    /// A weight file's header.
    SafetensorsHeader,
    /// A picture's address where no host may be fetched from.
    Url,
}

impl Target {
    /// The longest input, in bytes. Long ones are slow and reach little more.
    fn max_len(self) -> u32 {
        match self {
            Self::DataUrl | Self::Url => 512,
            Self::ChatRequest | Self::SafetensorsHeader => 2048,
            Self::PictureHeader => 4096,
        }
    }

    /// As files and commands have it.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Seconds after which one input counts as endless.
const TIMEOUT_S: u32 = 20;

/// Fuzzes each target for its time and names those that have findings.
pub(crate) fn run(shell: &Shell, root: &Path, args: &FuzzArgs) -> anyhow::Result<()> {
    let has_cargo_fuzz = cmd!(shell, "cargo fuzz --version").quiet().ignore_stderr().read().is_ok();
    ensure!(has_cargo_fuzz, "cargo-fuzz isn't installed; `cargo install --locked cargo-fuzz` does that");
    // Sanitizers and coverage are options that a stable compiler has, but doesn't take otherwise.
    let _takes_unstable_options = shell.push_env("RUSTC_BOOTSTRAP", "1");
    let targets = args.target.map_or_else(|| Target::value_variants().to_vec(), |target| vec![target]);
    let mut with_findings = Vec::new();
    for target in targets {
        println!("=== {}: {} s", target.name(), args.seconds);
        if fuzz(shell, root, target, args.seconds).is_err() {
            with_findings.push(target.name());
        }
    }
    if !with_findings.is_empty() {
        bail!("{} failed; see above, and fuzz/README.md for what to do with a finding", with_findings.join(", "));
    }
    println!("nothing found");
    Ok(())
}

fn fuzz(shell: &Shell, root: &Path, target: Target, seconds: u32) -> anyhow::Result<()> {
    let (name, folder) = (target.name(), root.join("fuzz"));
    // New inputs go to the first folder, so that the committed ones stay as they are.
    let (found, committed) = (folder.join("target/corpus").join(&name), folder.join("corpus").join(&name));
    fs::create_dir_all(&found)?;
    let max_len = target.max_len();
    let limits = [format!("-max_total_time={seconds}"), format!("-max_len={max_len}"), format!("-timeout={TIMEOUT_S}")];
    cmd!(shell, "cargo fuzz run {name} {found} {committed} -- {limits...} -print_final_stats=1").run()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), Target::value_variants().len());
        for name in Target::value_variants().iter().map(|target| target.name()) {
            assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name}");
            assert!(folder.join("fuzz_targets").join(&name).with_extension("rs").exists(), "{name}");
            assert!(folder.join("corpus").join(&name).read_dir().unwrap().next().is_some(), "{name}");
        }
    }
}
