//! Benchmarks on an NVIDIA GPU: operators beside the card's own ceilings, and a model of full size with dummy weights.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use foveal_benches::gpu::{Bench, decode, load, operators, prefill};

/// Page-locked memory for copies.
const PINNED_BYTES: usize = 256 << 20;

/// Benchmarks on an NVIDIA GPU.
#[derive(Parser)]
struct Args {
    /// What to measure
    #[arg(value_enum, required = true)]
    what: Vec<What>,
    /// Folder of a published config.json, for decode and prefill; weights are made on the card
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of a checkpoint, for load
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// Only operators whose line holds this text
    #[arg(long, default_value = "", value_name = "TEXT")]
    filter: String,
    /// What was built, for the file
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Write comma-separated values, too
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Every operator at the shapes of Qwen3-VL-8B
    Operators,
    /// Steps of one token for 1, 32 and 128 sequences
    Decode,
    /// A prompt, and pictures
    Prefill,
    /// Weights from files to the card
    Load,
}

fn main() -> anyhow::Result<()> {
    let Args { what, model, weights, filter, commit, csv } = Args::parse();
    let mut bench = Bench::open(&filter, &commit, csv.as_deref())?;
    let _pool = foveal_pinned::install(bench.device(), PINNED_BYTES);
    let missing = |option| anyhow::anyhow!("{option} is needed for that");
    for what in what {
        match what {
            What::Operators => operators(&mut bench)?,
            What::Decode => decode(&mut bench, model.as_deref().ok_or_else(|| missing("--model DIR"))?)?,
            What::Prefill => prefill(&mut bench, model.as_deref().ok_or_else(|| missing("--model DIR"))?)?,
            What::Load => load(&mut bench, weights.as_deref().ok_or_else(|| missing("--weights DIR"))?)?,
        }
    }
    Ok(())
}
