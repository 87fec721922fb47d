//! Plans one step: who runs, which rows, in which pages.

use std::ops::Range;
use std::sync::Arc;

use foveal_types::{BlockId, Delta, Exhausted, SeqId, SlotId};

use super::in_flight::PlannedRows;
use super::sequence::Sequence;
use super::step_plan::{News, SequenceRows, StepPlan, Work};
use super::{EncoderCache, Scheduler};

/// The rows of a step as far as it is planned.
struct Draft {
    budget: usize,
    chunks: Vec<(SeqId, Range<usize>)>,
}

/// Whether a sequence got the pages it needs.
enum Pages {
    Found,
    /// It made room itself, or ended.
    Gone,
    /// They come back when a step in flight has ended.
    Later,
}

impl Scheduler {
    /// The next step, if there is anything to compute.
    pub(super) fn plan(&mut self, plan: &mut StepPlan) -> Option<Work> {
        let mut draft = Draft { budget: self.limits.max_num_batched_tokens, chunks: Vec::new() };
        if self.plan_running(&mut draft, plan) {
            self.admit_waiting(&mut draft, plan);
        }
        let encode = self.encoder.finish_step();
        if draft.chunks.is_empty() {
            debug_assert!(encode.is_none(), "pictures are encoded for rows");
            return None;
        }
        let mut work = self.flat_batch(&draft.chunks);
        work.encode = encode;
        work.step = self.schedule(&work);
        Some(work)
    }

    /// Gives running sequences their rows. `false` if pages are short: then nobody new is to start.
    fn plan_running(&mut self, draft: &mut Draft, plan: &mut StepPlan) -> bool {
        let (mut at, mut has_room) = (0, true);
        while let Some(rows) = self.running.get(at).map(|sequence| sequence.next_rows(draft.budget)) {
            let Some(rows) = rows else {
                at += 1;
                continue;
            };
            let before = self.num_preemptions;
            let pages = self.find_pages(at, rows.end, plan);
            has_room &= before == self.num_preemptions;
            match pages {
                Pages::Found => {
                    self.draft_chunk(at, rows, draft);
                    at += 1;
                }
                Pages::Gone => {}
                // Whoever arrived later would take what this one waits for.
                Pages::Later => return false,
            }
        }
        has_room
    }

    /// Makes the table of the running sequence `at` reach `len` rows, at the cost of those that arrived after it.
    fn find_pages(&mut self, at: usize, len: usize, plan: &mut StepPlan) -> Pages {
        loop {
            let Some(sequence) = self.running.get_mut(at) else { return Pages::Gone };
            if self.blocks.grow(&mut sequence.block_table, len) {
                return Pages::Found;
            }
            let last_is_in_flight = self.running.last().is_some_and(|last| last.num_in_flight > 0);
            if self.in_flight.holds_ended() || last_is_in_flight {
                return Pages::Later;
            }
            if self.running.len() == 1 {
                // Admission makes this impossible: a sequence alone doesn't outgrow the pool.
                debug_assert!(false, "{len} rows are more than the whole cache holds");
                self.fail_running(at, out_of_pages(), plan);
                return Pages::Gone;
            }
            self.preempt_last();
        }
    }

    /// Takes the pages of the running sequence that arrived last; it waits before all that wait, with its answer so far.
    fn preempt_last(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        tracing::debug!(id = sequence.id.0, rows = sequence.num_computed, "preempted");
        sequence.start_again(&mut self.encoder);
        self.blocks.release(&mut sequence.block_table);
        self.waiting.push_front(sequence);
        self.num_preemptions += 1;
    }

    /// Plans those of `rows` of the running sequence `at` whose pictures can be had.
    fn draft_chunk(&mut self, at: usize, rows: Range<usize>, draft: &mut Draft) {
        let Some(sequence) = self.running.get_mut(at) else { return };
        let rows = sequence.with_pictures(rows, &mut self.encoder);
        if !rows.is_empty() {
            draft.budget -= rows.len();
            draft.chunks.push((sequence.id, rows));
        }
    }

    /// Starts waiting sequences, those that arrived first going first, as long as there is room for them.
    fn admit_waiting(&mut self, draft: &mut Draft, plan: &mut StepPlan) {
        while draft.budget > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(found) = self.find_room_for_next(plan) else { return };
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            if !sequence.has_run {
                plan.news.push(News::LeftQueue(sequence.id));
            }
            self.blocks.share(&found);
            self.num_prefix_hit_tokens += (found.len() * self.limits.page) as u64;
            sequence.start_behind(found, self.limits.page);
            let has_grown = self.blocks.grow(&mut sequence.block_table, sequence.contents.len());
            debug_assert!(has_grown, "the room was counted");
            sequence.let_pixels_go(self.limits.may_preempt());
            if let Some(done) = sequence.progress() {
                plan.news.push(News::Delta(sequence.id, Delta::Prefill { done, total: sequence.prompt_len() }));
            }
            let rows = sequence.next_rows(draft.budget);
            self.running.push(sequence);
            if let Some(rows) = rows {
                self.draft_chunk(self.running.len() - 1, rows, draft);
            }
        }
    }

    /// The cached pages that the next waiting sequence begins with, if there is room for the rest of its known rows and one
    /// page more. Alone it needs no more than its rows.
    fn find_room_for_next(&mut self, plan: &mut StepPlan) -> Option<Vec<BlockId>> {
        let page = self.limits.page;
        let next = self.waiting.front_mut()?;
        let len = next.contents.len();
        let found = match self.prefix_caching {
            // One row is always computed: its logits choose the next token.
            true => self.blocks.find(next.contents.page_hashes(len.saturating_sub(1) / page.max(1), page)),
            false => Vec::new(),
        };
        let is_alone = self.running.is_empty();
        let needed = len.div_ceil(page) - found.len() + usize::from(!is_alone);
        if self.blocks.has_room_besides(&found, needed) {
            return Some(found);
        }
        if is_alone && self.in_flight.is_idle() {
            // Admission makes this impossible: nobody holds a page, and a sequence alone doesn't outgrow the pool.
            debug_assert!(false, "{len} rows are more than the whole cache holds");
            let next = self.waiting.pop_front()?;
            if !next.has_run {
                plan.news.push(News::LeftQueue(next.id));
            }
            self.fail(next, out_of_pages(), plan);
        }
        None
    }

    /// The chunks as one batch, one after another.
    fn flat_batch(&self, chunks: &[(SeqId, Range<usize>)]) -> Work {
        let n = chunks.iter().map(|(_, rows)| rows.len()).sum::<usize>();
        let mut work = Work { positions: vec![0; 3 * n], ..Work::default() };
        for (id, rows) in chunks {
            if let Some(sequence) = self.running_index(*id).and_then(|at| self.running.get(at)) {
                push_rows(&mut work, sequence, rows, &self.encoder, self.limits.page);
            }
        }
        work
    }

    /// Writes down that `work` is on its way, and gives its number.
    fn schedule(&mut self, work: &Work) -> u64 {
        let mut planned = Vec::with_capacity(work.sequences.len());
        let mut num_sampled = 0;
        for &SequenceRows { id, context_len: end, samples, .. } in &work.sequences {
            planned.push(PlannedRows { id, end, samples });
            if let Some(sequence) = self.running_index(id).and_then(|at| self.running.get_mut(at)) {
                sequence.schedule(end, samples.then_some(num_sampled));
            }
            num_sampled += usize::from(samples);
        }
        self.in_flight.plan(planned)
    }
}

/// Appends `rows` of one sequence.
fn push_rows(work: &mut Work, sequence: &Sequence, rows: &Range<usize>, encoder: &EncoderCache, page: usize) {
    let first = work.input_ids.len();
    work.input_ids.extend(sequence.input_ids(rows));
    sequence.contents.fill_positions(rows.clone(), &mut work.positions, first);
    let slot = |row: usize| {
        let block = sequence.block_table.get(row / page).map(|block| i64::from(block.0));
        SlotId(block.map_or(-1, |block| block * page as i64 + (row % page) as i64))
    };
    work.slot_mapping.extend(rows.clone().map(slot));
    let mut image_embeds = vec![None; rows.len()];
    for span in sequence.contents.spans_in(rows) {
        let own = span.rows.start.max(rows.start)..span.rows.end.min(rows.end);
        let Some(entry) = encoder.rows_of(span.hash) else { continue };
        let slots = image_embeds.iter_mut().skip(own.start - rows.start);
        slots.zip(span.embeds_of(&own)).for_each(|(slot, embed)| *slot = Some(entry.start + embed));
    }
    work.image_embeds.extend(image_embeds);
    work.sequences.push(SequenceRows {
        id: sequence.id,
        ask: Arc::clone(&sequence.ask),
        rows: first..first + rows.len(),
        context_len: rows.end,
        block_table: sequence.block_table.iter().take(rows.end.div_ceil(page)).copied().collect(),
        samples: rows.end == sequence.total_len(),
    });
}

fn out_of_pages() -> foveal_types::Error {
    Exhausted::new("the KV cache has no free page left; try again later").into()
}
