//! What each of the engine's ideas brings, one switched off at a time.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use foveal_benches::gpu::ModelForm;
use foveal_benches::ideas::{Header, Machine, Options, Scale, Section, Table, run};
use foveal_runtime::LoadFormat;

/// Each of the engine's ideas beside the same work without it, as a table.
#[derive(Parser)]
#[command(max_term_width = 110)]
struct Args {
    /// A model folder: its sizes, tokenizer and template; weights only without --load-format dummy
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Sections, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "rope,pinned,fused,text,graphs,overlap")]
    section: Vec<Section>,
    /// auto takes the GPU if there is one; all measures on the CPU, too
    #[arg(long, value_enum, default_value = "auto")]
    device: Where,
    /// auto reads the folder's weights; dummy makes random ones
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "auto")]
    load_format: Format,
    /// fp8 rounds the weights of the decoder, as `foveal run` would
    #[arg(long, value_name = "FORMAT")]
    quantization: Option<String>,
    /// auto, fp8 or bfloat16
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    kv_cache_dtype: String,
    /// Compute threads of the CPU; 0 takes one for each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// What was built, for the file
    #[arg(long, default_value = "unknown", value_name = "HASH")]
    commit: String,
    /// Write the table as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Where {
    Auto,
    Cpu,
    Cuda,
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Auto,
    Dummy,
}

impl Args {
    /// What to measure on, the CPU first.
    fn machines(&self) -> anyhow::Result<Vec<Machine>> {
        let gpu = || Machine::gpu(&self.commit);
        // Without a GPU there are no rows of one, and no error.
        let perhaps = || gpu().inspect_err(|error| eprintln!("no rows of a GPU: {error:#}")).ok();
        let cpu = || Machine::cpu(self.threads);
        Ok(match self.device {
            Where::Cpu => vec![cpu()?],
            Where::Cuda => vec![gpu()?],
            Where::Auto => vec![perhaps().map_or_else(cpu, Ok)?],
            Where::All => Some(cpu()?).into_iter().chain(perhaps()).collect(),
        })
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let form = ModelForm::parse(args.quantization.as_deref(), &args.kv_cache_dtype)?;
    let load_format = match args.load_format {
        Format::Auto => LoadFormat::Auto,
        Format::Dummy => LoadFormat::Dummy { seed: LoadFormat::DUMMY_SEED },
    };
    let options = Options { model: args.model.clone(), load_format, form, scale: Scale::Full };
    let machines = args.machines()?;
    let header = Header { commit: args.commit.clone(), model: args.model.display().to_string() };
    let mut table = Table::new(header, args.json.clone());
    for machine in machines {
        run(machine, &options, &args.section, &mut table)?;
    }
    ensure!(table.num_failed() == 0, "{} rows could not be measured", table.num_failed());
    Ok(())
}
