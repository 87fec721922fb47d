//! The options of `foveal serve` as they are typed.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::RawMachine;

pub(crate) const EXAMPLES: &str = "\
Examples:
  foveal serve
      The built-in demonstration model on http://127.0.0.1:8000; a browser finds a page there.
  foveal serve --model Qwen/Qwen3-VL-8B-Instruct-FP8 --kv-cache-dtype fp8 --api-key \"$KEY\"
      Downloads a model from the hub, or takes it from its cache, and answers whoever has the key.
  foveal serve --model DIR --host 0.0.0.0 --allowed-media-domains upload.wikimedia.org
      Takes pictures by URL from that host too.
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Count from 3 to 12.\"}]}'

Each option is an environment variable as well: FOVEAL_ and its name in capitals, as FOVEAL_MAX_NUM_SEQS.
SIGTERM and Ctrl-C let running answers end, for --shutdown-timeout at most; a second one ends at once.";

#[derive(Debug, Args)]
pub(crate) struct RawServe {
    /// A model folder, or a hub id such as Qwen/Qwen3-VL-8B-Instruct-FP8. Without it: the built-in demonstration model
    #[arg(long, short, value_name = "DIR|HUB_ID", env = "FOVEAL_MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Address to listen on; 0.0.0.0 is every one of this machine
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", env = "FOVEAL_HOST")]
    pub(crate) host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000, env = "FOVEAL_PORT")]
    pub(crate) port: u16,
    /// Name by which requests call the model; can be given several times [default: the folder's name or the hub id]
    #[arg(long, value_name = "NAME", num_args = 1.., env = "FOVEAL_SERVED_MODEL_NAME")]
    pub(crate) served_model_name: Vec<String>,
    /// Key that requests must carry; can be given several times [default: none, everybody may ask]
    #[arg(long, value_name = "KEY", env = "FOVEAL_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Vec<String>,
    /// Origin of a web page elsewhere that may ask, or *; can be given several times
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', env = "FOVEAL_ALLOWED_ORIGINS")]
    pub(crate) allowed_origins: Vec<String>,
    /// Don't serve the page at /
    #[arg(long, env = "FOVEAL_NO_PAGE")]
    pub(crate) no_page: bool,
    /// How long a request may take to arrive, and an answer wait for a client that doesn't read, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, env = "FOVEAL_READ_TIMEOUT")]
    pub(crate) read_timeout: u64,
    /// How long running answers may go on after SIGTERM, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, env = "FOVEAL_SHUTDOWN_TIMEOUT")]
    pub(crate) shutdown_timeout: u64,
    #[command(flatten)]
    pub(crate) media: RawMedia,
    #[command(flatten)]
    pub(crate) scheduling: RawScheduling,
    #[command(flatten)]
    pub(crate) machine: RawMachine,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Pictures")]
pub(crate) struct RawMedia {
    /// Host from which pictures may be fetched: example.com, *.example.com or *; can be given several times [default: none]
    #[arg(long, value_name = "HOST", value_delimiter = ',', env = "FOVEAL_ALLOWED_MEDIA_DOMAINS")]
    pub(crate) allowed_media_domains: Vec<String>,
    /// Folder of which pictures may be read by file:/// URLs [default: none]
    #[arg(long, value_name = "DIR", env = "FOVEAL_ALLOWED_LOCAL_MEDIA_PATH")]
    pub(crate) allowed_local_media_path: Option<PathBuf>,
    /// Fetch from allowed hosts that have private addresses, too
    #[arg(long, env = "FOVEAL_ALLOW_PRIVATE_MEDIA")]
    pub(crate) allow_private_media: bool,
    /// The most redirects that a fetch follows, each checked like the first address
    #[arg(long, value_name = "N", default_value_t = 0, env = "FOVEAL_MAX_MEDIA_REDIRECTS")]
    pub(crate) max_media_redirects: u32,
    /// The most time that a fetch takes, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, env = "FOVEAL_MEDIA_TIMEOUT")]
    pub(crate) media_timeout: u64,
    /// The most pictures of one request, as image=N, {"image": N} or N
    #[arg(long, value_name = "N", default_value = "64", env = "FOVEAL_LIMIT_MM_PER_PROMPT")]
    pub(crate) limit_mm_per_prompt: String,
    /// The most bytes of one encoded picture
    #[arg(long, value_name = "N", default_value_t = 20 << 20, env = "FOVEAL_MAX_IMAGE_BYTES")]
    pub(crate) max_image_bytes: usize,
    /// The most pixels of one picture as it is stored
    #[arg(long, value_name = "N", default_value_t = 64 << 20, env = "FOVEAL_MAX_IMAGE_PIXELS")]
    pub(crate) max_image_pixels: u64,
    /// The most bytes of a request
    #[arg(long, value_name = "N", default_value_t = 64 << 20, env = "FOVEAL_MAX_BODY_BYTES")]
    pub(crate) max_body_bytes: usize,
    /// The most bytes of all requests over 64 KiB that are held at once; more are told to come again
    #[arg(long, value_name = "N", default_value_t = 1 << 30, env = "FOVEAL_MAX_TOTAL_BODY_BYTES")]
    pub(crate) max_total_body_bytes: usize,
    /// Threads that fetch, decode and cut pictures [default: one for each core]
    #[arg(long, value_name = "N", env = "FOVEAL_PREPROCESS_THREADS")]
    pub(crate) preprocess_threads: Option<usize>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Scheduling and memory")]
pub(crate) struct RawScheduling {
    /// The most answers that are written side by side [default: 256 on a GPU, 16 on a CPU]
    #[arg(long, value_name = "N", env = "FOVEAL_MAX_NUM_SEQS")]
    pub(crate) max_num_seqs: Option<usize>,
    /// The most tokens of a step: long prompts are computed in chunks of it [default: 2048 on a GPU, 512 on a CPU]
    #[arg(long, value_name = "N", env = "FOVEAL_MAX_NUM_BATCHED_TOKENS")]
    pub(crate) max_num_batched_tokens: Option<usize>,
    /// The most requests at once, in whatever stage; the next one is told to come again
    #[arg(long, value_name = "N", default_value_t = 1024, env = "FOVEAL_MAX_REQUESTS")]
    pub(crate) max_requests: usize,
    /// The share of a GPU's memory that is used; the KV cache takes what is left of it
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, env = "FOVEAL_GPU_MEMORY_UTILIZATION")]
    pub(crate) gpu_memory_utilization: f64,
    /// Bytes of the KV cache, instead of --gpu-memory-utilization [default on a CPU: four conversations]
    #[arg(long, value_name = "N", env = "FOVEAL_KV_CACHE_MEMORY_BYTES")]
    pub(crate) kv_cache_memory_bytes: Option<usize>,
    /// Compute every prompt anew
    #[arg(long, env = "FOVEAL_NO_ENABLE_PREFIX_CACHING")]
    pub(crate) no_enable_prefix_caching: bool,
    /// Wait for a step's tokens before the next one is begun
    #[arg(long, env = "FOVEAL_NO_RUN_AHEAD")]
    pub(crate) no_run_ahead: bool,
}
