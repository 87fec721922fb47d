//! Benchmarks on an NVIDIA GPU: operators beside the card's own ceilings, and a model of full size with dummy weights.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use foveal_benches::gpu::{Bench, ModelForm, decode, kernels, load, prefill};

/// Benchmarks on an NVIDIA GPU.
#[derive(Parser)]
struct Args {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    what: Vec<What>,
    /// Folder of a published config.json, for decode and prefill; weights are made on the card
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of a checkpoint, for load
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// For decode and prefill: fp8 rounds the weights of the decoder, as `foveal run` would
    #[arg(long, value_name = "FORMAT")]
    quantization: Option<String>,
    /// For decode and prefill: auto, fp8 or bfloat16
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    kv_cache_dtype: String,
    /// Only lines that hold this text, such as "linear qkv 1 x" or "graph"
    #[arg(long, default_value = "", value_name = "TEXT")]
    filter: String,
    /// The same rows in every call, which come from the card's cache, as those of a step do from one kernel to the next
    #[arg(long)]
    resident: bool,
    /// What was built, for the file
    #[arg(long, default_value = "unknown", value_name = "HASH")]
    commit: String,
    /// Add comma-separated values to a file, too
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Every operator at the shapes of Qwen3-VL-8B
    #[value(alias = "operators")]
    Kernels,
    /// Steps of one token for 1, 32 and 128 sequences
    Decode,
    /// A prompt, and pictures
    Prefill,
    /// Weights from files to the card
    Load,
    /// All for which there are folders
    All,
}

impl Args {
    /// What there are folders for, if all was asked for.
    fn wanted(&self) -> Vec<What> {
        let all = [
            (What::Kernels, true),
            (What::Decode, self.model.is_some()),
            (What::Prefill, self.model.is_some()),
            (What::Load, self.weights.is_some()),
        ];
        let all = || all.into_iter().filter(|(_, can)| *can).map(|(what, _)| what).collect();
        self.what.iter().flat_map(|what| if matches!(what, What::All) { all() } else { vec![*what] }).collect()
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let wanted = args.wanted();
    let form = ModelForm::parse(args.quantization.as_deref(), &args.kv_cache_dtype)?;
    let Args { model, weights, filter, resident, commit, csv, .. } = args;
    let model = || model.as_deref().ok_or_else(|| anyhow::anyhow!("--model DIR is needed for that"));
    let weights = || weights.as_deref().ok_or_else(|| anyhow::anyhow!("--weights DIR is needed for that"));
    // Said before anything takes the card's time.
    for what in &wanted {
        match what {
            What::Decode | What::Prefill => _ = model()?,
            What::Load => _ = weights()?,
            What::Kernels | What::All => {}
        }
    }
    let mut bench = Bench::open(&filter, &commit, csv.as_deref())?;
    if resident {
        bench.keep_operands();
    }
    for what in wanted {
        match what {
            What::Kernels => kernels(&mut bench)?,
            What::Decode => decode(&mut bench, model()?, form)?,
            What::Prefill => prefill(&mut bench, model()?, form)?,
            What::Load => load(&mut bench, weights()?)?,
            What::All => {}
        }
    }
    bench.finish()
}
