//! Runs a plan's work on the model.

mod packed_step;
mod picture_rows;
mod warm_up;

use std::collections::HashMap;

use foveal_device::Device;
use foveal_llm::{Batch, Decoder, KvCache, LlmError, Sampler, SamplerState, Workspace};
use foveal_types::{DeviceFailure, Error, RequestError, SeqId, TokenLogprobs, TokenOutput};
use foveal_vision::VisionError;

use crate::scheduler::{SequenceRows, Work};
use crate::worker::StepExecutor;
use packed_step::PackedStep;
pub(crate) use picture_rows::PictureRows;

type StepResults = Vec<Result<Option<TokenOutput>, Error>>;

/// The model with all its memory. Owned by the engine's thread.
pub(crate) struct ModelExecutor {
    device: Device,
    pictures: PictureRows,
    workspace: Workspace,
    cache: KvCache,
    sampler: Sampler,
    decoder: Decoder,
    states: HashMap<SeqId, SamplerState>,
    packed: PackedStep,
}

/// Why a step gave nothing.
enum StepError {
    /// The batch can't run, and it is the requests' doing: they fail, the engine goes on.
    Batch(Error),
    /// Nothing works any more.
    Device(DeviceFailure),
}

impl ModelExecutor {
    pub(crate) fn new(
        device: Device,
        pictures: PictureRows,
        workspace: Workspace,
        cache: KvCache,
        sampler: Sampler,
        decoder: Decoder,
    ) -> Self {
        let packed = PackedStep::default();
        Self { device, pictures, workspace, cache, sampler, decoder, states: HashMap::new(), packed }
    }

    fn run(&mut self, work: &Work) -> Result<StepResults, StepError> {
        let stream = self.device.stream();
        if !work.encode.is_empty() {
            self.pictures.encode(stream, &work.encode)?;
        }
        self.packed.pack(work);
        let image = match work.image_embeds.iter().any(Option::is_some) {
            true => Some(self.pictures.rows(&self.packed.image_index)?),
            false => None,
        };
        let batch = Batch { image: image.as_ref().map(|rows| rows.as_image_rows()), ..self.packed.batch() };
        let logits = self.decoder.forward(stream, &batch, &mut self.cache, &mut self.workspace)?;

        let sampling: Vec<&SequenceRows> = work.sequences.iter().filter(|sequence| sequence.samples).collect();
        let mut states = Vec::with_capacity(sampling.len());
        for sequence in &sampling {
            states.push((sequence.id, self.states.remove(&sequence.id).map_or_else(|| new_state(sequence), Ok)?));
        }
        let mut borrowed: Vec<&mut SamplerState> = states.iter_mut().map(|(_, state)| state).collect();
        let mut sampled = self.sampler.sample(stream, logits, &mut borrowed)?.into_iter();
        self.states.extend(states);
        let results = work.sequences.iter().map(|sequence| match sequence.samples.then(|| sampled.next()).flatten() {
            None => Ok(None),
            Some(Err(error)) => Err(RequestError::new("no_usable_logits", error.to_string()).into()),
            Some(Ok(token)) => {
                let logprobs = sequence.ask.sampling.logprobs;
                Ok(Some(TokenOutput {
                    token_id: token.token_id,
                    logprob: logprobs.map(|_| token.logprob),
                    logprobs: logprobs.map(|_| TokenLogprobs { top: token.top }),
                }))
            }
        });
        Ok(results.collect())
    }
}

fn new_state(sequence: &SequenceRows) -> Result<SamplerState, RequestError> {
    let ask = &*sequence.ask;
    SamplerState::new(&ask.sampling, &ask.prompt, &ask.stop)
}

impl StepExecutor for ModelExecutor {
    fn execute(&mut self, work: &Work) -> Result<StepResults, DeviceFailure> {
        match self.run(work) {
            Ok(results) => Ok(results),
            Err(StepError::Batch(error)) => Ok(work.sequences.iter().map(|_| Err(error.clone())).collect()),
            Err(StepError::Device(failure)) => Err(failure),
        }
    }

    fn forget(&mut self, id: SeqId) {
        self.states.remove(&id);
    }
}

impl From<RequestError> for StepError {
    fn from(error: RequestError) -> Self {
        Self::Batch(error.into())
    }
}

impl From<foveal_device::DeviceError> for StepError {
    fn from(error: foveal_device::DeviceError) -> Self {
        Self::Device(DeviceFailure::new(error.to_string()))
    }
}

impl From<LlmError> for StepError {
    /// An error that names a sequence is that sequence's own; there is one in a batch.
    fn from(error: LlmError) -> Self {
        match error.sequence() {
            Some(_) => RequestError::new("invalid_prompt", error.to_string()).into(),
            None => Self::Device(DeviceFailure::new(error.to_string())),
        }
    }
}

impl From<VisionError> for StepError {
    fn from(error: VisionError) -> Self {
        match error {
            VisionError::Grid { .. } | VisionError::PatchLen { .. } | VisionError::TooManyPatches { .. } => {
                RequestError::new("invalid_image", error.to_string()).into()
            }
            error => Self::Device(DeviceFailure::new(error.to_string())),
        }
    }
}
