//! The model with all the memory that steps read and write, and a step's parts as they are recorded.

use foveal_device::{DeviceError, Stream};
use foveal_graphs::Record;
use foveal_llm::{Decoder, ImageTables, KvCache, LlmError, Sampler, StepShape, Workspace};
use foveal_vision::{BatchShape, VisionError};
use thiserror::Error;

use super::PictureRows;
use crate::EngineError;

/// Kept whole for as long as anything is recorded on it.
pub(crate) struct StepMemory {
    pub(crate) pictures: PictureRows,
    pub(crate) workspace: Workspace,
    pub(crate) cache: KvCache,
    pub(crate) sampler: Sampler,
    pub(crate) decoder: Decoder,
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// Pictures that have been loaded, up to the staging memory.
    Pictures(BatchShape),
    /// All rows, up to the last layer's attention.
    Rows(StepShape),
    /// Logits, of so many rows.
    Logits {
        /// Rows.
        rows: usize,
        /// Whether they may be those of pictures that the last layer adds to.
        has_images: bool,
    },
}

impl Record for StepMemory {
    type Key = Part;
    type Error = StepError;

    fn launch(&mut self, stream: &Stream, part: Part) -> Result<(), StepError> {
        let Self { pictures, workspace, cache, sampler, decoder } = self;
        match part {
            Part::Pictures(shape) => pictures.launch(stream, shape)?,
            Part::Rows(shape) => {
                let levels = pictures.deepstack();
                let images = ImageTables { embeds: pictures.embeds(), deepstack: &levels };
                let read = (shape.has_images.then_some(images), Some(sampler.token_ids()));
                decoder.launch_rows(stream, shape, read, cache, workspace)?;
            }
            Part::Logits { rows, has_images } => {
                let levels = pictures.deepstack();
                decoder.launch_logits(stream, rows, has_images.then_some(&levels[..]), workspace)?;
            }
        }
        Ok(())
    }
}

/// Why a part of a step can't run.
#[derive(Debug, Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Llm(#[from] LlmError),
    #[error(transparent)]
    Vision(#[from] VisionError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl StepError {
    /// Whether there was no memory, which others may give back.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        let device = match self {
            Self::Device(error) | Self::Llm(LlmError::Device(error)) | Self::Vision(VisionError::Device(error)) => {
                error
            }
            _ => return false,
        };
        matches!(device, DeviceError::OutOfMemory { .. })
    }

    /// The sequence that it concerns, if it concerns one.
    pub(crate) fn sequence(&self) -> Option<usize> {
        match self {
            Self::Llm(error) => error.sequence(),
            Self::Vision(_) | Self::Device(_) => None,
        }
    }
}

impl From<StepError> for EngineError {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Llm(error) => error.into(),
            StepError::Vision(error) => error.into(),
            StepError::Device(error) => error.into(),
        }
    }
}
