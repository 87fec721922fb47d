//! The command line as it is meant: checked once, here, and never again.

use std::path::PathBuf;

use foveal_device::DeviceKind;
use foveal_engine::EngineBuilder;
use foveal_hub::{Files, HubError, ModelId};
use foveal_llm::{Quantization, parse_kv_cache_dtype};
use foveal_runtime::{LoadFormat, ModelOptions, ThroughputOptions};
use foveal_types::SamplingParams;

use super::args::{
    RawArgs, RawBench, RawCommand, RawInspect, RawMachine, RawRun, RawSampling, RawThroughput, RawVerify,
};
use super::bench_serve::config::BenchServeConfig;
use super::error::UsageError;
use super::sampling::SamplingOverrides;
use super::serve::config::ServeConfig;

/// The --load-format that makes weights up.
const DUMMY: &str = "dummy";

/// More threads than any machine has cores: a slip of the finger, not a wish.
const MAX_THREADS: usize = 1024;

/// What to do.
#[derive(Debug)]
pub(crate) enum Config {
    Run(Box<RunConfig>),
    Inspect(InspectConfig),
    Doctor(Output),
    Verify(Box<VerifyConfig>),
    Bench(Box<BenchConfig>),
    BenchServe(Box<BenchServeConfig>),
    Serve(Box<ServeConfig>),
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ModelPlace {
    BuiltIn,
    Folder(PathBuf),
    /// With what of it is needed.
    Hub {
        id: ModelId,
        files: Files,
    },
}

/// Where something that is read comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    Stdin,
    File(PathBuf),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Stdin,
    /// None: lines of stdin, one turn each.
    Chat,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Text,
    Json,
}

#[derive(Debug)]
pub(crate) struct RunConfig {
    pub(crate) model: ModelPlace,
    pub(crate) images: Vec<Input>,
    pub(crate) prompt: Prompt,
    pub(crate) system: Option<String>,
    pub(crate) output: Output,
    pub(crate) sampling: SamplingOverrides,
    pub(crate) options: ModelOptions,
}

#[derive(Debug)]
pub(crate) struct InspectConfig {
    pub(crate) model: ModelPlace,
    pub(crate) max_model_len: Option<usize>,
    pub(crate) list_tensors: bool,
    pub(crate) output: Output,
}

impl Config {
    /// Checks every value and every combination.
    ///
    /// # Errors
    /// [`UsageError`] with the option, what it was given and what would be right.
    pub(crate) fn new(raw: RawArgs) -> Result<Self, UsageError> {
        match raw.command {
            RawCommand::Run(raw) => RunConfig::new(*raw).map(|config| Self::Run(Box::new(config))),
            RawCommand::Serve(raw) => ServeConfig::new(*raw).map(|config| Self::Serve(Box::new(config))),
            RawCommand::Inspect(raw) => InspectConfig::new(raw).map(Self::Inspect),
            RawCommand::Doctor(raw) => Ok(Self::Doctor(output(raw.json))),
            RawCommand::Bench(RawBench::Throughput(raw)) => {
                BenchConfig::new(*raw).map(|config| Self::Bench(Box::new(config)))
            }
            RawCommand::Bench(RawBench::Serve(raw)) => {
                BenchServeConfig::new(*raw).map(|config| Self::BenchServe(Box::new(config)))
            }
            RawCommand::Verify(raw) => VerifyConfig::new(raw).map(|config| Self::Verify(Box::new(config))),
        }
    }
}

impl RunConfig {
    fn new(raw: RawRun) -> Result<Self, UsageError> {
        let RawRun { prompt, model, image, system, json, sampling, machine } = raw;
        let prompt = match prompt {
            None => Prompt::Chat,
            Some(text) if text == "-" => Prompt::Stdin,
            Some(text) => Prompt::Text(text),
        };
        let images: Vec<Input> = image.into_iter().map(input).collect();
        let num_stdin = images.iter().filter(|image| **image == Input::Stdin).count();
        if num_stdin > 0 && prompt == Prompt::Chat {
            return Err(UsageError::new("--image -: a chat reads its turns from stdin; give the picture as a file"));
        }
        if num_stdin + usize::from(prompt == Prompt::Stdin) > 1 {
            return Err(UsageError::new("`-` can be given once: stdin is either the prompt or one picture"));
        }
        if sampling.logprobs.is_some() && !json {
            return Err(UsageError::new("--logprobs is printed as JSON only; add --json"));
        }
        Ok(Self {
            model: place(model, needed(&machine))?,
            images,
            prompt,
            system,
            output: output(json),
            sampling: overrides(sampling)?,
            options: options(machine)?,
        })
    }
}

impl InspectConfig {
    fn new(raw: RawInspect) -> Result<Self, UsageError> {
        let RawInspect { model, max_model_len, tensors, json } = raw;
        check_model_len(max_model_len)?;
        Ok(Self { model: place(model, Files::All)?, max_model_len, list_tensors: tensors, output: output(json) })
    }
}

#[derive(Debug)]
pub(crate) struct VerifyConfig {
    pub(crate) model: ModelPlace,
    pub(crate) reference: PathBuf,
    pub(crate) output: Output,
    pub(crate) options: ModelOptions,
}

impl VerifyConfig {
    fn new(raw: RawVerify) -> Result<Self, UsageError> {
        let RawVerify { model, reference, json, machine } = raw;
        let model = place(Some(model), needed(&machine))?;
        Ok(Self { model, reference, output: output(json), options: options(machine)? })
    }
}

#[derive(Debug)]
pub(crate) struct BenchConfig {
    pub(crate) model: ModelPlace,
    /// One for each concurrency.
    pub(crate) runs: Vec<ThroughputOptions>,
    pub(crate) output: Output,
    pub(crate) options: ModelOptions,
}

impl BenchConfig {
    fn new(raw: RawThroughput) -> Result<Self, UsageError> {
        let RawThroughput {
            model, max_concurrency, num_prompts, input_len, output_len, num_images, seed, json, ..
        } = raw;
        at_least_one(&[
            ("--max-concurrency", max_concurrency.iter().copied().min().unwrap_or(0)),
            ("--num-prompts", num_prompts.unwrap_or(1)),
            ("--input-len", input_len),
            ("--output-len", output_len),
            ("--max-num-seqs", raw.max_num_seqs.unwrap_or(1)),
            ("--max-num-batched-tokens", raw.max_num_batched_tokens),
        ])?;
        check_memory_share(raw.gpu_memory_utilization)?;
        let image_size = image_size(&raw.image_size)?;
        // Each run has requests of its own: no prompt or picture of one is found in the caches by the next.
        let seeds = (0..).map(|run: u64| seed.wrapping_add(run));
        let runs = max_concurrency.iter().zip(seeds).map(|(&concurrency, seed)| ThroughputOptions {
            num_prompts: num_prompts.unwrap_or(concurrency.saturating_mul(PROMPTS_EACH)),
            concurrency,
            input_len,
            output_len,
            num_images,
            image_size,
            seed,
        });
        let most = max_concurrency.iter().copied().max().unwrap_or(1);
        let pinned_bytes = pinned_bytes(most.saturating_mul(num_images), image_size);
        Ok(Self {
            model: place(model, needed(&raw.machine))?,
            runs: runs.collect(),
            output: output(json),
            options: ModelOptions {
                max_num_seqs: Some(raw.max_num_seqs.unwrap_or(most)),
                max_waiting: Some(most),
                pinned_bytes: Some(pinned_bytes),
                max_num_batched_tokens: Some(raw.max_num_batched_tokens),
                gpu_memory_utilization: Some(raw.gpu_memory_utilization),
                run_ahead: !raw.no_run_ahead,
                no_prefix_caching: raw.no_enable_prefix_caching,
                ..options(raw.machine)?
            },
        })
    }
}

/// Refuses what can't be none of.
pub(crate) fn at_least_one<N: Default + PartialEq>(options: &[(&str, N)]) -> Result<(), UsageError> {
    match options.iter().find(|(_, value)| *value == N::default()) {
        Some((option, _)) => Err(UsageError::new(format!("{option} is 0; it must be at least 1"))),
        None => Ok(()),
    }
}

/// The most page-locked memory with so many pictures of this size on their way at once: one takes a block of up to twice its size.
pub(crate) fn pinned_bytes(num_images: usize, image_size: [u32; 2]) -> usize {
    let pixels = image_size.into_iter().fold(num_images, |pixels, side| pixels.saturating_mul(side as usize));
    pixels.saturating_mul(3 * 2).saturating_add(EngineBuilder::DEFAULT_PINNED_BYTES)
}

/// Refuses a share that is none.
pub(crate) fn check_memory_share(share: f64) -> Result<(), UsageError> {
    if share > 0.0 && share <= 1.0 {
        return Ok(());
    }
    Err(UsageError::new(format!("--gpu-memory-utilization is {share}; it must be above 0 and at most 1")))
}

/// Requests for each at once, unless there is a number: the first wave and the last are not all of it.
pub(crate) const PROMPTS_EACH: usize = 3;

/// `512x512`.
pub(crate) fn image_size(text: &str) -> Result<[u32; 2], UsageError> {
    let sides =
        text.split_once(['x', 'X']).and_then(|(width, height)| Some([width.parse().ok()?, height.parse().ok()?]));
    sides.filter(|sides| sides.iter().all(|&side| side > 0)).ok_or_else(|| {
        UsageError::new(format!("--image-size is `{text}`; give a width and a height in pixels, as 512x512"))
    })
}

/// A folder if there is one, else a hub id.
pub(crate) fn place(model: Option<PathBuf>, files: Files) -> Result<ModelPlace, UsageError> {
    let Some(path) = model else { return Ok(ModelPlace::BuiltIn) };
    let Some(text) = path.to_str().filter(|_| !path.exists()) else { return Ok(ModelPlace::Folder(path)) };
    let reason = match text.parse::<ModelId>() {
        // A name alone is a folder's that was mistyped, rather than one of the hub's few without an organisation.
        Ok(id) if id.organisation().is_some() => return Ok(ModelPlace::Hub { id, files }),
        Err(HubError::InvalidId { reason, .. }) => reason,
        _ => "it names no organisation",
    };
    Err(UsageError::new(format!(
        "the model `{text}` is no folder (it does not exist) and no hub id ({reason}), as Qwen/Qwen3-VL-8B-Instruct-FP8 is"
    )))
}

/// Which files of a model are read.
pub(crate) fn needed(machine: &RawMachine) -> Files {
    if machine.load_format == DUMMY { Files::WithoutWeights } else { Files::All }
}

fn input(path: PathBuf) -> Input {
    if path.as_os_str() == "-" { Input::Stdin } else { Input::File(path) }
}

pub(crate) fn output(json: bool) -> Output {
    if json { Output::Json } else { Output::Text }
}

fn check_model_len(max_model_len: Option<usize>) -> Result<(), UsageError> {
    match max_model_len {
        Some(n @ 0..2) => Err(UsageError::new(format!("--max-model-len is {n}; it must hold a prompt and an answer"))),
        _ => Ok(()),
    }
}

fn overrides(raw: RawSampling) -> Result<SamplingOverrides, UsageError> {
    let overrides = SamplingOverrides {
        max_tokens: raw.max_tokens,
        temperature: raw.temperature,
        top_k: raw.top_k,
        top_p: raw.top_p,
        min_p: raw.min_p,
        repetition_penalty: raw.repetition_penalty,
        presence_penalty: raw.presence_penalty,
        frequency_penalty: raw.frequency_penalty,
        seed: raw.seed,
        ignore_eos: raw.ignore_eos,
        stop: raw.stop,
        logprobs: raw.logprobs,
    };
    match overrides.apply(SamplingParams::default()).validate() {
        Ok(()) => Ok(overrides),
        Err(error) => {
            // The library names fields; here they are options.
            let option = error.param.as_deref().map(|param| format!("--{}: ", param.replace('_', "-")));
            Err(UsageError::new(option.unwrap_or_default() + &error.message))
        }
    }
}

pub(crate) fn options(raw: RawMachine) -> Result<ModelOptions, UsageError> {
    let RawMachine { device, threads, max_model_len, min_pixels, max_pixels, load_format, .. } = raw;
    let quantization = raw.quantization.as_deref().map_or(Ok(Quantization::AsStored), str::parse);
    let quantization = quantization.map_err(|error| UsageError::new(format!("--quantization: {error}")))?;
    let kv_cache_dtype = parse_kv_cache_dtype(&raw.kv_cache_dtype);
    let kv_cache_dtype = kv_cache_dtype.map_err(|error| UsageError::new(format!("--kv-cache-dtype: {error}")))?;
    let load_format = match &load_format[..] {
        "auto" => LoadFormat::Auto,
        DUMMY => LoadFormat::Dummy { seed: LoadFormat::DUMMY_SEED },
        other => return Err(UsageError::new(format!("--load-format is `{other}`; use auto or dummy"))),
    };
    check_model_len(max_model_len)?;
    at_least_one(&[("--min-pixels", min_pixels.unwrap_or(1)), ("--max-pixels", max_pixels.unwrap_or(1))])?;
    if let (Some(min), Some(max)) = (min_pixels, max_pixels)
        && min > max
    {
        return Err(UsageError::new(format!("--min-pixels is {min}, above --max-pixels {max}")));
    }
    if threads > MAX_THREADS {
        return Err(UsageError::new(format!("--threads is {threads}; at most {MAX_THREADS} can be started")));
    }
    let device = device.parse::<DeviceKind>().map_err(|error| UsageError::new(format!("--device: {error}")))?;
    Ok(ModelOptions {
        enforce_eager: raw.enforce_eager,
        device,
        threads,
        load_format,
        quantization,
        kv_cache_dtype,
        max_model_len,
        // Whoever types asks one thing at a time: no memory for the logits of more.
        max_num_seqs: Some(1),
        min_pixels,
        max_pixels,
        ..ModelOptions::default()
    })
}
