//! Judges a smaller form of a model against the model itself: exact answers, and how far the distributions are apart.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, ValueEnum};
use foveal_benches::accuracy::{
    Along, ModelChoice, RandomPrompts, judge_questions, judge_random, open_device, read_questions,
};
use foveal_device::{Device, DeviceKind};
use foveal_runtime::LoadFormat;

/// Judges a candidate (A) against a reference (B), another form of the same model.
#[derive(Parser)]
#[command(max_term_width = 110)]
struct Cli {
    /// What to judge them by
    #[arg(value_enum, default_value = "questions")]
    what: What,
    #[command(flatten)]
    models: Models,
    #[command(flatten)]
    questions: Questions,
    #[command(flatten)]
    random: Random,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Exact answers to questions, and the divergence along them
    Questions,
    /// The divergence alone, on random tokens: for dummy weights; needs a config.json only
    Kl,
}

#[derive(Args)]
struct Models {
    /// The candidate's model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How the candidate's weights are made smaller
    #[arg(long, value_name = "Q")]
    quantization: Option<String>,
    /// Element type of the candidate's KV cache
    #[arg(long, value_name = "D")]
    kv_cache_dtype: Option<String>,
    /// The reference's model folder
    #[arg(long, value_name = "DIR")]
    against: PathBuf,
    /// How the reference's weights are made smaller
    #[arg(long, value_name = "Q")]
    against_quantization: Option<String>,
    /// Element type of the reference's KV cache
    #[arg(long, value_name = "D")]
    against_kv_cache_dtype: Option<String>,
    /// auto reads the folders' weights; dummy makes the same random ones for both
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    load_format: Format,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Compute threads of the CPU; 0 takes one for each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

#[derive(Args)]
#[command(next_help_heading = "Options of questions")]
struct Questions {
    /// Questions with answers; tests/reference/tiny_questions.py writes them
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Only the first N questions
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The tokens that both are fed with, for the divergence
    #[arg(long, value_enum, default_value = "reference")]
    along: AlongArg,
    /// Write a line of comma-separated values for each question
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "Options of kl")]
struct Random {
    /// Prompts
    #[arg(long, value_name = "N", default_value_t = 8)]
    prompts: usize,
    /// Tokens of each prompt
    #[arg(long, value_name = "M", default_value_t = 256)]
    tokens: usize,
    /// Of the random tokens
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Auto,
    Dummy,
}

#[derive(Clone, Copy, ValueEnum)]
enum AlongArg {
    /// The reference's own greedy answers
    Reference,
    /// The right answers
    Given,
}

impl Models {
    /// The device, the candidate and the reference.
    fn open(self) -> anyhow::Result<(Device, ModelChoice, ModelChoice)> {
        let device = open_device(self.device.parse::<DeviceKind>()?, self.threads)?;
        let load_format = match self.load_format {
            Format::Auto => LoadFormat::Auto,
            Format::Dummy => LoadFormat::Dummy { seed: LoadFormat::DUMMY_SEED },
        };
        let candidate = ModelChoice {
            folder: self.model,
            load_format,
            quantization: self.quantization,
            kv_cache_dtype: self.kv_cache_dtype,
        };
        let reference = ModelChoice {
            folder: self.against,
            load_format,
            quantization: self.against_quantization,
            kv_cache_dtype: self.against_kv_cache_dtype,
        };
        println!("A, the candidate: {candidate}\nB, the reference: {reference}\non {device:?}");
        Ok((device, candidate, reference))
    }
}

impl Questions {
    fn judge(self, models: Models) -> anyhow::Result<()> {
        let Self { questions, limit, along, csv } = self;
        let questions = read_questions(&questions.context("--questions FILE is needed for that")?, limit)?;
        let along = match along {
            AlongArg::Reference => Along::Reference,
            AlongArg::Given => Along::Given,
        };
        let (device, candidate, reference) = models.open()?;
        let report = judge_questions(&device, &candidate, &reference, &questions, along)?;
        println!("{report}");
        csv.map_or(Ok(()), |csv| report.write_csv(&csv))
    }
}

impl Random {
    fn judge(self, models: Models) -> anyhow::Result<()> {
        let Self { prompts, tokens, seed } = self;
        let (device, candidate, reference) = models.open()?;
        let prompts = RandomPrompts { num_prompts: prompts, num_tokens: tokens, seed };
        println!("{}", judge_random(&device, &candidate, &reference, prompts)?);
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let Cli { what, models, questions, random } = Cli::parse();
    match what {
        What::Questions => questions.judge(models),
        What::Kl => random.judge(models),
    }
}
