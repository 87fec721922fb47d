//! Which rows run next: a pure state machine without device, clock or channel.
//!
//! Requests run first come, first served, one at a time; a prompt runs in chunks. The pages of the sequence that ended
//! last are kept: a request that begins with the same rows (the next turn of a chat) takes them over.

mod block_manager;
mod chunk;
mod limits;
mod picture_span;
mod sequence;
mod step_plan;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use foveal_llm::{GenerationDefaults, StopCriteria};
use foveal_mrope::MropeError;
use foveal_types::{Delta, Error, Exhausted, FinishReason, PreparedRequest, RequestError, SeqId, TokenOutput};

use block_manager::BlockManager;
use chunk::EncodedPictures;
pub use limits::Limits;
use sequence::{History, Sequence};
pub(crate) use step_plan::{Event, News, SequenceRows, StepPlan, Work};

/// The state of the machine.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    /// The model's own stop tokens.
    defaults: GenerationDefaults,
    blocks: BlockManager,
    waiting: VecDeque<Sequence>,
    running: Option<Sequence>,
    /// Rows of `running` that the last plan computes.
    planned_end: usize,
    /// Which pictures of `running` are encoded.
    encoded: EncodedPictures,
    /// What the sequence that ended last leaves to the next one; only while nothing runs.
    retained: Option<History>,
    prefix_caching: bool,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits, defaults: GenerationDefaults, prefix_caching: bool) -> Self {
        Self {
            blocks: BlockManager::new(limits.num_blocks, limits.page),
            limits,
            defaults,
            waiting: VecDeque::new(),
            running: None,
            planned_end: 0,
            encoded: EncodedPictures::default(),
            retained: None,
            prefix_caching,
        }
    }

    /// Takes in what happened and says what to do next. A plan with work must be followed by one
    /// [`Event::Computed`] or [`Event::Failed`] for each of its sequences.
    pub(crate) fn step(&mut self, events: Vec<Event>) -> StepPlan {
        let mut plan = StepPlan::default();
        for event in events {
            match event {
                Event::Arrived(id, request) => self.arrive(id, *request, &mut plan),
                Event::Cancelled(id) => self.cancel(id, &mut plan),
                Event::Computed(id, token) => self.computed(id, token, &mut plan),
                Event::Failed(id, error) => self.failed(id, error, &mut plan),
            }
        }
        while plan.work.is_none() {
            if self.running.is_none() && !self.admit(&mut plan) {
                break;
            }
            self.plan_work(&mut plan);
        }
        plan
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
        if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(at);
            plan.news.push(News::LeftQueue(id));
        } else {
            self.end(id, FinishReason::Cancelled, plan);
        }
    }

    fn computed(&mut self, id: SeqId, token: Option<TokenOutput>, plan: &mut StepPlan) {
        let Some(sequence) = self.running.as_mut().filter(|sequence| sequence.id == id) else { return };
        sequence.history.num_computed = self.planned_end;
        let total = sequence.prompt_len();
        if sequence.completion_len() == 0 {
            plan.news.push(News::Delta(id, Delta::Prefill { done: sequence.history.num_computed.min(total), total }));
        }
        let Some(token) = token else { return };
        let chosen = token.token_id;
        sequence.history.input_ids.push(chosen);
        plan.news.push(News::Delta(id, Delta::Token(token)));
        if let Some(reason) = sequence.ask.stop.finish_reason(chosen, sequence.completion_len()) {
            self.end(id, reason, plan);
        }
    }

    /// Ends the running sequence `id` and keeps its pages for the next request.
    fn end(&mut self, id: SeqId, reason: FinishReason, plan: &mut StepPlan) {
        let Some(sequence) = self.running.take_if(|sequence| sequence.id == id) else { return };
        plan.news.push(News::Delta(id, Delta::Finished { reason, usage: sequence.usage() }));
        plan.ended.push(id);
        let mut history = sequence.history;
        let keep = if self.prefix_caching { history.num_computed } else { 0 };
        self.blocks.shrink(&mut history.block_table, keep);
        self.retained = Some(history).filter(|history| !history.block_table.is_empty());
        self.encoded = EncodedPictures::default();
    }

    /// Ends the running sequence `id` without its answer. Its pages are not kept: they may hold what made it fail.
    fn failed(&mut self, id: SeqId, error: Error, plan: &mut StepPlan) {
        let Some(mut sequence) = self.running.take_if(|sequence| sequence.id == id) else { return };
        self.blocks.shrink(&mut sequence.history.block_table, 0);
        self.encoded = EncodedPictures::default();
        plan.news.push(News::Failed(id, error));
        plan.ended.push(id);
    }

    /// Starts the request that has waited longest; `false` if none waits.
    fn admit(&mut self, plan: &mut StepPlan) -> bool {
        let Some(mut sequence) = self.waiting.pop_front() else { return false };
        if let Some(mut last) = self.retained.take() {
            // One row is always computed anew: its logits choose the first token.
            let common = sequence.history.common_prefix(&last).min(sequence.prompt_len().saturating_sub(1));
            self.blocks.shrink(&mut last.block_table, common);
            sequence.take_over(last, common);
        }
        plan.news.push(News::LeftQueue(sequence.id));
        let (done, total) = (sequence.history.num_computed, sequence.prompt_len());
        plan.news.push(News::Delta(sequence.id, Delta::Prefill { done, total }));
        self.running = Some(sequence);
        true
    }

    /// Plans the next rows of the running sequence.
    fn plan_work(&mut self, plan: &mut StepPlan) {
        let Some(sequence) = self.running.as_mut() else { return };
        let chunk = self.encoded.next_chunk(sequence, &self.limits);
        let (id, end) = (sequence.id, chunk.rows.end);
        // Admission makes both errors impossible: a sequence alone outgrows neither the pool nor the positions.
        let error = if self.blocks.grow(&mut sequence.history.block_table, end) {
            self.planned_end = end;
            match chunk.into_work(sequence, self.blocks.page()) {
                Ok(work) => {
                    plan.work = Some(work);
                    return;
                }
                Err(error) => wrong_positions(&error),
            }
        } else {
            Exhausted::new("the KV cache has no free page left; try again later").into()
        };
        debug_assert!(false, "{error}: {} free pages, {end} rows", self.blocks.num_free());
        self.failed(id, error, plan);
    }
}

fn wrong_positions(error: &MropeError) -> Error {
    RequestError::new("invalid_prompt", error.to_string()).into()
}
