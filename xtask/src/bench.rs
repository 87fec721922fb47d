//! `cargo xtask bench`: micro-benchmarks, what each of the engine's ideas brings, then a whole model on this machine's CPU
//! beside HF transformers in bf16; or, as `cargo xtask bench serve`, a server (see `bench_serve.rs`).
//!
//! Absolute times on a shared CPU mean little, so the two engines take turns and the ratio of their medians is reported.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use xshell::{Shell, cmd};

use crate::bench_serve::{self, BenchServeArgs};

/// What to measure.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: Option<BenchCommand>,
    /// Leave the micro-benchmarks out.
    #[arg(long)]
    no_micro: bool,
    /// Leave the table of ideas out.
    #[arg(long)]
    no_ideas: bool,
    /// The model folder whose sizes the ideas are measured at [default: tests/fixtures/tiny]
    #[arg(long, value_name = "DIR")]
    ideas_model: Option<PathBuf>,
    /// Leave the whole model out.
    #[arg(long)]
    no_model: bool,
    /// A Python that has torch and transformers; without them only Foveal is measured.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Folder of the published configurations, `models/` and `tokenizer/` in it.
    #[arg(long, env = "FOVEAL_TEST_ASSETS")]
    assets: Option<PathBuf>,
    /// Compute threads of either engine; as many as there are cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Words of the prompt; each is one token.
    #[arg(long, default_value_t = 240)]
    prompt_words: usize,
    /// Tokens to decode.
    #[arg(long, default_value_t = 16)]
    decode_tokens: usize,
    /// Turns of each engine.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(clap::Subcommand)]
enum BenchCommand {
    /// Starts `foveal serve`, measures it with `foveal bench serve` at several concurrencies, and writes tables and charts.
    ///
    /// For the workload of the published figures: `--load-format dummy --quantization fp8 --kv-cache-dtype fp8` and a folder of
    /// Qwen3-VL-8B's small files.
    Serve(Box<BenchServeArgs>),
}

/// The model whose shape is measured: the smallest published one.
const MODEL: &str = "Qwen3-VL-2B-Instruct";

/// Runs what was asked for.
pub(crate) fn run(shell: &Shell, root: &Path, args: &BenchArgs) -> anyhow::Result<()> {
    if let Some(BenchCommand::Serve(args)) = &args.what {
        return bench_serve::run(shell, root, args);
    }
    if !args.no_micro {
        cmd!(shell, "cargo bench --workspace").run()?;
    }
    if !args.no_ideas {
        ideas(shell, root, args)?;
    }
    if !args.no_model {
        model(shell, root, args)?;
    }
    Ok(())
}

/// The table of ideas: on the CPU, and on a GPU if there is one.
fn ideas(shell: &Shell, root: &Path, args: &BenchArgs) -> anyhow::Result<()> {
    cmd!(shell, "cargo build --release -p foveal-benches --bin ideas").run()?;
    let model = args.ideas_model.clone().unwrap_or_else(|| root.join("tests/fixtures/tiny"));
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder)?;
    let (json, threads) = (folder.join("ideas.json"), args.threads.unwrap_or(0).to_string());
    let commit = cmd!(shell, "git describe --always --dirty").quiet().read().unwrap_or_else(|_| "unknown".to_owned());
    let options = ["--device", "all", "--threads", &threads, "--commit", &commit];
    cmd!(shell, "target/release/ideas --model {model} {options...} --json {json}").run()?;
    println!("written to {}", json.display());
    Ok(())
}

/// One engine's seconds in one turn.
#[derive(Clone, Copy)]
struct Turn {
    prefill_s: f64,
    decode_step_s: f64,
}

fn model(shell: &Shell, root: &Path, args: &BenchArgs) -> anyhow::Result<()> {
    let Some(assets) = &args.assets else {
        println!("skipped: the whole model needs --assets (or FOVEAL_TEST_ASSETS) with the published configurations");
        return Ok(());
    };
    let folder = root.join("target/bench").join(MODEL);
    cmd!(shell, "cargo build --release -p foveal-runtime -p foveal-benches").run()?;
    if !folder.join("model.safetensors").exists() {
        let config = assets.join("models").join(MODEL);
        let tokenizer = assets.join("tokenizer/tokenizer.json");
        cmd!(shell, "target/release/random_checkpoint {config} {tokenizer} {folder}").run()?;
    }
    let threads = match args.threads {
        Some(n) => n,
        None => thread::available_parallelism()?.get(),
    };
    let checkpoint_bytes = fs::metadata(folder.join("model.safetensors"))?.len();

    let (mut ours, mut theirs, mut peak, mut prompt_tokens) = (Vec::new(), Vec::new(), 0, 0);
    for round in 0..args.rounds {
        let (turn, tokens, peak_bytes) = foveal(root, &folder, threads, args)?;
        ours.push(turn);
        (prompt_tokens, peak) = (tokens, peak.max(peak_bytes));
        if let Some(turn) = transformers(root, &folder, threads, tokens, args)? {
            theirs.push(turn);
        }
        println!("round {} of {} done", round + 1, args.rounds);
    }
    report(&ours, &theirs, prompt_tokens, threads);
    let share = peak as f64 / checkpoint_bytes as f64;
    println!("peak resident memory {:.2} GB = {share:.3} x the checkpoint", peak as f64 / 1e9);
    Ok(())
}

/// One turn of the `foveal` binary: its figures, the prompt's tokens, its peak resident memory in bytes.
fn foveal(root: &Path, folder: &Path, threads: usize, args: &BenchArgs) -> anyhow::Result<(Turn, usize, u64)> {
    let prompt = "a ".repeat(args.prompt_words);
    let mut child = Command::new(root.join("target/release/foveal"))
        .args(["run", "--json", "--temperature", "0", "--device", "cpu", "--ignore-eos", "--model"])
        .arg(folder)
        .args(["--threads", &threads.to_string(), "--max-tokens", &(args.decode_tokens + 1).to_string(), prompt.trim()])
        .stdout(Stdio::piped())
        .spawn()
        .context("target/release/foveal")?;
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        peak = peak.max(peak_resident_bytes(child.id()).unwrap_or(0));
        thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "foveal run failed: {}", output.status);
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let number = |pointer: &str| {
        answer.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no {pointer} in foveal's answer"))
    };
    let decode_s = number("/timings/decode_s")?;
    let steps = number("/completion_tokens")? - 1.0;
    let turn = Turn { prefill_s: number("/timings/ttft_s")?, decode_step_s: decode_s / steps };
    Ok((turn, number("/prompt_tokens")? as usize, peak))
}

/// `VmHWM` of a running process.
fn peak_resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// One turn of HF transformers; `None` if that Python lacks it.
fn transformers(
    root: &Path,
    folder: &Path,
    threads: usize,
    prompt_tokens: usize,
    args: &BenchArgs,
) -> anyhow::Result<Option<Turn>> {
    let has_it = Command::new(&args.python).args(["-c", "import torch, transformers"]).stderr(Stdio::null()).status();
    if !has_it.is_ok_and(|status| status.success()) {
        println!("skipped: {} has no torch and transformers", args.python.display());
        return Ok(None);
    }
    let output = Command::new(&args.python)
        .arg(root.join("benches/hf_cpu.py"))
        .arg(folder)
        .args([prompt_tokens.to_string(), args.decode_tokens.to_string(), threads.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "benches/hf_cpu.py failed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let Some(line) = text.lines().last() else { bail!("benches/hf_cpu.py printed nothing") };
    let figures: Value = serde_json::from_str(line)?;
    let number = |key: &str| figures.get(key).and_then(Value::as_f64).with_context(|| key.to_owned());
    Ok(Some(Turn { prefill_s: number("prefill_s")?, decode_step_s: number("decode_step_s")? }))
}

fn report(ours: &[Turn], theirs: &[Turn], prompt_tokens: usize, threads: usize) {
    println!("\n{MODEL}'s shape, random bf16 weights, {threads} threads, {prompt_tokens} prompt tokens; medians");
    println!("| | prefill tok/s | decode tok/s |\n| --- | --- | --- |");
    let row = |name: &str, turns: &[Turn]| {
        let prefill = prompt_tokens as f64 / median(turns.iter().map(|t| t.prefill_s));
        let decode = 1.0 / median(turns.iter().map(|t| t.decode_step_s));
        println!("| {name} | {prefill:.1} | {decode:.2} |");
        (prefill, decode)
    };
    let (prefill, decode) = row("foveal (float32 activations)", ours);
    if theirs.is_empty() {
        return;
    }
    let (their_prefill, their_decode) = row("HF transformers, bf16", theirs);
    println!("| ratio | {:.2} | {:.2} |", prefill / their_prefill, decode / their_decode);
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
