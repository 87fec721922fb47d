//! The command line as it is typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::bench_serve::args::{self as bench_serve, RawBenchServe};
use super::serve::args::{self as serve, RawServe};

/// What `foveal --help` ends with.
const EXAMPLES: &str = "\
Examples:
  foveal run \"Count from 3 to 12.\"
      Asks the small demonstration model that is part of the program.
  foveal run --model Qwen3-VL-2B-Instruct --image cat.jpg \"What is in the picture?\"
      One answer about a picture, streamed as it is written.
  foveal run --model Qwen3-VL-2B-Instruct --image a.png --image b.png --json \"What has changed?\"
      One JSON object: the answer, its tokens, counts and timings.
  foveal run --model Qwen3-VL-2B-Instruct
      A chat. Pictures and what was said stay between turns and are not computed again.
  foveal run --model Qwen/Qwen3-VL-2B-Instruct --image cat.jpg \"What is in the picture?\"
      The same with a hub id: the model is downloaded first, where it isn't there yet.
  foveal inspect Qwen3-VL-2B-Instruct
      Architecture, tensors and memory plan; nothing is loaded.
  foveal doctor
      What this machine has for running on a GPU, what it lacks, and what mends that.

Warnings go to stderr; FOVEAL_LOG=info or FOVEAL_LOG=foveal_engine=debug logs more, FOVEAL_LOG=off nothing.
Models by hub id come from and go to the cache of the hub's own libraries; HF_TOKEN, HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE and HF_ENDPOINT mean what they mean there.
Exit status: 0 for an answer; 2 when the command line, the model folder, a picture or the request is wrong;
1 when the device fails.";

const RUN_EXAMPLES: &str = "\
Examples:
  foveal run --image chart.png \"What number is shown?\"
  foveal run --model DIR --image - \"Describe the picture.\" < cat.jpg
  foveal run --model DIR --temperature 0.7 --top-p 0.8 --seed 1 \"Write a haiku about snow.\"
  foveal run --model DIR --json --logprobs 5 --max-tokens 16 \"Is it raining?\" | jq .logprobs
  printf '%s\\n' '/image cat.jpg' 'What is this?' 'What colour is it?' | foveal run --model DIR

In a chat each line is one turn; /image FILE adds a picture to the next one, /help lists the other commands.";

const BENCH_EXAMPLES: &str = "\
Examples:
  foveal bench throughput --max-concurrency 4 --input-len 100 --output-len 50 --image-size 128x128
      The demonstration model on this machine.
  foveal bench throughput --model Qwen3-VL-8B-Instruct --load-format dummy --quantization fp8 --kv-cache-dtype fp8 \\
      --max-concurrency 1,8,32,128
      A model of full size with random weights, which only needs its folder's small files.";

const DOCTOR_PLACES: &str = "\
Environment:
  FOVEAL_CUDA_LIBS   folders that are searched first for libnvrtc.so.13 and libcublasLt.so.13, separated by `:`
  FOVEAL_CACHE_DIR   where compiled kernels are kept [default: $XDG_CACHE_HOME/foveal, else ~/.cache/foveal]
The libraries are searched in the loader's folders, $CUDA_HOME, $CUDA_PATH, /usr/local/cuda*, /opt/cuda and Python's
packages too. A folder `cubins` beside the program holds kernels that came compiled: with it, NVRTC isn't needed.";

/// Inference for the Qwen vision-language family: pictures and text in, text out, on any machine.
#[derive(Debug, Parser)]
#[command(name = "foveal", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct RawArgs {
    #[command(subcommand)]
    pub(crate) command: RawCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RawCommand {
    /// Answers one prompt about any number of pictures, or chats.
    ///
    /// With a PROMPT: one answer, streamed to stdout. Without: a chat that reads lines from stdin and keeps its
    /// pictures and its KV cache between turns.
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RawRun>),
    /// Answers requests over HTTP, as OpenAI's API does.
    ///
    /// Chats with pictures and texts, streamed or whole; metrics for Prometheus; a page at /.
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<RawServe>),
    /// Shows what a model folder holds, without loading it.
    ///
    /// Reads the config and the headers of the weight files only: architecture, element types, tensors by component,
    /// and what the model will take in memory. A model by hub id is downloaded first.
    Inspect(RawInspect),
    /// Shows what this machine has for Foveal, and what mends what it lacks.
    ///
    /// Driver, GPUs, the CUDA libraries with their places, and where compiled kernels are kept. Exit status 0 if any
    /// device can be used, and the CPU is one; 1 if none can.
    #[command(after_help = DOCTOR_PLACES)]
    Doctor(RawDoctor),
    /// Compares this installation's answers with a reference file.
    ///
    /// The file holds what HF transformers says about some prompts, in float32 and in bfloat16;
    /// tests/reference/hf_reference.py writes one. Exit status 0 if every prompt is tokenised alike and the errors are
    /// within 1.5 times transformers' own in bfloat16; 1 if not.
    Verify(RawVerify),
    /// Measures speed.
    #[command(subcommand)]
    Bench(RawBench),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RawBench {
    /// Measures how fast many requests at once are answered, without HTTP.
    ///
    /// A closed loop of synthetic requests of exact lengths: random tokens, pictures of noise, greedy answers that no stop
    /// token ends. One request goes before, which is not measured. The layout is that of `vllm bench serve`.
    #[command(after_help = BENCH_EXAMPLES)]
    Throughput(Box<RawThroughput>),
    /// Measures a server that speaks OpenAI's API: this one, vLLM, SGLang, TensorRT-LLM.
    ///
    /// Sends synthetic requests of exact lengths, at a given concurrency or rate: random words, pictures with pixels of their own,
    /// greedy answers that no stop token ends, streamed. Layout, names and JSON keys are those of `vllm bench serve`.
    #[command(after_help = bench_serve::EXAMPLES)]
    Serve(Box<RawBenchServe>),
}

#[derive(Debug, Args)]
pub(crate) struct RawThroughput {
    /// A model folder, or a hub id such as Qwen/Qwen3-VL-8B-Instruct-FP8. Without it: the built-in demonstration model
    #[arg(long, short, value_name = "DIR|HUB_ID")]
    pub(crate) model: Option<PathBuf>,
    /// Requests at once; several numbers, separated by commas, are measured one after another
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "32")]
    pub(crate) max_concurrency: Vec<usize>,
    /// Requests in all [default: three for each at once]
    #[arg(long, value_name = "N")]
    pub(crate) num_prompts: Option<usize>,
    /// Text tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) input_len: usize,
    /// Tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) output_len: usize,
    /// Pictures of a prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) num_images: usize,
    /// Size of a picture, WIDTHxHEIGHT in pixels
    #[arg(long, value_name = "SIZE", default_value = "512x512")]
    pub(crate) image_size: String,
    /// Where the random numbers begin
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The most requests that run side by side [default: the largest --max-concurrency]
    #[arg(long, value_name = "N")]
    pub(crate) max_num_seqs: Option<usize>,
    /// The most tokens of a step
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub(crate) max_num_batched_tokens: usize,
    /// The share of the GPU's memory that is used; the KV cache takes what is left of it
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    pub(crate) gpu_memory_utilization: f64,
    /// Wait for a step's tokens before the next one is begun
    #[arg(long)]
    pub(crate) no_run_ahead: bool,
    /// Compute every prompt anew
    #[arg(long)]
    pub(crate) no_enable_prefix_caching: bool,
    /// Print one JSON object for each concurrency
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) machine: RawMachine,
}

#[derive(Debug, Args)]
pub(crate) struct RawRun {
    /// What to ask; `-` reads it from stdin. Pictures stand before it in the message. Without it: a chat
    pub(crate) prompt: Option<String>,

    /// A model folder (config.json, model.safetensors, tokenizer.json, ...), or a hub id such as
    /// Qwen/Qwen3-VL-8B-Instruct-FP8, with @REVISION if it isn't main. Without it: the built-in demonstration model, which
    /// knows shapes, colours and numbers
    #[arg(long, short, value_name = "DIR|HUB_ID")]
    pub(crate) model: Option<PathBuf>,

    /// Picture (JPEG, PNG, WebP, GIF's first frame, BMP); `-` reads it from stdin. Can be given several times
    #[arg(long, short, value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,

    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    /// Print one JSON object with text, tokens, counts and timings; in a chat one for each turn
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) sampling: RawSampling,
    #[command(flatten)]
    pub(crate) machine: RawMachine,
}

/// Where nothing is given, the model's generation_config.json decides, and where that says nothing: greedy.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (defaults: the model's generation_config.json, else greedy)")]
pub(crate) struct RawSampling {
    /// The most tokens of an answer [default: until the model stops or its length is reached]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Only the K likeliest tokens can be chosen; 0 keeps all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Only the likeliest tokens of total probability P can be chosen; 1 keeps all
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Tokens less likely than P times the likeliest are dropped; 0 keeps all
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Makes tokens of the prompt and the answer less likely; 1 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Makes tokens that the answer holds less likely, -2 to 2; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// The same, growing with their count, -2 to 2; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// The same seed draws the same answer [default: a fresh one each time]
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// Don't end where the model would; needs --max-tokens. For measuring
    #[arg(long, requires = "max_tokens")]
    pub(crate) ignore_eos: bool,
    /// The answer ends before this text. Can be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// For each token the K best with their log-probabilities, best first; needs --json
    #[arg(long, value_name = "K")]
    pub(crate) logprobs: Option<usize>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct RawMachine {
    /// auto, cpu, cuda or cuda:N; auto takes the first GPU that can be used, else the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto", env = "FOVEAL_DEVICE")]
    pub(crate) device: String,
    /// Compute threads of the CPU; 0 takes one for each core
    #[arg(long, value_name = "N", default_value_t = 0, env = "FOVEAL_THREADS")]
    pub(crate) threads: usize,
    /// The most tokens of a conversation, pictures and answer included [default: the model's, at most 8192]
    #[arg(long, value_name = "N", env = "FOVEAL_MAX_MODEL_LEN")]
    pub(crate) max_model_len: Option<usize>,
    /// Pictures with fewer pixels are enlarged [default: the model's preprocessor_config.json]
    #[arg(long, value_name = "N", env = "FOVEAL_MIN_PIXELS")]
    pub(crate) min_pixels: Option<u64>,
    /// Pictures with more pixels are reduced: fewer tokens, less detail [default: the model's]
    #[arg(long, value_name = "N", env = "FOVEAL_MAX_PIXELS")]
    pub(crate) max_pixels: Option<u64>,
    /// auto reads the folder's weights; dummy makes random ones from config.json alone, to measure speed at full size
    #[arg(long, value_name = "FORMAT", default_value = "auto", env = "FOVEAL_LOAD_FORMAT")]
    pub(crate) load_format: String,
    /// fp8 rounds bf16 weights of the decoder while they are loaded, a scale for each channel; none runs the weights of an FP8
    /// checkpoint in bf16, for cards without FP8 [default: as the checkpoint has them]
    #[arg(long, value_name = "FORMAT", env = "FOVEAL_QUANTIZATION")]
    pub(crate) quantization: Option<String>,
    /// auto (as the device computes), fp8 (half of bf16's memory; the checkpoint's scales, if it has any), bfloat16, float16
    /// or float32; a GPU takes bfloat16 and fp8
    #[arg(long, value_name = "DTYPE", default_value = "auto", env = "FOVEAL_KV_CACHE_DTYPE")]
    pub(crate) kv_cache_dtype: String,
    /// Run every step without captured graphs. The results are the same; a CPU never has any
    #[arg(long, env = "FOVEAL_ENFORCE_EAGER")]
    pub(crate) enforce_eager: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RawInspect {
    /// A model folder, or a hub id such as Qwen/Qwen3-VL-8B-Instruct-FP8. Without it: the built-in demonstration model
    #[arg(value_name = "DIR|HUB_ID")]
    pub(crate) model: Option<PathBuf>,
    /// Conversation length that the memory plan is made for
    #[arg(long, value_name = "N")]
    pub(crate) max_model_len: Option<usize>,
    /// List every tensor, not only the components
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RawVerify {
    /// A model folder, or a hub id such as Qwen/Qwen3-VL-8B-Instruct-FP8
    #[arg(long, short, value_name = "DIR|HUB_ID")]
    pub(crate) model: PathBuf,
    /// Reference file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) reference: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) machine: RawMachine,
}

#[derive(Debug, Args)]
pub(crate) struct RawDoctor {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
