//! Runs a plan's work on the model.

mod outcome;
mod packed_step;
mod picture_rows;
#[cfg(test)]
mod tests;
mod warm_up;

use std::collections::{HashMap, VecDeque};

use foveal_device::Device;
use foveal_llm::{Batch, Decoder, KvCache, LlmError, Sampler, SamplerState, Workspace};
use foveal_types::{DeviceFailure, RequestError, SeqId, TokenId};

use crate::scheduler::{SequenceRows, StepResults, Work};
use crate::worker::StepExecutor;
use outcome::Outcome;
use packed_step::PackedStep;
pub(crate) use picture_rows::PictureRows;

/// The model with all its memory. Owned by the engine's thread.
///
/// A step is computed as it is submitted; its results wait to be asked for.
pub(crate) struct ModelExecutor {
    device: Device,
    pictures: PictureRows,
    workspace: Workspace,
    cache: KvCache,
    sampler: Sampler,
    decoder: Decoder,
    states: HashMap<SeqId, SamplerState>,
    packed: PackedStep,
    /// What the last step chose for each of its sequences that sampled, in order; `None` where that failed.
    last_tokens: Vec<Option<TokenId>>,
    results: VecDeque<StepResults>,
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
        Self {
            device,
            pictures,
            workspace,
            cache,
            sampler,
            decoder,
            states: HashMap::new(),
            packed: PackedStep::default(),
            last_tokens: Vec::new(),
            results: VecDeque::new(),
        }
    }

    /// Computes a step. What concerns one sequence is its own result, and the others run without it.
    fn run(&mut self, work: Work) -> Result<StepResults, DeviceFailure> {
        let mut step = Outcome::new(work);
        if let Some(batch) = step.take_encode() {
            self.pictures.encode(self.device.stream(), &batch).map_err(device_failure)?;
        }
        step.fail_where(|sequence, image_embeds| {
            let has_bad_row = image_embeds.iter().flatten().any(|row| self.pictures.is_unusable(*row));
            if has_bad_row {
                return Err(RequestError::new("invalid_image", "a picture of this request could not be encoded"));
            }
            if sequence.samples && !self.states.contains_key(&sequence.id) {
                self.states.insert(sequence.id, new_state(sequence)?);
            }
            Ok(())
        });
        while !step.work().sequences.is_empty() {
            match self.compute(&mut step) {
                Ok(()) => break,
                Err(error) => match error.sequence() {
                    // Found before anything was launched.
                    Some(at) => step.fail(at, RequestError::new("invalid_prompt", error.to_string()).into()),
                    None => return Err(device_failure(error)),
                },
            }
        }
        self.last_tokens = step.sampled_tokens();
        Ok(step.into_results())
    }

    /// Runs the decoder over all rows and chooses the tokens that are due.
    fn compute(&mut self, step: &mut Outcome) -> Result<(), LlmError> {
        let stream = self.device.stream();
        let work = step.work();
        self.packed.pack(work, &self.last_tokens);
        let image = match work.image_embeds.iter().any(Option::is_some) {
            true => Some(self.pictures.rows(&self.packed.image_index)),
            false => None,
        };
        let batch = Batch { image: image.as_ref().map(|rows| rows.as_image_rows()), ..self.packed.batch() };
        let logits = self.decoder.forward(stream, &batch, &mut self.cache, &mut self.workspace)?;

        let sampling = work.sequences.iter().filter(|sequence| sequence.samples);
        let mut states: Vec<(SeqId, SamplerState)> =
            sampling.filter_map(|sequence| self.states.remove_entry(&sequence.id)).collect();
        let mut borrowed: Vec<&mut SamplerState> = states.iter_mut().map(|(_, state)| state).collect();
        let sampled = self.sampler.sample(stream, logits, &mut borrowed)?;
        self.states.extend(states);
        step.take_tokens(sampled);
        Ok(())
    }
}

fn new_state(sequence: &SequenceRows) -> Result<SamplerState, RequestError> {
    let ask = &*sequence.ask;
    SamplerState::new(&ask.sampling, &ask.prompt, &ask.stop)
}

fn device_failure(error: impl std::error::Error) -> DeviceFailure {
    DeviceFailure::new(error.to_string())
}

impl StepExecutor for ModelExecutor {
    fn submit(&mut self, work: Work) -> Result<(), DeviceFailure> {
        let results = self.run(work)?;
        self.results.push_back(results);
        Ok(())
    }

    fn wait(&mut self) -> Result<StepResults, DeviceFailure> {
        self.results.pop_front().ok_or_else(|| DeviceFailure::new("no step is in flight"))
    }

    fn forget(&mut self, id: SeqId) {
        self.states.remove(&id);
    }
}
