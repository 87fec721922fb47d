//! Why an engine can't be built.

use foveal_checkpoint::CheckpointError;
use foveal_device::DeviceError;
use foveal_llm::LlmError;
use foveal_vision::VisionError;
use thiserror::Error;

/// Why an engine can't be built. What goes wrong with one request later is a [`foveal_types::Error`] of its stream.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The builder was not given a part that it can't do without.
    #[error("the engine was built without {part}; call EngineBuilder::{call} first")]
    MissingPart {
        /// What is missing.
        part: &'static str,
        /// The builder's function that takes it.
        call: &'static str,
    },
    /// An option of the builder is outside of what is possible.
    #[error("`{option}` is {got}; it must be {expected}")]
    Option {
        /// The builder's function.
        option: &'static str,
        /// What was given.
        got: usize,
        /// What would be right.
        expected: String,
    },
    /// The share of a GPU's memory is none.
    #[error("`{option}` is {got}; it must be above 0 and at most 1")]
    Share {
        /// The builder's function.
        option: &'static str,
        /// What was given.
        got: String,
    },
    /// What else the model needs leaves no page to the KV cache.
    #[error(
        "no room for a KV cache: {taken_bytes} of the GPU's {total_bytes} bytes are taken, recorded steps included, and \
         `gpu_memory_utilization` is {share}; raise it, lower `max_num_batched_tokens` or `max_num_seqs`, or give way to \
         whoever else uses the GPU"
    )]
    NoRoomForCache {
        /// The share of the memory that may be used.
        share: f64,
        /// What is taken or set aside.
        taken_bytes: usize,
        /// What there is.
        total_bytes: usize,
    },
    /// The model folder's config or weights don't fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The vision tower could not be loaded.
    #[error(transparent)]
    Vision(VisionError),
    /// The decoder could not be loaded.
    #[error(transparent)]
    Llm(LlmError),
    /// The device could not be opened or has too little memory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The engine thread could not be started.
    #[error("the engine thread could not be started: {reason}")]
    Thread {
        /// What the system said.
        reason: String,
    },
}

impl From<VisionError> for EngineError {
    fn from(error: VisionError) -> Self {
        match error {
            VisionError::Checkpoint(error) => Self::Checkpoint(error),
            VisionError::Device(error) => Self::Device(error),
            error => Self::Vision(error),
        }
    }
}

impl From<LlmError> for EngineError {
    fn from(error: LlmError) -> Self {
        match error {
            LlmError::Checkpoint(error) => Self::Checkpoint(error),
            LlmError::Device(error) => Self::Device(error),
            error => Self::Llm(error),
        }
    }
}
