//! Runs a plan's work on the model.

mod outcome;
mod packed_step;
mod picture_rows;
mod shapes;
mod step_clock;
mod step_memory;
#[cfg(test)]
mod tests;
mod warm_up;

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use foveal_device::{Device, Stream};
use foveal_graphs::{CaptureReport, GraphStats, Graphs};
use foveal_llm::{Batch, LlmError, PendingTokens, SamplerState};
use foveal_mrope::TileCacheStats;
use foveal_pinned::PinnedPool;
use foveal_types::{DeviceFailure, Exhausted, RequestError, SeqId, TokenId};

use crate::scheduler::{EncodeBatch, SequenceRows, StepResults, Work};
use crate::stats::ExecutorStats;
use crate::worker::StepExecutor;
use outcome::Outcome;
use packed_step::PackedStep;
pub(crate) use picture_rows::PictureRows;
use shapes::Shapes;
use step_clock::{GpuTimes, StepClock, record_step};
pub(crate) use step_memory::StepMemory;
use step_memory::{Part, StepError};

/// The model with all its memory. Owned by the engine's thread.
///
/// On a GPU a step is sent on its way as it is submitted, padded to one of the shapes that are recorded; its tokens are read
/// when they are asked for, and the step behind it reads them on the device. The CPU computes as steps are submitted.
pub(crate) struct ModelExecutor {
    device: Device,
    steps: Graphs<StepMemory>,
    shapes: Shapes,
    /// What recordings may take; none where steps run launch by launch.
    graph_bytes: Option<u64>,
    num_resets: u64,
    states: HashMap<SeqId, SamplerState>,
    packed: PackedStep,
    last: LastTokens,
    in_flight: VecDeque<InFlight>,
    clock: StepClock,
    /// Page-locked memory, for its figures.
    pinned: Option<PinnedPool>,
}

/// What the last step chose.
#[derive(Default)]
struct LastTokens {
    /// For each of its sequences that were to sample, the row of its token; `None` where that failed.
    rows: Vec<Option<usize>>,
    /// The tokens by row, where the host knows them already.
    tokens: Vec<Option<TokenId>>,
}

impl LastTokens {
    /// What the decoder reads for the token of the step's `n`th sequence that sampled.
    fn id(&self, n: usize, is_on_device: bool) -> Option<i32> {
        let row = self.rows.get(n).copied().flatten()?;
        if is_on_device {
            return i32::try_from(row).ok().map(|row| -1 - row);
        }
        self.tokens.get(row).copied().flatten().and_then(|token| i32::try_from(token.0).ok())
    }
}

/// A step that has been submitted.
struct InFlight {
    outcome: Outcome,
    /// Until its tokens are read.
    pending: Option<PendingTokens>,
}

impl ModelExecutor {
    /// `graph_bytes`: the GPU's memory that recordings may take; without, steps run launch by launch, in the same shapes.
    pub(crate) fn new(device: Device, memory: StepMemory, graph_bytes: Option<u64>) -> Self {
        let limits = memory.workspace.limits();
        let num_layers = memory.decoder.settings().num_hidden_layers;
        let shapes = Shapes::new(limits.max_tokens, limits.max_seqs, memory.pictures.deepstack().len() >= num_layers);
        Self {
            steps: Graphs::new(&device, memory).switched(graph_bytes.is_some()),
            device,
            shapes,
            graph_bytes,
            num_resets: 0,
            states: HashMap::new(),
            packed: PackedStep::default(),
            last: LastTokens::default(),
            in_flight: VecDeque::new(),
            clock: StepClock::new(),
            pinned: None,
        }
    }

    /// Tells of this pool, too, in its statistics.
    pub(crate) fn with_pinned(self, pool: PinnedPool) -> Self {
        Self { pinned: Some(pool), ..self }
    }

    /// Records the steps of all shapes, as far as memory goes. Nothing to do on the CPU, nor where nothing is to be recorded.
    pub(crate) fn record(&mut self) -> Result<CaptureReport, StepError> {
        let Some(budget_bytes) = self.graph_bytes.filter(|_| self.device.is_cuda()) else {
            return Ok(CaptureReport::default());
        };
        let mut total = CaptureReport { budget_bytes, ..CaptureReport::default() };
        // Recording runs each shape once: over padding alone, which stores nothing.
        for part in self.shapes.parts() {
            if let Part::Rows(shape) = part {
                let load = |memory: &mut StepMemory, stream: &Stream| {
                    let StepMemory { decoder, cache, workspace, .. } = memory;
                    decoder.load_batch(stream, (&NO_ROWS, 0), shape, cache, workspace)
                };
                self.steps.with_work(load)?;
            }
            total.add(self.steps.capture_all([part], budget_bytes)?);
        }
        for (side, count) in COMMON_PICTURES {
            let Some(batch) = self.steps.work().pictures.squares(side, count) else { continue };
            let shape = self.steps.with_work(|memory, stream| memory.pictures.load_apart(stream, &batch.images))?;
            total.add(self.steps.capture_all([Part::Pictures(shape)], budget_bytes)?);
        }
        self.device.stream().synchronize()?;
        self.num_resets = self.steps.stats().resets;
        Ok(total)
    }

    /// Records the steps anew whose recordings were dropped. Without, they run launch by launch.
    fn record_again(&mut self) {
        if self.steps.stats().resets == self.num_resets {
            return;
        }
        match self.record() {
            Ok(report) => tracing::warn!(%report, "memory of the GPU was freed; recorded all steps again"),
            Err(error) => {
                tracing::warn!(%error, "memory of the GPU was freed, and steps can't be recorded again; they run without");
                self.num_resets = self.steps.stats().resets;
            }
        }
    }

    /// Sends a step on its way. What concerns one sequence is its own result, and the others run without it.
    fn start(&mut self, work: Work) -> Result<InFlight, DeviceFailure> {
        let mut step = Outcome::new(work);
        if let Some(batch) = step.take_encode() {
            self.encode(&batch).map_err(device_failure)?;
        }
        let pictures = &self.steps.work().pictures;
        step.fail_where(|sequence, image_embeds| {
            let has_bad_row = image_embeds.iter().flatten().any(|row| pictures.is_unusable(*row));
            if has_bad_row {
                return Err(RequestError::new("invalid_image", "a picture of this request could not be encoded"));
            }
            if sequence.samples && !self.states.contains_key(&sequence.id) {
                self.states.insert(sequence.id, new_state(sequence)?);
            }
            Ok(())
        });
        let mut pending = None;
        while !step.work().sequences.is_empty() {
            match self.launch(&step) {
                Ok(tokens) => {
                    pending = Some(tokens);
                    break;
                }
                Err(error) => match error.sequence() {
                    // Found before anything was launched.
                    Some(at) => step.fail(at, RequestError::new("invalid_prompt", error.to_string()).into()),
                    // What the step has computed so far is not relied on: none of its sequences goes on.
                    None if error.is_out_of_memory() => {
                        let message = format!("{error}; try again later, with fewer requests at once");
                        while !step.work().sequences.is_empty() {
                            step.fail(0, Exhausted::new(message.clone()).into());
                        }
                    }
                    None => return Err(device_failure(error)),
                },
            }
        }
        self.last = LastTokens { rows: step.sampled_rows(), tokens: Vec::new() };
        Ok(InFlight { outcome: step, pending })
    }

    /// Encodes pictures into their rows of the arena.
    fn encode(&mut self, batch: &EncodeBatch) -> Result<(), StepError> {
        if !self.device.is_cuda() {
            return Ok(self.steps.with_work(|memory, stream| memory.pictures.encode(stream, batch))?);
        }
        let Some(shape) = self.steps.with_work(|memory, stream| memory.pictures.load(stream, batch))? else {
            return Ok(());
        };
        self.steps.run(Part::Pictures(shape))?;
        Ok(self.steps.with_work(|memory, stream| {
            stream.cuda().map_or(Ok(()), |cuda| memory.pictures.place(cuda, &batch.rows))
        })?)
    }

    /// Runs the decoder over all rows and has the tokens chosen that are due.
    fn launch(&mut self, step: &Outcome) -> Result<PendingTokens, StepError> {
        let (work, is_cuda) = (step.work(), self.device.is_cuda());
        self.packed.pack(work, |n| self.last.id(n, is_cuda));
        let has_images = work.image_embeds.iter().any(Option::is_some);
        if is_cuda {
            self.launch_padded(has_images)?
        } else {
            self.compute(has_images)?
        }
        let mut states: Vec<(SeqId, SamplerState)> =
            step.sampling().filter_map(|sequence| self.states.remove_entry(&sequence.id)).collect();
        let mut borrowed: Vec<&mut SamplerState> = states.iter_mut().map(|(_, state)| state).collect();
        let tokens = self.steps.with_work(|StepMemory { workspace, sampler, .. }, stream| {
            sampler.begin(stream, workspace.logits(borrowed.len())?, &mut borrowed)
        });
        self.states.extend(states);
        Ok(tokens?)
    }

    /// On a GPU: one copy, and one call for each of the step's two parts.
    fn launch_padded(&mut self, has_images: bool) -> Result<(), StepError> {
        let Self { steps, packed, shapes, last, .. } = self;
        let (shape, num_rows) = steps.with_work(|memory, stream| {
            let StepMemory { pictures, workspace, cache, decoder, .. } = memory;
            let image = has_images.then(|| pictures.rows(&packed.image_index));
            let batch = Batch { image: image.as_ref().map(|rows| rows.as_image_rows()), ..packed.batch() };
            let shape = shapes.of(&batch);
            decoder.load_batch(stream, (&batch, last.rows.len()), shape, cache, workspace)?;
            Ok::<_, LlmError>((shape, batch.num_tokens()))
        })?;
        steps.run(Part::Rows(shape))?;
        steps.count_rows(num_rows, shape.rows);
        let num_logits = packed.batch().logit_rows.len();
        if num_logits == 0 { Ok(()) } else { steps.run(shapes.logits(num_logits, has_images)) }
    }

    /// On the CPU: without padding.
    fn compute(&mut self, has_images: bool) -> Result<(), LlmError> {
        let packed = &self.packed;
        self.steps.with_work(|StepMemory { pictures, workspace, cache, decoder, .. }, stream| {
            let image = has_images.then(|| pictures.rows(&packed.image_index));
            let batch = Batch { image: image.as_ref().map(|rows| rows.as_image_rows()), ..packed.batch() };
            decoder.forward(stream, &batch, cache, workspace).map(|_| ())
        })
    }

    /// Reads a step's tokens.
    fn finish(&mut self, step: &mut InFlight) -> Result<(), LlmError> {
        let Some(pending) = step.pending.take() else { return Ok(()) };
        let tokens = self.steps.with_work(|memory, _| memory.sampler.finish(pending))?;
        for (sequence, token) in step.outcome.sampling().zip(&tokens) {
            if let (Some(state), Ok(token)) = (self.states.get_mut(&sequence.id), token) {
                state.record(token.token_id);
            }
        }
        if !self.device.is_cuda() {
            self.last.tokens = tokens.iter().map(|token| token.as_ref().ok().map(|token| token.token_id)).collect();
        }
        step.outcome.take_tokens(tokens);
        Ok(())
    }
}

/// Sides in pixels of square pictures, and how many at once, whose encoding is recorded: what most pictures are resized to,
/// alone, and those that come together in a burst.
const COMMON_PICTURES: [(u32, usize); 8] =
    [(256, 1), (384, 1), (448, 1), (512, 1), (768, 1), (1024, 1), (512, 2), (512, 4)];

/// A step of padding alone.
const NO_ROWS: Batch<'static> = Batch {
    input_ids: &[],
    positions: &[],
    slot_mapping: &[],
    cu_seqlens: &[0],
    context_lens: &[],
    block_tables: &[],
    max_blocks: 0,
    logit_rows: &[],
    image: None,
};

fn new_state(sequence: &SequenceRows) -> Result<SamplerState, RequestError> {
    let ask = &*sequence.ask;
    SamplerState::new(&ask.sampling, &ask.prompt, &ask.stop)
}

fn device_failure(error: impl std::error::Error) -> DeviceFailure {
    DeviceFailure::new(error.to_string())
}

impl StepExecutor for ModelExecutor {
    fn submit(&mut self, work: Work) -> Result<(), DeviceFailure> {
        self.record_again();
        let begun = Instant::now();
        let device = self.device.clone();
        let cuda = device.stream().cuda();
        cuda.map_or(Ok(()), |cuda| self.clock.start(cuda)).map_err(device_failure)?;
        let mut step = self.start(work)?;
        cuda.map_or(Ok(()), |cuda| self.clock.end(cuda)).map_err(device_failure)?;
        if !self.device.is_cuda() {
            self.finish(&mut step).map_err(device_failure)?;
            record_step(begun.elapsed());
        }
        self.in_flight.push_back(step);
        Ok(())
    }

    fn wait(&mut self) -> Result<StepResults, DeviceFailure> {
        let mut step = self.in_flight.pop_front().ok_or_else(|| DeviceFailure::new("no step is in flight"))?;
        self.finish(&mut step).map_err(device_failure)?;
        self.clock.look().map_err(device_failure)?;
        Ok(step.outcome.into_results())
    }

    fn rest(&mut self) -> Result<(), DeviceFailure> {
        self.clock.rest().map_err(device_failure)
    }

    fn stats(&self) -> ExecutorStats {
        let GpuTimes { busy_ms, idle_ms } = self.clock.times();
        let GraphStats { replays, eager_runs, rows, padded_rows, .. } = self.steps.stats();
        let pinned = self.pinned.as_ref().map(PinnedPool::stats).unwrap_or_default();
        let TileCacheStats { hits: geometry_hits, misses: geometry_misses, .. } =
            self.steps.work().pictures.geometry_stats();
        ExecutorStats {
            gpu_busy_ms: busy_ms,
            gpu_idle_ms: idle_ms,
            replays,
            eager_runs,
            rows,
            padded_rows,
            pinned_bytes: pinned.bytes_pinned,
            pinned_bytes_in_use: pinned.bytes_in_use,
            copies: pinned.copies,
            bytes_copied: pinned.bytes_copied,
            copy_waits: pinned.waits,
            geometry_hits,
            geometry_misses,
        }
    }

    fn forget(&mut self, id: SeqId) {
        self.states.remove(&id);
    }
}
