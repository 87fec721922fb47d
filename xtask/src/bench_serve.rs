//! `cargo xtask bench serve`: a server of this tree, measured through HTTP by its own `foveal bench serve`.
//!
//! Only starting and watching the server is done here. On a machine without cargo the same is `foveal serve ... &` and
//! `foveal bench serve --ready-check-timeout-sec 600 ...`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use xshell::{Shell, cmd};

/// How long a server may take until it is ready: weights of a large model from a slow disk.
const READY_TIMEOUT_S: u32 = 1800;
/// Between two looks at the processes.
const INTERVAL: Duration = Duration::from_millis(100);

/// What to serve and what to ask of it.
#[derive(clap::Args)]
pub(crate) struct BenchServeArgs {
    /// Model folder as the hub has it.
    #[arg(long)]
    model: PathBuf,
    /// Folder that holds the model's tokenizer.json; the model's by default.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// A `foveal` that is there already; by default this tree's is built.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// As `foveal serve` has it: auto, or dummy for random weights.
    #[arg(long, default_value = "dummy")]
    load_format: String,
    /// As `foveal serve` has it.
    #[arg(long)]
    quantization: Option<String>,
    /// As `foveal serve` has it.
    #[arg(long)]
    kv_cache_dtype: Option<String>,
    /// As `foveal serve` has it; the largest concurrency by default.
    #[arg(long)]
    max_num_seqs: Option<usize>,
    /// As `foveal serve` has it.
    #[arg(long)]
    max_num_batched_tokens: Option<usize>,
    /// Where the server listens.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Requests at once, one after another.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,64,128,256")]
    concurrency: Vec<usize>,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Text tokens of a prompt.
    #[arg(long, default_value_t = 1000)]
    input_len: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 1000)]
    output_len: usize,
    /// Pictures of a prompt.
    #[arg(long, default_value_t = 1)]
    num_images: usize,
    /// Size of a picture.
    #[arg(long, default_value = "512x512")]
    image_size: String,
    /// Where the table, the charts, the results and the server's log go.
    #[arg(long, default_value = "target/bench/serve")]
    out: PathBuf,
    /// More for `foveal serve`, after `--`.
    #[arg(last = true)]
    server_args: Vec<String>,
}

/// Starts the server, measures it and ends it.
pub(crate) fn run(shell: &Shell, root: &Path, args: &BenchServeArgs) -> anyhow::Result<()> {
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => {
            cmd!(shell, "cargo build --release -p foveal-runtime").run()?;
            root.join("target/release/foveal")
        }
    };
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let log_path = args.out.join("server.log");
    let log = File::create(&log_path).with_context(|| log_path.display().to_string())?;
    let mut server = Command::new(&binary);
    server.args(server_args(args)).stdout(log.try_clone()?).stderr(log);
    let mut server = Running(server.spawn().with_context(|| binary.display().to_string())?);
    let bench = Command::new(&binary).args(bench_args(args)).spawn();
    let mut bench = Running(bench.with_context(|| binary.display().to_string())?);
    loop {
        let bench_status = bench.ended()?;
        // A server has no reason to end before it is told to, and a benchmark without one fails for it.
        if let Some(status) = server.ended()? {
            bail!("foveal serve ended with {status}; {} says why", log_path.display());
        }
        if let Some(status) = bench_status {
            ensure!(status.success(), "foveal bench serve failed: {status}");
            return Ok(());
        }
        thread::sleep(INTERVAL);
    }
}

/// The words of `foveal serve ...`.
fn server_args(args: &BenchServeArgs) -> Vec<String> {
    let max_num_seqs = args.max_num_seqs.or(args.concurrency.iter().copied().max()).unwrap_or(1);
    let mut words = vec!["serve".to_owned()];
    let mut option = |name: &str, value: Option<String>| {
        words.extend(value.into_iter().flat_map(|value| [format!("--{name}"), value]));
    };
    option("model", Some(args.model.display().to_string()));
    option("load-format", Some(args.load_format.clone()));
    option("quantization", args.quantization.clone());
    option("kv-cache-dtype", args.kv_cache_dtype.clone());
    option("max-num-seqs", Some(max_num_seqs.to_string()));
    option("max-num-batched-tokens", args.max_num_batched_tokens.map(|n| n.to_string()));
    option("port", Some(args.port.to_string()));
    words.extend(args.server_args.iter().cloned());
    words
}

/// The words of `foveal bench serve ...`.
fn bench_args(args: &BenchServeArgs) -> Vec<String> {
    let concurrencies: Vec<String> = args.concurrency.iter().map(ToString::to_string).collect();
    let mut words = vec!["bench".to_owned(), "serve".to_owned()];
    let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    option("base-url", format!("http://127.0.0.1:{}", args.port));
    option("tokenizer", args.tokenizer.as_ref().unwrap_or(&args.model).display().to_string());
    option("ready-check-timeout-sec", READY_TIMEOUT_S.to_string());
    option("max-concurrency", concurrencies.join(","));
    option("num-runs", args.runs.to_string());
    option("input-len", args.input_len.to_string());
    option("output-len", args.output_len.to_string());
    option("num-images", args.num_images.to_string());
    option("image-size", args.image_size.clone());
    option("save-result", args.out.join("results.json").display().to_string());
    option("save-dir", args.out.display().to_string());
    option("label", "Foveal".to_owned());
    option("compare", "published".to_owned());
    words
}

/// A process that doesn't outlive this one's interest in it.
struct Running(Child);

impl Running {
    fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{BenchServeArgs, bench_args, server_args};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchServeArgs,
    }

    #[test]
    fn both_programs_get_their_words() {
        let line = "x --model M --concurrency 1,16 --port 81 --out O -- --device cpu";
        let args = Line::parse_from(line.split(' ')).args;
        let serve = "serve --model M --load-format dummy --max-num-seqs 16 --port 81 --device cpu";
        assert_eq!(server_args(&args).join(" "), serve);
        let bench = bench_args(&args).join(" ");
        assert!(bench.starts_with("bench serve --base-url http://127.0.0.1:81 --tokenizer M "), "{bench}");
        assert!(bench.contains("--max-concurrency 1,16 --num-runs 3 ") && bench.contains("--save-dir O "), "{bench}");
    }
}
