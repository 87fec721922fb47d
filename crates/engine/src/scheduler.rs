//! Which rows run next: a pure state machine without device, clock or channel.
//!
//! Requests wait first come, first served, and run side by side: each step computes a part of one flat batch, the
//! sequences that arrived first going first, whether they bring a chunk of their prompt or one row of their answer. When
//! pages run out, the sequence that arrived last makes room and is computed again later. So all running sequences arrived
//! before all waiting ones, and the oldest one always gets on.
//!
//! A step may be planned while the one before it is still running: a sequence's row is then that of a token that nobody
//! knows yet. That the token ended the answer is seen a step late, and what the surplus step gives is dropped.

mod arena;
mod block_manager;
mod encoder_cache;
mod in_flight;
mod limits;
mod page_hash;
mod picture_span;
mod plan;
mod row_contents;
mod sequence;
mod step_plan;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use foveal_llm::{GenerationDefaults, StopCriteria};
use foveal_mrope::MropeError;
use foveal_types::{Delta, DeviceFailure, Error, FinishReason, PreparedRequest, RequestError, SeqId, TokenOutput};

use crate::EngineStats;
use block_manager::BlockManager;
use encoder_cache::EncoderCache;
use in_flight::{InFlight, PlannedRows};
pub use limits::Limits;
use sequence::Sequence;
pub(crate) use step_plan::{EncodeBatch, Event, InputId, News, SequenceRows, StepPlan, StepResults, Work};

/// What callers are told when the executor breaks its word.
const NOT_AS_ASKED: &str = "a step gave something else than it was asked for";

/// The state of the machine.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    /// The model's own stop tokens.
    defaults: GenerationDefaults,
    prefix_caching: bool,
    blocks: BlockManager,
    encoder: EncoderCache,
    /// By arrival.
    waiting: VecDeque<Sequence>,
    /// By arrival; all of them arrived before all that wait.
    running: Vec<Sequence>,
    in_flight: InFlight,
    num_preemptions: u64,
    num_prefix_hit_tokens: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits, defaults: GenerationDefaults, prefix_caching: bool) -> Self {
        Self {
            blocks: BlockManager::new(limits.num_blocks, limits.page),
            encoder: EncoderCache::new(&limits),
            limits,
            defaults,
            prefix_caching,
            waiting: VecDeque::new(),
            running: Vec::new(),
            in_flight: InFlight::default(),
            num_preemptions: 0,
            num_prefix_hit_tokens: 0,
        }
    }

    /// Takes in what happened and says what to do next. Each plan with work must be followed by one [`Event::Completed`],
    /// in order; until then at most one more may be asked for.
    pub(crate) fn step(&mut self, events: Vec<Event>) -> StepPlan {
        let mut plan = StepPlan::default();
        for event in events {
            match event {
                Event::Arrived(id, request) => self.arrive(id, *request, &mut plan),
                Event::Cancelled(id) => self.cancel(id, &mut plan),
                Event::Completed(results) => self.completed(results, &mut plan),
            }
        }
        plan.work = self.plan(&mut plan);
        plan
    }

    /// Counts and sizes as they are now.
    pub(crate) fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_pages_used: self.blocks.num_owned(),
            kv_pages_total: self.limits.num_blocks,
            encoder_rows_used: self.encoder.num_rows_taken(),
            encoder_rows_total: self.limits.encoder_rows,
            steps: self.in_flight.num_planned(),
            preemptions: self.num_preemptions,
            prefix_hit_tokens: self.num_prefix_hit_tokens,
            encoder_hits: self.encoder.num_hits(),
            ..EngineStats::default()
        }
    }

    fn arrive(&mut self, id: SeqId, request: PreparedRequest, plan: &mut StepPlan) {
        let prompt_len = request.input_ids.len();
        let room = self.limits.max_answer_len(prompt_len, request.rope_delta);
        let stop = StopCriteria::new(&request.sampling, &self.defaults, prompt_len, prompt_len.saturating_add(room));
        match Sequence::new(id, request, stop, self.limits.merge_size) {
            Ok(sequence) => self.waiting.push_back(sequence),
            Err(error) => {
                plan.news.push(News::LeftQueue(id));
                plan.news.push(News::Failed(id, wrong_positions(&error)));
                plan.ended.push(id);
            }
        }
    }

    fn cancel(&mut self, id: SeqId, plan: &mut StepPlan) {
        let running = self.running_index(id).map(|at| self.running.remove(at));
        let is_id = |sequence: &Sequence| sequence.id == id;
        let sequence = running.or_else(|| self.waiting.iter().position(is_id).and_then(|at| self.waiting.remove(at)));
        let Some(sequence) = sequence else { return };
        if !sequence.has_run {
            plan.news.push(News::LeftQueue(id));
        }
        self.finish(sequence, FinishReason::Cancelled, plan);
    }

    fn running_index(&self, id: SeqId) -> Option<usize> {
        self.running.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }

    fn completed(&mut self, results: StepResults, plan: &mut StepPlan) {
        let Some(planned) = self.in_flight.complete(results.step) else { return };
        let mut results = results.sequences.into_iter();
        for rows in planned {
            let missing = || Err(DeviceFailure::new(NOT_AS_ASKED).into());
            let result = results.next().unwrap_or_else(missing);
            match self.running_index(rows.id) {
                Some(at) => self.computed(at, &rows, result, plan),
                // What a sequence that has ended computed in surplus is dropped.
                None => self.in_flight.last_step_of(rows.id).into_iter().for_each(|s| self.let_go(s, plan)),
            }
        }
    }

    /// Takes in what a step gave for the running sequence `at`.
    fn computed(
        &mut self,
        at: usize,
        rows: &PlannedRows,
        result: Result<Option<TokenOutput>, Error>,
        plan: &mut StepPlan,
    ) {
        let Some(sequence) = self.running.get_mut(at) else { return };
        let id = sequence.id;
        sequence.num_in_flight -= 1;
        let token = match result {
            Ok(token) if token.is_some() == rows.samples => token,
            Ok(_) => return self.fail_running(at, DeviceFailure::new(NOT_AS_ASKED).into(), plan),
            Err(error) => return self.fail_running(at, error, plan),
        };
        sequence.num_computed = rows.end;
        sequence.release_done_pictures(&mut self.encoder);
        sequence.let_pixels_go(self.limits.may_preempt());
        if let Some(done) = sequence.progress() {
            plan.news.push(News::Delta(id, Delta::Prefill { done, total: sequence.prompt_len() }));
        }
        let reason = token.and_then(|token| {
            let reason = sequence.take_token(token.token_id);
            plan.news.push(News::Delta(id, Delta::Token(token)));
            reason
        });
        if self.prefix_caching {
            publish(sequence, &mut self.blocks);
        }
        if let Some(reason) = reason {
            let sequence = self.running.remove(at);
            self.finish(sequence, reason, plan);
        }
    }

    /// Ends a sequence that is neither waiting nor running any more.
    fn finish(&mut self, sequence: Sequence, reason: FinishReason, plan: &mut StepPlan) {
        plan.news.push(News::Delta(sequence.id, Delta::Finished { reason, usage: sequence.usage() }));
        self.end(sequence, plan);
    }

    fn fail_running(&mut self, at: usize, error: Error, plan: &mut StepPlan) {
        let sequence = self.running.remove(at);
        self.fail(sequence, error, plan);
    }

    /// Ends a sequence, which is neither waiting nor running any more, without its answer. Nothing of it is found again: it
    /// may be what made it fail.
    fn fail(&mut self, sequence: Sequence, error: Error, plan: &mut StepPlan) {
        plan.news.push(News::Failed(sequence.id, error));
        self.blocks.withdraw(&sequence.block_table);
        sequence.held().for_each(|hash| self.encoder.condemn(hash));
        self.end(sequence, plan);
    }

    fn end(&mut self, sequence: Sequence, plan: &mut StepPlan) {
        match sequence.num_in_flight {
            0 => self.let_go(sequence, plan),
            _ => self.in_flight.keep(sequence),
        }
    }

    /// Takes back what a sequence that has ended holds, once no step in flight reads or writes it.
    fn let_go(&mut self, mut sequence: Sequence, plan: &mut StepPlan) {
        sequence.release_pictures(&mut self.encoder);
        self.blocks.release(&mut sequence.block_table);
        plan.ended.push(sequence.id);
    }
}

/// Makes the full pages that `sequence` has computed findable.
fn publish(sequence: &mut Sequence, blocks: &mut BlockManager) {
    let num_full = sequence.num_computed / blocks.page().max(1);
    let hashes = sequence.contents.page_hashes(num_full, blocks.page());
    let pages = sequence.block_table.iter().zip(hashes).skip(sequence.num_published);
    pages.for_each(|(&block, &hash)| blocks.publish(block, hash));
    sequence.num_published = num_full;
}

fn wrong_positions(error: &MropeError) -> Error {
    RequestError::new("invalid_prompt", error.to_string()).into()
}
