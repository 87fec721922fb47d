//! The model with all the memory that steps read and write, and a step's parts as they are recorded.

use foveal_device::{Stream, View};
use foveal_graphs::Record;
use foveal_llm::{Decoder, ImageTables, KvCache, LlmError, Sampler, StepShape, Workspace};

use super::PictureRows;

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
    type Error = LlmError;

    fn launch(&mut self, stream: &Stream, part: Part) -> Result<(), LlmError> {
        let Self { pictures, workspace, cache, sampler, decoder } = self;
        let levels: Vec<View<'_>> = pictures.deepstack();
        match part {
            Part::Rows(shape) => {
                let images = ImageTables { embeds: pictures.embeds(), deepstack: &levels };
                let read = (shape.has_images.then_some(images), Some(sampler.token_ids()));
                decoder.launch_rows(stream, shape, read, cache, workspace)
            }
            Part::Logits { rows, has_images } => {
                decoder.launch_logits(stream, rows, has_images.then_some(&levels[..]), workspace)
            }
        }
    }
}
