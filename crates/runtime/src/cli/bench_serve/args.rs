//! `foveal bench serve` as it is typed. The names are those of `vllm bench serve`.

use std::path::PathBuf;

use clap::Args;

pub(crate) const EXAMPLES: &str = "\
Examples:
  foveal bench serve --tokenizer Qwen3-VL-8B-Instruct --max-concurrency 1,8,32,128
      A closed loop at each of these concurrencies against the server on port 8000, of whatever make.
  foveal bench serve --tokenizer DIR --request-rate 4 --num-prompts 200 --burstiness 0.5
      An open loop: four requests a second on average, in bursts.
  foveal serve --model DIR --port 8000 & foveal bench serve --tokenizer DIR --ready-check-timeout-sec 600 \\
      --max-concurrency 1,32,128 --num-runs 3 --save-dir results --compare published
      Waits for the server, measures each three times, and writes a table and charts beside others' figures.

Exit status: 0 for a report; 1 when the server can't be reached or every request failed; 2 when the command line or a file
is wrong.";

#[derive(Debug, Args)]
pub(crate) struct RawBenchServe {
    /// Where the server is
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub(crate) base_url: String,
    /// Which API: openai-chat (chat completions) or openai (completions, without pictures)
    #[arg(long, value_name = "NAME", default_value = "openai-chat")]
    pub(crate) backend: String,
    /// What requests are sent to [default: the API's /v1/chat/completions or /v1/completions]
    #[arg(long, value_name = "PATH")]
    pub(crate) endpoint: Option<String>,
    /// Sent as a bearer token
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// The model's name at the server [default: the first one that it serves]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Folder that holds the model's tokenizer.json, for text of exact length [default: the server's /tokenize]
    #[arg(long, value_name = "DIR")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Wait at most so long until the server's /health says that it is ready
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) ready_check_timeout_sec: u64,

    /// The most requests at once; several numbers, separated by commas, are measured one after another [default: 32, or
    /// without a limit if there is a --request-rate]
    #[arg(long, value_name = "N", value_delimiter = ',', help_heading = "Load")]
    pub(crate) max_concurrency: Vec<usize>,
    /// Requests a second; inf sends each as soon as --max-concurrency allows
    #[arg(long, value_name = "R", help_heading = "Load")]
    pub(crate) request_rate: Option<f64>,
    /// How evenly requests come at a rate: 1 is a Poisson process, less is in bursts, inf is a clock
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = "Load")]
    pub(crate) burstiness: f64,
    /// Requests in all [default: three for each at once]
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub(crate) num_prompts: Option<usize>,
    /// Requests that go before, with short answers, and are not measured [default: one for each at once]
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub(crate) num_warmups: Option<usize>,
    /// How often each concurrency is measured
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    pub(crate) num_runs: usize,

    /// Text tokens of a prompt; the chat template and the pictures add theirs
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Requests")]
    pub(crate) input_len: usize,
    /// Tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Requests")]
    pub(crate) output_len: usize,
    /// Pictures of a prompt
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Requests")]
    pub(crate) num_images: usize,
    /// Size of a picture, WIDTHxHEIGHT in pixels
    #[arg(long, value_name = "SIZE", default_value = "512x512", help_heading = "Requests")]
    pub(crate) image_size: String,
    /// How pictures are sent: jpeg or png
    #[arg(long, value_name = "FORMAT", default_value = "jpeg", help_heading = "Requests")]
    pub(crate) image_format: String,
    /// Where the random tokens, pixels and times begin. The same seed again sends the same requests, which the server may find in
    /// its caches [default: a fresh one each time]
    #[arg(long, value_name = "S", help_heading = "Requests")]
    pub(crate) seed: Option<u64>,

    /// Print one JSON object for each run, in vLLM's keys
    #[arg(long, help_heading = "Results")]
    pub(crate) json: bool,
    /// Write those objects into a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub(crate) save_result: Option<PathBuf>,
    /// With every request's times and lengths in them
    #[arg(long, requires = "save_result", help_heading = "Results")]
    pub(crate) save_detailed: bool,
    /// Write a table by concurrency (CSV, markdown) and charts (SVG) into a folder
    #[arg(long, value_name = "DIR", help_heading = "Results")]
    pub(crate) save_dir: Option<PathBuf>,
    /// The server's name in them
    #[arg(long, value_name = "NAME", default_value = "this server", help_heading = "Results")]
    pub(crate) label: String,
    /// Others' figures to show beside: a file that --save-result wrote, here or in vLLM, or `published` for those that come with
    /// the program. Can be given several times
    #[arg(long, value_name = "FILE", requires = "save_dir", help_heading = "Results")]
    pub(crate) compare: Vec<PathBuf>,
}
