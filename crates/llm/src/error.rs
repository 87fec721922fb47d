//! What the decoder and the sampler refuse.

use foveal_checkpoint::CheckpointError;
use foveal_device::{DType, DeviceError};
use foveal_kernels::OpError;
use foveal_mrope::MropeError;
use foveal_types::RequestError;
use thiserror::Error;

/// What the decoder and the sampler refuse. Those that concern one sequence of a batch say which
/// ([`LlmError::sequence`]), so that the engine fails one request and goes on with the others.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LlmError {
    /// The model's configuration describes a decoder that can't be built.
    #[error("config.json: `{field}` is {got}; the decoder needs {expected}")]
    Config {
        /// The field, in the spelling of `config.json`.
        field: &'static str,
        /// Its value.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// A weight is missing, misshapen or unreadable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The configuration's rotary settings are not possible.
    #[error("config.json: {0}")]
    Mrope(#[from] MropeError),
    /// The model's default sampling is not possible.
    #[error("generation_config.json: {0}")]
    GenerationConfig(#[source] RequestError),
    /// Memory could not be had or viewed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An operator refused its operands.
    #[error(transparent)]
    Op(#[from] OpError),
    /// Weights of a format that can't run on this device, or not beside each other.
    #[error("{layer}: {reason}")]
    WeightFormat {
        /// The linear layer, by its name in the checkpoint.
        layer: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The KV cache can't hold this element type.
    #[error("a KV cache of {dtype} is not possible; use f32, bf16, f16 or f8_e4m3")]
    CacheDType {
        /// The element type asked for.
        dtype: DType,
    },
    /// The KV cache was made for another model.
    #[error("the KV cache was made for another model: it is {got}, the decoder needs {expected}")]
    CacheMismatch {
        /// The cache's layout.
        got: String,
        /// The decoder's.
        expected: String,
    },
    /// A workspace, or a sampler, whose limits make no sense.
    #[error("`{limit}` is {got}; it must be {expected}")]
    Limits {
        /// The limit.
        limit: &'static str,
        /// Its value.
        got: usize,
        /// What would be right.
        expected: String,
    },
    /// The workspace was made for another decoder.
    #[error("the workspace was made for another decoder: make one with this decoder's `new_workspace`")]
    WorkspaceMismatch,
    /// A batch with more of something than its buffers were made for.
    #[error("the batch has {got} {what}, the buffers were made for {max}; split the batch")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// The parts of a batch don't fit each other.
    #[error("batch: `{field}` has {got} elements, expected {expected}")]
    BatchShape {
        /// The part.
        field: &'static str,
        /// Its elements.
        got: usize,
        /// What the other parts ask for.
        expected: String,
    },
    /// A row of a batch holds a value that points nowhere.
    #[error("batch: sequence {sequence}, row {row}: `{field}` is {value}, expected {expected}")]
    Row {
        /// The part of the batch.
        field: &'static str,
        /// The sequence that the row belongs to, counted in the batch.
        sequence: usize,
        /// The row of the batch.
        row: usize,
        /// The value.
        value: i64,
        /// The values that are possible.
        expected: String,
    },
    /// A sequence of a batch is described by a value that can't be.
    #[error("batch: sequence {sequence}: `{field}` is {value}, expected {expected}")]
    Sequence {
        /// The part of the batch.
        field: &'static str,
        /// The sequence, counted in the batch.
        sequence: usize,
        /// The value.
        value: i64,
        /// The values that are possible.
        expected: String,
    },
    /// Logits are wanted of a row that the batch doesn't have.
    #[error("batch: `logit_rows`[{index}] is {value}, the batch has {num_rows} rows")]
    LogitRow {
        /// Where.
        index: usize,
        /// The row asked for.
        value: i32,
        /// The rows of the batch.
        num_rows: usize,
    },
    /// One row's logits hold a NaN or nothing finite, so no token can be chosen. The other rows are not concerned.
    #[error(
        "the model gave no usable logits for row {row} (NaN, or no token can be chosen) at token {step} of the answer"
    )]
    NoToken {
        /// The row of the logits.
        row: usize,
        /// Tokens of the answer before it.
        step: u64,
    },
}

impl LlmError {
    /// The sequence of the batch that alone is at fault, if there is one: without it the rest of the batch can run.
    #[must_use]
    pub fn sequence(&self) -> Option<usize> {
        match self {
            Self::Row { sequence, .. } | Self::Sequence { sequence, .. } => Some(*sequence),
            _ => None,
        }
    }
}
