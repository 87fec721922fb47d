//! What can go wrong between a command line and an answer.

use foveal_checkpoint::CheckpointError;
use foveal_device::DeviceError;
use foveal_engine::EngineError;
use foveal_processor::{PictureError, ProcessorError};
use thiserror::Error;

/// What can go wrong between a command line and an answer. Each variant's text stands alone.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The model folder is wrong: config, weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model folder is wrong: tokenizer, template, picture settings.
    #[error("{folder}: {source}")]
    Processor {
        /// The model folder.
        folder: String,
        /// What is wrong.
        source: ProcessorError,
    },
    /// No model was named and this build has none of its own.
    #[error("this build has no built-in model; name a model folder with --model DIR")]
    NoBuiltInModel,
    /// The longest conversation that was asked for is none that the model can hold.
    #[error("--max-model-len is {got}; {model} takes 1 to {max} tokens (max_position_embeddings)")]
    MaxModelLen {
        /// The model folder.
        model: String,
        /// What was asked for.
        got: usize,
        /// What the model was made for.
        max: usize,
    },
    /// A pixel limit contradicts the model's other one.
    #[error("{option} is {got}, {relation} the model's own {other} of {bound}; give --{}, too", other.replace('_', "-"))]
    PixelLimit {
        /// The option.
        option: &'static str,
        /// What was asked for.
        got: u64,
        /// `above` or `below`.
        relation: &'static str,
        /// The model's other limit: `min_pixels` or `max_pixels`.
        other: &'static str,
        /// Its value.
        bound: u64,
    },
    /// The engine could not be built.
    #[error(transparent)]
    Engine(EngineError),
    /// The device can't be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file can't be read.
    #[error("{path} can't be read: {reason}")]
    File {
        /// The file, as it was given.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A picture can't be used.
    #[error("{name}: {source}")]
    Picture {
        /// The file, as it was given.
        name: String,
        /// What is wrong.
        source: PictureError,
    },
    /// A reference file about other weights than those that were loaded.
    #[error("the reference is about {about}, but others were to be loaded; --load-format says which: auto or dummy")]
    WrongReference {
        /// What the reference is about.
        about: &'static str,
    },
    /// The request could not be prepared or answered.
    #[error(transparent)]
    Request(#[from] foveal_types::Error),
}

impl From<EngineError> for RuntimeError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Checkpoint(error) => Self::Checkpoint(error),
            EngineError::Device(error) => Self::Device(error),
            error => Self::Engine(error),
        }
    }
}

impl RuntimeError {
    /// Whether the device or the engine failed, and not what they were given: exit status 1 instead of 2.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        match self {
            Self::Request(error) => !matches!(error, foveal_types::Error::Request(_)),
            Self::Engine(error) => matches!(error, EngineError::Thread { .. }),
            Self::Device(error) => {
                !matches!(error, DeviceError::Unavailable { .. } | DeviceError::UnknownDevice { .. })
            }
            _ => false,
        }
    }
}
