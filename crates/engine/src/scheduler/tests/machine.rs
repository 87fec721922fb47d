//! A scheduler with a device that computes nothing but checks everything, and with what callers have been told.

use std::collections::{HashMap, VecDeque};
use std::sync::Weak;

use super::*;
use foveal_types::{BlockId, ContentHash, PreparedImage, SlotId, TokenId, Usage};

/// What a row is: its token, its positions, and the picture's row under it.
type Row = (TokenId, [i32; 3], Option<(ContentHash, usize)>);

/// Memory that remembers what every slot and every row of the arena holds. A row of a failed sequence holds `None`.
#[derive(Default)]
struct FakeDevice {
    slots: HashMap<SlotId, Option<Row>>,
    arena: HashMap<usize, (ContentHash, usize)>,
    last_tokens: Vec<Option<TokenId>>,
    encoded: Vec<ContentHash>,
    computed_rows: usize,
}

/// A request as the test knows it.
pub(super) struct Asked {
    rows: Vec<Row>,
    delta: i32,
    prompt_len: usize,
    max_tokens: usize,
    /// Which token of the answer, counted from 0, is the model's stop token.
    stop_at: Option<usize>,
    /// The device gives an error for the sequence in every step from that on which computes this row.
    fail_at: Option<usize>,
    lent: Vec<Weak<dyn foveal_types::Pixels>>,
    tokens: Vec<TokenId>,
    prefill: Vec<usize>,
    num_left_queue: usize,
    pub(super) ends: Vec<Ended>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ended {
    Finished(FinishReason, Usage),
    Failed(Error),
}

/// A model that stops at token 1000.
pub(super) const STOP: TokenId = TokenId(1000);

pub(super) fn model() -> GenerationDefaults {
    GenerationDefaults { stop_token_ids: vec![STOP], ..GenerationDefaults::default() }
}

/// The token that follows `len` tokens. The same for all requests, so that they meet beyond their prompts, too.
fn token_after(len: usize) -> TokenId {
    TokenId(5 + len as u32 % 3)
}

pub(super) struct Machine {
    pub(super) scheduler: Scheduler,
    device: FakeDevice,
    /// Submitted and not yet computed: results come as late as they can.
    submitted: VecDeque<Work>,
    depth: usize,
    pub(super) asked: HashMap<SeqId, Asked>,
    events: Vec<Event>,
    next: u64,
    pub(super) num_steps: usize,
}

impl Machine {
    pub(super) fn new(limits: Limits) -> Self {
        Self::with_depth(limits, 1)
    }

    pub(super) fn with_depth(limits: Limits, depth: usize) -> Self {
        Self {
            scheduler: Scheduler::new(limits, model(), true),
            device: FakeDevice::default(),
            submitted: VecDeque::new(),
            depth,
            asked: HashMap::new(),
            events: Vec::new(),
            next: 0,
            num_steps: 0,
        }
    }

    pub(super) fn send(&mut self, mut request: PreparedRequest) -> SeqId {
        let id = SeqId(self.next);
        self.next += 1;
        self.scheduler.limits.check(&request).unwrap();
        // Pixels of its own: who gives them back is who borrowed them.
        for image in &mut request.images {
            image.pixels = std::sync::Arc::new(image.pixels.bytes().to_vec());
        }
        let n = request.input_ids.len();
        let position = |row| [0, n, 2 * n].map(|axis| request.positions[axis + row]);
        let mut rows: Vec<Row> = (0..n).map(|row| (request.input_ids[row], position(row), None)).collect();
        let placeholders = request.image_token_ranges.iter().cloned().flatten();
        let embeds =
            request.images.iter().flat_map(|i| (0..picture_span::num_embeds(i.grid_thw, 2)).map(|e| (i.hash, e)));
        placeholders.zip(embeds).for_each(|(row, embed)| rows[row].2 = Some(embed));
        let room = self.scheduler.limits.max_answer_len(n, request.rope_delta);
        let asked = Asked {
            rows,
            delta: request.rope_delta,
            prompt_len: n,
            max_tokens: request.sampling.max_tokens.map_or(room, |max| max.min(room)),
            stop_at: None,
            fail_at: None,
            lent: request.images.iter().map(|image| std::sync::Arc::downgrade(&image.pixels)).collect(),
            tokens: Vec::new(),
            prefill: Vec::new(),
            num_left_queue: 0,
            ends: Vec::new(),
        };
        self.asked.insert(id, asked);
        self.events.push(Event::Arrived(id, Box::new(request)));
        id
    }

    /// The answer to `id` stops by itself with its token `index`.
    pub(super) fn stop_at(&mut self, id: SeqId, index: usize) {
        self.asked.get_mut(&id).unwrap().stop_at = Some(index);
    }

    /// The step that computes row `row` of `id` gives an error.
    pub(super) fn fail_at(&mut self, id: SeqId, row: usize) {
        self.asked.get_mut(&id).unwrap().fail_at = Some(row);
    }

    pub(super) fn cancel(&mut self, id: SeqId) {
        self.events.push(Event::Cancelled(id));
    }

    /// One round of the worker's loop. `false` when there was nothing to do.
    pub(super) fn step(&mut self) -> bool {
        let plan = self.scheduler.step(std::mem::take(&mut self.events));
        plan.news.into_iter().for_each(|news| self.hear(news));
        self.check_state();
        let has_work = plan.work.is_some();
        if let Some(work) = plan.work {
            assert_eq!(work.step, self.num_steps as u64);
            self.num_steps += 1;
            self.check_plan(&work);
            self.submitted.push_back(work);
        }
        assert!(self.submitted.len() <= self.depth);
        if self.submitted.len() == self.depth || !has_work {
            let Some(work) = self.submitted.pop_front() else { return false };
            let results = self.compute(&work);
            self.events.push(Event::Completed(results));
        }
        true
    }

    pub(super) fn run(&mut self) {
        while self.step() {}
    }

    fn hear(&mut self, news: News) {
        let (News::LeftQueue(id) | News::Delta(id, _) | News::Failed(id, _)) = news;
        let asked = self.asked.get_mut(&id).unwrap();
        assert!(asked.ends.is_empty(), "{news:?} after the end");
        match news {
            News::LeftQueue(_) => asked.num_left_queue += 1,
            News::Delta(_, Delta::Prefill { done, total }) => {
                assert_eq!(total, asked.prompt_len);
                assert!(asked.prefill.last().is_none_or(|last| *last < done) && done <= total);
                asked.prefill.push(done);
            }
            News::Delta(_, Delta::Token(token)) => asked.tokens.push(token.token_id),
            News::Delta(_, Delta::Finished { reason, usage }) => {
                assert_eq!(usage.completion_tokens, asked.tokens.len());
                asked.ends.push(Ended::Finished(reason, usage));
            }
            News::Delta(_, delta) => panic!("{delta:?}"),
            News::Failed(_, error) => asked.ends.push(Ended::Failed(error)),
        }
    }

    /// What holds after every step, whatever happened.
    fn check_state(&self) {
        let Scheduler { running, waiting, in_flight, blocks, encoder, limits, .. } = &self.scheduler;
        let all = || running.iter().chain(waiting).chain(in_flight.ended());
        blocks.check(all().map(|sequence| sequence.block_table.as_slice()));
        encoder.check(all().flat_map(Sequence::held));
        for work in &self.submitted {
            for planned in &work.sequences {
                let owner = all().find(|sequence| sequence.id == planned.id).expect("a step in flight holds it");
                assert!(owner.block_table.starts_with(&planned.block_table), "a step in flight needs its pages");
                let held: Vec<_> = owner.held().filter_map(|hash| encoder.rows_of(hash)).collect();
                let embeds = work.image_embeds[planned.rows.clone()].iter().flatten();
                embeds.for_each(|row| assert!(held.iter().any(|rows| rows.contains(row)), "row {row} of the arena"));
            }
        }
        assert!(running.len() <= limits.max_num_seqs);
        let holds_nothing =
            |s: &Sequence| s.block_table.is_empty() && s.num_in_flight == 0 && s.held().next().is_none();
        assert!(waiting.iter().all(holds_nothing));
        let arrived: Vec<SeqId> = running.iter().chain(waiting).map(|sequence| sequence.id).collect();
        assert!(arrived.is_sorted_by(|a, b| a < b), "whoever arrived first runs: {arrived:?}");
        for sequence in running.iter().filter(|sequence| sequence.num_computed >= sequence.prompt_len()) {
            let lent = self.asked[&sequence.id].lent.iter().filter(|pixels| pixels.strong_count() > 0).count();
            assert_eq!(lent, 0, "lent pixels while the answer is written");
        }
    }

    fn check_plan(&self, work: &Work) {
        let Scheduler { limits, running, .. } = &self.scheduler;
        let n = work.input_ids.len();
        assert!(n > 0 && n <= limits.max_num_batched_tokens);
        assert!(work.sequences.len() <= limits.max_num_seqs);
        assert_eq!((work.positions.len(), work.slot_mapping.len(), work.image_embeds.len()), (3 * n, n, n));
        assert!(work.sequences.is_sorted_by(|a, b| a.id < b.id && a.rows.end == b.rows.start));
        assert_eq!((work.sequences[0].rows.start, work.sequences.last().unwrap().rows.end), (0, n));
        let patches = |image: &PreparedImage| picture_span::num_patches(image.grid_thw);
        let encode = work.encode.iter().flat_map(|batch| &batch.images);
        assert!(encode.map(patches).sum::<usize>() <= limits.max_patches);
        for sequence in &work.sequences {
            self.check_past(work, sequence);
        }
        // Nobody is left out for somebody who arrived later.
        let last = work.sequences.last().unwrap().id;
        let is_left_out = |s: &&Sequence| s.id < last && !work.sequences.iter().any(|planned| planned.id == s.id);
        for sequence in running.iter().filter(is_left_out) {
            let first = sequence.num_scheduled;
            let waits_for_token = sequence.next_rows(1).is_none();
            let mut spans = sequence.contents.spans_in(&(first..first + 1));
            let waits_for_picture = spans.next().is_some_and(|span| !sequence.holds(span.image));
            assert!(waits_for_token || waits_for_picture, "{:?} is left out", sequence.id);
        }
    }

    /// The rows before a sequence's chunk are there: computed by steps that have ended, or by its own on the way.
    fn check_past(&self, work: &Work, sequence: &SequenceRows) {
        let limits = &self.scheduler.limits;
        assert_eq!(sequence.block_table.len(), sequence.context_len.div_ceil(limits.page));
        let own = |other: &&Work| other.sequences.iter().any(|s| s.id == sequence.id);
        for row in 0..sequence.context_len - sequence.rows.len() {
            let slot = self.slot(&sequence.block_table, row);
            let is_there = self.device.slots.contains_key(&slot);
            let is_coming = self.submitted.iter().filter(own).any(|other| {
                let rows = other.sequences.iter().find(|s| s.id == sequence.id).map(|s| s.rows.clone()).unwrap();
                other.slot_mapping[rows].contains(&slot)
            });
            assert!(is_there || is_coming, "row {row} of {:?} in step {}", sequence.id, work.step);
        }
    }

    fn slot(&self, table: &[BlockId], row: usize) -> SlotId {
        let page = self.scheduler.limits.page;
        SlotId(i64::from(table[row / page].0) * page as i64 + (row % page) as i64)
    }

    /// Runs a step as a device would, and checks that each sequence finds its whole past.
    fn compute(&mut self, work: &Work) -> StepResults {
        self.encode(work);
        let n = work.input_ids.len();
        self.device.computed_rows += n;
        let mut results = Vec::new();
        let mut tokens = Vec::new();
        for sequence in &work.sequences {
            let inputs: Option<Vec<TokenId>> =
                work.input_ids[sequence.rows.clone()].iter().map(|id| self.resolve(*id)).collect();
            // What follows a bad row is bad, too.
            let is_failed = self.asked[&sequence.id].fail_at.is_some_and(|row| row < sequence.context_len);
            let inputs = inputs.filter(|_| !is_failed);
            for (i, row) in sequence.rows.clone().enumerate() {
                let position = [0, n, 2 * n].map(|axis| work.positions[axis + row]);
                let embed = work.image_embeds[row].map(|at| self.device.arena[&at]);
                let content = inputs.as_ref().map(|inputs| (inputs[i], position, embed));
                self.device.slots.insert(work.slot_mapping[row], content);
            }
            let token = inputs.is_some().then(|| self.check_and_sample(sequence)).flatten();
            if sequence.samples {
                tokens.push(token);
            }
            results.push(match inputs {
                Some(_) => Ok(token.map(|token_id| TokenOutput { token_id, logprob: None, logprobs: None })),
                None => Err(RequestError::new("no_usable_logits", "NaN").into()),
            });
        }
        self.device.last_tokens = tokens;
        StepResults { step: work.step, sequences: results }
    }

    fn encode(&mut self, work: &Work) {
        let Some(batch) = &work.encode else { return };
        let mut at = batch.rows.start;
        for image in &batch.images {
            assert!(image.pixels.bytes().iter().all(|&byte| byte == image.hash.0[0]), "the picture's own pixels");
            self.device.encoded.push(image.hash);
            for row in 0..picture_span::num_embeds(image.grid_thw, 2) {
                self.device.arena.insert(at, (image.hash, row));
                at += 1;
            }
        }
        assert_eq!(at, batch.rows.end);
        assert!(at <= self.scheduler.limits.encoder_rows);
    }

    fn resolve(&self, id: InputId) -> Option<TokenId> {
        match id {
            InputId::Known(token) => Some(token),
            InputId::Sampled(n) => self.device.last_tokens[n],
        }
    }

    /// Each row up to the step's last must be what the test knows it to be.
    fn check_and_sample(&mut self, sequence: &SequenceRows) -> Option<TokenId> {
        let asked = &self.asked[&sequence.id];
        assert_eq!(sequence.samples, sequence.context_len == asked.rows.len(), "{sequence:?}");
        for (row, want) in asked.rows.iter().take(sequence.context_len).enumerate() {
            let slot = self.slot(&sequence.block_table, row);
            assert_eq!(self.device.slots.get(&slot), Some(&Some(*want)), "row {row} of {:?}", sequence.id);
        }
        sequence.samples.then(|| {
            let asked = self.asked.get_mut(&sequence.id).unwrap();
            let len = asked.rows.len();
            let index = len - asked.prompt_len;
            assert!(index < asked.max_tokens, "a step for a token that can't be had");
            let token = if asked.stop_at == Some(index) { STOP } else { token_after(len) };
            asked.rows.push((token, [i32::try_from(len).unwrap() + asked.delta; 3], None));
            token
        })
    }

    pub(super) fn usage(&self, id: SeqId) -> (FinishReason, Usage) {
        match self.asked[&id].ends[..] {
            [Ended::Finished(reason, usage)] => (reason, usage),
            ref other => panic!("{other:?}"),
        }
    }

    pub(super) fn prefill(&self, id: SeqId) -> &[usize] {
        &self.asked[&id].prefill
    }

    pub(super) fn num_computed_rows(&self) -> usize {
        self.device.computed_rows
    }

    /// The first byte of the hash of each picture that was encoded.
    pub(super) fn encoded(&self) -> Vec<u8> {
        self.device.encoded.iter().map(|hash| hash.0[0]).collect()
    }

    pub(super) fn lent_pixels(&self, id: SeqId) -> Vec<bool> {
        self.asked[&id].lent.iter().map(|pixels| pixels.strong_count() > 0).collect()
    }

    /// What holds when there is nothing left to do. `is_cut_off`: the request was cancelled or failed.
    pub(super) fn check_end(&self, is_cut_off: impl Fn(SeqId) -> bool) {
        let Scheduler { running, waiting, in_flight, blocks, encoder, limits, .. } = &self.scheduler;
        assert!(running.is_empty() && waiting.is_empty() && in_flight.is_idle() && in_flight.ended().is_empty());
        assert_eq!((blocks.num_available(), blocks.num_owned()), (limits.num_blocks, 0));
        encoder.check([]);
        for (&id, asked) in &self.asked {
            assert_eq!((asked.ends.len(), asked.num_left_queue), (1, 1), "{id:?}");
            assert!(asked.lent.iter().all(|pixels| pixels.strong_count() == 0));
            let n = asked.stop_at.map_or(asked.max_tokens, |stop| (stop + 1).min(asked.max_tokens));
            let expected = (0..n).map(|i| match asked.stop_at == Some(i) {
                true => STOP,
                false => token_after(asked.prompt_len + i),
            });
            let expected: Vec<TokenId> = expected.collect();
            if is_cut_off(id) {
                assert!(expected.starts_with(&asked.tokens), "{id:?}: {:?}", asked.tokens);
                continue;
            }
            assert_eq!(asked.tokens, expected, "{id:?}");
            let stops = asked.tokens.last() == Some(&STOP);
            let reason = if stops { FinishReason::Stop } else { FinishReason::Length };
            assert_eq!(self.usage(id).0, reason);
        }
    }

    /// Rows of all prompts and answers.
    pub(super) fn num_rows(&self) -> usize {
        self.asked.values().map(|asked| asked.prompt_len + asked.max_tokens).sum()
    }
}
