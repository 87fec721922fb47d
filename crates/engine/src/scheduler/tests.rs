//! The state machine against a model of a cache that remembers what every slot holds.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::picture_span::num_embeds;
use super::testing::{limits, picture, request, with_pictures};
use super::*;
use foveal_types::{BlockId, ContentHash, PreparedImage, SamplingParams, SlotId, TokenId, Usage};

/// What a row is: its token, its positions, and the picture's row under it.
type Row = (TokenId, [i32; 3], Option<(ContentHash, usize)>);

/// A device that computes nothing but checks everything: each step must find every earlier row of its sequence in
/// the slots that its block table names, and every embedding encoded.
#[derive(Default)]
struct FakeDevice {
    slots: HashMap<SlotId, Row>,
    embeds: Vec<(ContentHash, usize)>,
    encoded: Vec<ContentHash>,
    computed_rows: usize,
}

impl FakeDevice {
    fn run(&mut self, work: &Work, limits: &Limits, history: &HashMap<SeqId, Vec<Row>>) {
        if !work.encode.is_empty() {
            self.embeds.clear();
            let mut patches = 0;
            for image in &work.encode {
                patches += image.grid_thw.iter().product::<u32>() as usize;
                self.encoded.push(image.hash);
                self.embeds.extend((0..num_embeds(image.grid_thw, 2)).map(|row| (image.hash, row)));
            }
            assert!(patches <= limits.max_patches);
        }
        let n = work.input_ids.len();
        assert!(n > 0 && n <= limits.max_num_batched_tokens);
        assert_eq!((work.positions.len(), work.slot_mapping.len(), work.image_embeds.len()), (3 * n, n, n));
        for row in 0..n {
            let embed = work.image_embeds[row].map(|at| self.embeds[at]);
            let position = [0, n, 2 * n].map(|axis| work.positions[axis + row]);
            self.slots.insert(work.slot_mapping[row], (work.input_ids[row], position, embed));
        }
        self.computed_rows += n;
        for sequence in &work.sequences {
            let expected = &history[&sequence.id];
            assert_eq!(sequence.samples, sequence.context_len == expected.len());
            for (row, want) in expected.iter().take(sequence.context_len).enumerate() {
                let block = sequence.block_table[row / limits.page];
                let slot = SlotId(i64::from(block.0) * limits.page as i64 + (row % limits.page) as i64);
                assert_eq!(self.slots.get(&slot), Some(want), "row {row}");
            }
        }
    }
}

/// A scheduler with its device and what a caller would have seen.
struct Machine {
    scheduler: Scheduler,
    device: FakeDevice,
    history: HashMap<SeqId, Vec<Row>>,
    deltas: HashMap<SeqId, i32>,
    news: Vec<News>,
    events: Vec<Event>,
    next: u64,
}

impl Machine {
    fn new(limits: Limits) -> Self {
        let scheduler = Scheduler::new(limits, model(), true);
        Self {
            scheduler,
            device: FakeDevice::default(),
            history: HashMap::new(),
            deltas: HashMap::new(),
            news: Vec::new(),
            events: Vec::new(),
            next: 0,
        }
    }

    fn send(&mut self, request: PreparedRequest) -> SeqId {
        let id = SeqId(self.next);
        self.next += 1;
        self.scheduler.limits.check(&request).unwrap();
        let n = request.input_ids.len();
        self.deltas.insert(id, request.rope_delta);
        let mut rows: Vec<Row> = (0..n)
            .map(|row| (request.input_ids[row], [0, n, 2 * n].map(|axis| request.positions[axis + row]), None))
            .collect();
        let placeholders: Vec<usize> = request.image_token_ranges.iter().cloned().flatten().collect();
        let embeds = request.images.iter().flat_map(|i| (0..num_embeds(i.grid_thw, 2)).map(|e| (i.hash, e)));
        for (row, embed) in placeholders.into_iter().zip(embeds) {
            rows[row].2 = Some(embed);
        }
        self.history.insert(id, rows);
        self.events.push(Event::Arrived(id, Box::new(request)));
        id
    }

    /// One step; the answer's token at each place is `token(place)`. `false` when there was nothing to do.
    fn step(&mut self, token: impl Fn(usize) -> u32) -> bool {
        let plan = self.scheduler.step(std::mem::take(&mut self.events));
        self.news.extend(plan.news);
        let owned = self.owned();
        assert_eq!(owned.len() + self.scheduler.blocks.num_free(), self.scheduler.limits.num_blocks, "a page is lost");
        let Some(work) = plan.work else { return false };
        self.device.run(&work, &self.scheduler.limits, &self.history);
        for sequence in &work.sequences {
            let sampled = sequence.samples.then(|| {
                let index = sequence.context_len;
                let id = TokenId(token(index));
                let position = [i32::try_from(index).unwrap() + self.deltas[&sequence.id]; 3];
                self.history.get_mut(&sequence.id).unwrap().push((id, position, None));
                TokenOutput { token_id: id, logprob: None, logprobs: None }
            });
            self.events.push(Event::Computed(sequence.id, sampled));
        }
        true
    }

    fn owned(&self) -> Vec<BlockId> {
        let running = self.scheduler.running.as_ref().map(|sequence| &sequence.history);
        let histories = running.into_iter().chain(&self.scheduler.retained);
        histories.flat_map(|history| history.block_table.clone()).collect()
    }

    fn run(&mut self) {
        while self.step(|_| 5) {}
    }

    fn usage(&self, id: SeqId) -> (FinishReason, Usage) {
        self.news
            .iter()
            .find_map(|news| match news {
                News::Delta(seq, Delta::Finished { reason, usage }) if *seq == id => Some((*reason, *usage)),
                _ => None,
            })
            .unwrap()
    }
}

/// A model that stops at token 1000.
fn model() -> GenerationDefaults {
    GenerationDefaults { stop_token_ids: vec![TokenId(1000)], ..GenerationDefaults::default() }
}

fn answer(request: PreparedRequest, max_tokens: usize) -> PreparedRequest {
    PreparedRequest {
        sampling: SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() },
        ..request
    }
}

#[test]
fn a_prompt_runs_in_chunks_and_its_answer_ends_at_the_stop_token() {
    let mut machine = Machine::new(limits());
    let id = machine.send(request(&[3; 40]));
    while machine.step(|index| if index == 43 { 1000 } else { 5 }) {}
    let prefill: Vec<usize> = machine
        .news
        .iter()
        .filter_map(|news| match news {
            News::Delta(_, Delta::Prefill { done, total: 40 }) => Some(*done),
            _ => None,
        })
        .collect();
    assert_eq!(prefill, [0, 16, 32, 40]);
    let usage = Usage { prompt_tokens: 40, image_tokens: 0, cached_tokens: 0, completion_tokens: 4 };
    assert_eq!(machine.usage(id), (FinishReason::Stop, usage));
    assert_eq!(machine.device.computed_rows, 43, "the stop token itself is never computed");
}

#[test]
fn an_answer_ends_with_the_room_for_it() {
    let mut machine = Machine::new(Limits { max_model_len: 50, ..limits() });
    let id = machine.send(request(&[3; 40]));
    machine.run();
    assert_eq!(machine.usage(id).0, FinishReason::Length);
    assert_eq!(machine.usage(id).1.completion_tokens, 10);
    let mut machine = Machine::new(Limits { num_blocks: 2, ..limits() });
    let id = machine.send(request(&[3; 40]));
    machine.run();
    assert_eq!(machine.usage(id).1.completion_tokens, 24);
}

#[test]
fn an_answer_ends_where_the_positions_end() {
    // A slow video's positions run 7 ahead of its tokens.
    let slow = |len: usize| {
        let mut request = request(&vec![3; len]);
        let last = i32::try_from(len).unwrap() + 6;
        (0..3).for_each(|axis| request.positions[axis * len + len - 1] = last);
        PreparedRequest { rope_delta: 7, ..request }
    };
    let mut machine = Machine::new(Limits { max_model_len: 50, ..limits() });
    let id = machine.send(slow(40));
    machine.run();
    assert_eq!(machine.usage(id).0, FinishReason::Length);
    assert_eq!(machine.usage(id).1.completion_tokens, 3);
    assert!(machine.history[&id].iter().all(|(_, position, _)| position.iter().all(|&p| p < 50)));
}

#[test]
fn pixels_go_back_as_soon_as_they_are_encoded() {
    let mut machine = Machine::new(limits());
    let pictures: Vec<_> = (0..4_u8).map(|i| (1 + 9 * usize::from(i), picture([1, 4, 8], i))).collect();
    let request = answer(with_pictures(40, &pictures), 30);
    let lent: Vec<_> = pictures.into_iter().map(|(_, image)| Arc::downgrade(&image.pixels)).collect();
    let held = || lent.iter().map(|pixels| pixels.strong_count() > 0).collect::<Vec<_>>();
    machine.send(request);
    assert!(machine.step(|_| 5));
    assert_eq!(held(), [false, false, true, true], "the first batch has run");
    while machine.device.computed_rows < 40 {
        machine.step(|_| 5);
    }
    assert_eq!(held(), [false; 4], "while the answer is written");
    // A request that is cut off before its pictures were encoded leaves nothing lent, either.
    let cut_off = with_pictures(60, &[(40, picture([1, 4, 8], 9))]);
    let pixels = Arc::downgrade(&cut_off.images[0].pixels);
    machine.run();
    let id = machine.send(cut_off);
    assert!(machine.step(|_| 5));
    assert_eq!(pixels.strong_count(), 1);
    machine.events.push(Event::Cancelled(id));
    machine.run();
    assert!(machine.scheduler.retained.is_some());
    assert_eq!(pixels.strong_count(), 0);
}

#[test]
fn stop_tokens_of_the_request_and_ignored_ones() {
    let mut machine = Machine::new(limits());
    let own = SamplingParams { stop_token_ids: vec![TokenId(5)], ..SamplingParams::default() };
    let id = machine.send(PreparedRequest { sampling: own, ..request(&[3; 4]) });
    machine.run();
    assert_eq!(machine.usage(id).1.completion_tokens, 1);
    let ignore = SamplingParams { ignore_eos: true, max_tokens: Some(6), ..SamplingParams::default() };
    let id = machine.send(PreparedRequest { sampling: ignore, ..request(&[3; 4]) });
    while machine.step(|_| 1000) {}
    assert_eq!((machine.usage(id).0, machine.usage(id).1.completion_tokens), (FinishReason::Length, 6));
}

#[test]
fn the_next_turn_of_a_chat_takes_over_the_pages_and_the_picture() {
    let mut machine = Machine::new(limits());
    let first = answer(with_pictures(30, &[(4, picture([1, 4, 8], 1))]), 5);
    let id = machine.send(first.clone());
    machine.run();
    assert_eq!(machine.usage(id).1.image_tokens, 8);
    // The next turn: the first one, its answer, and a new question.
    let mut second = answer(with_pictures(60, &[(4, picture([1, 4, 8], 1))]), 5);
    second.input_ids[30..35].fill(TokenId(5));
    let id = machine.send(second.clone());
    machine.run();
    // The answer's last token was never computed.
    assert_eq!(machine.usage(id).1.cached_tokens, 34);
    assert_eq!(machine.device.encoded.len(), 1, "the picture is not encoded again");
    // Another picture in its place: only what stands before it is common.
    let mut third = second.clone();
    third.images[0] = PreparedImage { placeholder_start: 4, ..picture([1, 4, 8], 2) };
    let id = machine.send(third);
    machine.run();
    assert_eq!(machine.usage(id).1.cached_tokens, 4);
    assert_eq!(machine.device.encoded.len(), 2);
    // The same request again: one row is computed anew.
    let id = machine.send(answer(request(&[3; 20]), 1));
    machine.run();
    assert_eq!(machine.usage(id).1.cached_tokens, 0);
    let id = machine.send(answer(request(&[3; 20]), 1));
    machine.run();
    assert_eq!(machine.usage(id).1.cached_tokens, 19);
}

#[test]
fn pictures_beyond_the_workspace_are_encoded_in_turns() {
    // 64 patches at once, 32 for each picture: two batches. A chunk (16 rows) never mixes both.
    let pictures: Vec<_> = (0..4_u8).map(|i| (1 + 9 * usize::from(i), picture([1, 4, 8], i))).collect();
    let mut machine = Machine::new(limits());
    machine.send(answer(with_pictures(40, &pictures), 3));
    machine.run();
    let hashes: Vec<u8> = machine.device.encoded.iter().map(|hash| hash.0[0]).collect();
    assert_eq!(hashes, [0, 1, 2, 3]);
}

#[test]
fn cancelling_frees_the_place_at_once() {
    let mut machine = Machine::new(limits());
    let running = machine.send(request(&[3; 40]));
    let waiting = machine.send(request(&[4; 10]));
    let last = machine.send(answer(request(&[6; 10]), 2));
    assert!(machine.step(|_| 5));
    machine.events.push(Event::Cancelled(running));
    machine.events.push(Event::Cancelled(waiting));
    machine.run();
    assert_eq!(machine.usage(running).0, FinishReason::Cancelled);
    assert!(machine.news.contains(&News::LeftQueue(waiting)));
    assert_eq!(machine.usage(last).1.completion_tokens, 2);
    assert!(!machine.news.iter().any(|news| matches!(news, News::Delta(id, _) if *id == waiting)));
}

#[test]
fn a_failed_sequence_leaves_nothing_behind() {
    let mut machine = Machine::new(limits());
    let bad = machine.send(request(&[3; 10]));
    let good = machine.send(answer(request(&[3; 10]), 2));
    assert!(machine.step(|_| 5));
    let error: Error = foveal_types::DeviceFailure::new("NaN").into();
    machine.events = vec![Event::Failed(bad, error.clone())];
    machine.run();
    assert!(machine.news.contains(&News::Failed(bad, error)));
    assert_eq!(machine.usage(good).1.cached_tokens, 0, "its pages may hold NaN");
    assert_eq!(machine.usage(good).1.completion_tokens, 2);
}

/// A prompt with pictures between stretches of text, from a small alphabet so that prefixes meet.
fn any_request() -> impl Strategy<Value = PreparedRequest> {
    let part = (1_usize..12, proptest::option::of((1_u32..3, 1_u32..5, 0_u8..2)));
    (proptest::collection::vec(part, 1..5), 0_usize..2, 1_usize..20).prop_map(|(parts, tail, max_tokens)| {
        let (mut len, mut pictures) = (0, Vec::new());
        for (text, image) in parts {
            len += text;
            if let Some((t, w, hash)) = image {
                pictures.push((len, picture([t, 2, 2 * w], hash)));
                len += (t * w) as usize;
            }
        }
        answer(with_pictures(len + 1 + tail, &pictures), max_tokens)
    })
}

proptest! {
    /// Whatever arrives and leaves, in whatever chunks: each step finds its whole past in the cache, no page is lost,
    /// and every request that is not cancelled gets its whole answer.
    #[test]
    fn every_step_finds_its_past(
        requests in proptest::collection::vec((any_request(), 0_usize..30, proptest::bool::weighted(0.2)), 1..8),
        chunk in 1_usize..40,
        max_patches in 32_usize..64,
    ) {
        let mut machine = Machine::new(Limits { max_num_batched_tokens: chunk, max_patches, ..limits() });
        let mut expected = Vec::new();
        for (request, steps, is_cancelled) in requests {
            let max_tokens = request.sampling.max_tokens;
            let id = machine.send(request);
            for _ in 0..steps {
                machine.step(|_| 7);
            }
            if is_cancelled {
                machine.events.push(Event::Cancelled(id));
            } else {
                expected.push((id, max_tokens));
            }
        }
        while machine.step(|_| 7) {}
        for (id, max_tokens) in expected {
            prop_assert_eq!(Some(machine.usage(id).1.completion_tokens), max_tokens);
        }
        prop_assert!(machine.scheduler.running.is_none() && machine.scheduler.waiting.is_empty());
    }
}
