//! How a model is loaded.

use foveal_device::{DType, DeviceKind};
use foveal_llm::Quantization;
use foveal_processor::Limits;

/// Where a model's weights come from; vLLM's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadFormat {
    /// The folder's files.
    #[default]
    Auto,
    /// Random ones of a sensible size, made from config.json alone: for measuring at full size. On a GPU they are made
    /// there, in about a second.
    Dummy {
        /// Of the random numbers; `tests/reference/hf_reference.py --dummy-seed` makes the same weights.
        seed: u64,
    },
}

impl LoadFormat {
    /// The seed of dummy weights where nobody asks for another.
    pub const DUMMY_SEED: u64 = 1;
}

/// How a model is loaded. The default is what `foveal run` does without options, but for `max_num_seqs`.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Where it runs.
    pub device: DeviceKind,
    /// Compute threads of the CPU; 0 takes one for each core.
    pub threads: usize,
    /// Where the weights come from.
    pub load_format: LoadFormat,
    /// In which format the decoder's weights run.
    pub quantization: Quantization,
    /// How keys and values are kept; `None` as the device computes.
    pub kv_cache_dtype: Option<DType>,
    /// The most tokens of a conversation; `None` takes the model's length, at most
    /// [`foveal_engine::EngineBuilder::DEFAULT_MAX_MODEL_LEN`].
    pub max_model_len: Option<usize>,
    /// The most answers that are written side by side; `None` takes the engine's default. `foveal run` writes one.
    pub max_num_seqs: Option<usize>,
    /// The most tokens of a step; `None` takes the engine's default.
    pub max_num_batched_tokens: Option<usize>,
    /// The share of a GPU's memory that is used, the KV cache taking what is left of it; `None` gives the cache what one
    /// conversation needs.
    pub gpu_memory_utilization: Option<f64>,
    /// Bytes of the KV cache, instead of that share; `None` leaves it to the share, or to the engine's default.
    pub kv_cache_bytes: Option<usize>,
    /// Whether a GPU's steps run launch by launch.
    pub enforce_eager: bool,
    /// Whether a step is sent off before the last one's tokens are known.
    pub run_ahead: bool,
    /// The most requests that wait; `None` takes the engine's default.
    pub max_waiting: Option<usize>,
    /// The most page-locked memory, for copies and for pixels that wait; `None` takes the engine's default.
    pub pinned_bytes: Option<usize>,
    /// Whether every prompt is computed anew.
    pub no_prefix_caching: bool,
    /// What a request may cost before anything is decoded.
    pub limits: Limits,
    /// Pictures with fewer pixels are enlarged; `None` takes the model's setting.
    pub min_pixels: Option<u64>,
    /// Pictures with more pixels are reduced; `None` takes the model's setting.
    pub max_pixels: Option<u64>,
}
