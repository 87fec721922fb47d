//! Random workloads on the small model: what runs beside a request changes no bit of its answer.

#[path = "../../tests/support/prompts.rs"]
mod prompts;

use std::cell::RefCell;

use foveal_checkpoint::{GenerationConfig, ModelConfig, ModelFolder, WeightSource};
use foveal_llm::GenerationDefaults;
use foveal_testkit::{fixtures_dir, gpu};
use foveal_types::{Delta, Error, FinishReason, PreparedRequest, SamplingParams, TokenOutput};
use foveal_vision::Normalisation;
use prompts::{Piece, prompt};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::scheduler::{Event, Limits, News, Scheduler};
use crate::{Engine, EngineStats};

/// Workloads: enough for each of preemption, reuse and cancellation to meet the others.
const NUM_WORKLOADS: u32 = 200;

/// The small model, loaded once: each workload has a scheduler of its own, and finds memory as the last one left it.
struct Rig {
    executor: ModelExecutor,
    limits: Limits,
    defaults: GenerationDefaults,
}

/// One request of a workload.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    /// Which of the prompts.
    prompt: usize,
    /// Steps after the one before it.
    pause: usize,
    cancelled_after: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Options {
    chunk: usize,
    max_num_seqs: usize,
    num_blocks: usize,
    encoder_rows: usize,
    prefix_caching: bool,
    depth: usize,
}

/// What a caller got.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<TokenOutput>,
    end: Option<Result<FinishReason, Error>>,
}

impl Rig {
    fn load() -> Self {
        Self::load_on(Device::cpu(1).unwrap(), false)
    }

    fn load_on(device: Device, enforce_eager: bool) -> Self {
        let folder = ModelFolder::open(fixtures_dir().join("tiny")).unwrap();
        let config = ModelConfig::load(&folder).unwrap();
        let defaults = GenerationDefaults::new(&GenerationConfig::load(&folder, &config.text).unwrap()).unwrap();
        let builder = Engine::builder()
            .model(config, WeightSource::open(&folder).unwrap())
            .generation_defaults(defaults.clone())
            .normalisation(Normalisation { mean: [0.5; 3], std: [0.5; 3] })
            .device(device)
            .enforce_eager(enforce_eager)
            .max_model_len(256)
            .max_num_batched_tokens(256)
            .max_patches(96)
            .encoder_cache_bytes(1 << 20)
            .num_blocks(16);
        let (executor, options) = builder.load().unwrap();
        Self { executor, limits: options.limits, defaults }
    }

    /// Runs what `due` says from which round on until every request has ended.
    fn play(&mut self, mut due: Vec<(usize, Event)>, options: Options) -> (Vec<Answer>, EngineStats) {
        // A workload that failed may have left something.
        self.executor.in_flight.clear();
        self.executor.states.clear();
        let scheduler = Scheduler::new(options.limits(self.limits), self.defaults.clone(), options.prefix_caching);
        let num_requests = due.iter().filter(|(_, event)| matches!(event, Event::Arrived(..))).count();
        let mut play = Play {
            scheduler,
            executor: &mut self.executor,
            answers: vec![Answer::default(); num_requests],
            events: Vec::new(),
            num_in_flight: 0,
        };
        for round in 0.. {
            assert!(round < 3000, "somebody starves");
            play.events.extend(due.extract_if(.., |(at, _)| *at <= round).map(|(_, event)| event));
            if !play.round(options.depth) && due.is_empty() {
                break;
            }
        }
        let (answers, stats) = (play.answers, play.scheduler.stats());
        assert!(answers.iter().all(|answer| answer.end.is_some()));
        assert_eq!((stats.running, stats.waiting, stats.kv_pages_used), (0, 0, 0));
        assert!(self.executor.states.is_empty(), "every sequence is forgotten");
        (answers, stats)
    }
}

impl Options {
    fn limits(&self, most: Limits) -> Limits {
        Limits {
            max_num_batched_tokens: self.chunk,
            max_num_seqs: self.max_num_seqs,
            num_blocks: self.num_blocks,
            encoder_rows: self.encoder_rows,
            ..most
        }
    }
}

/// The worker's loop, round by round.
struct Play<'a> {
    scheduler: Scheduler,
    executor: &'a mut ModelExecutor,
    answers: Vec<Answer>,
    events: Vec<Event>,
    num_in_flight: usize,
}

impl Play<'_> {
    /// `false` when there was nothing to do.
    fn round(&mut self, depth: usize) -> bool {
        let plan = self.scheduler.step(std::mem::take(&mut self.events));
        plan.news.into_iter().for_each(|news| self.hear(news));
        plan.ended.into_iter().for_each(|id| self.executor.forget(id));
        let has_work = plan.work.is_some();
        if let Some(work) = plan.work {
            self.executor.submit(work).unwrap();
            self.num_in_flight += 1;
        }
        if self.num_in_flight == depth || (!has_work && self.num_in_flight > 0) {
            self.events.push(Event::Completed(self.executor.wait().unwrap()));
            self.num_in_flight -= 1;
            return true;
        }
        has_work
    }

    fn hear(&mut self, news: News) {
        let (id, end) = match news {
            News::Delta(id, Delta::Token(token)) => return self.answers[id.0 as usize].tokens.push(token),
            News::Delta(id, Delta::Finished { reason, .. }) => (id, Ok(reason)),
            News::Failed(id, error) => (id, Err(error)),
            _ => return,
        };
        assert!(self.answers[id.0 as usize].end.replace(end).is_none(), "ended twice");
    }
}

/// When each request comes, and its caller goes.
fn due(requests: &[PreparedRequest], arrivals: &[Arrival]) -> Vec<(usize, Event)> {
    let (mut round, mut due) = (0, Vec::new());
    for (id, arrival) in (0..).map(SeqId).zip(arrivals) {
        round += arrival.pause;
        due.push((round, Event::Arrived(id, Box::new(requests[arrival.prompt].clone()))));
        due.extend(arrival.cancelled_after.map(|rounds| (round + rounds, Event::Cancelled(id))));
    }
    due
}

/// Prompts of all sorts; three more come behind them.
const NUM_MIXED: usize = 8;

/// Prompts that begin alike, share pictures or don't, and are answered in all the ways there are.
fn requests() -> Vec<PreparedRequest> {
    let open = [999, 434, 387, 198, 1007];
    let ask = [1008, 341, 260, 280, 13, 1000, 198, 999, 64, 82, 447, 449, 198];
    let long: Vec<u32> = (0..40).map(|i| 300 + i * 7 % 90).collect();
    let text = Piece::Text;
    // Close to the end of a page, so that those who start together are soon short of pages together.
    let brim: Vec<Vec<u32>> = (0..3).map(|n| (0..30).map(|i| 200 + 60 * n + i * 11 % 60).collect()).collect();
    let prompts: [&[Piece<'_>]; NUM_MIXED + 3] = [
        &[text(&long), text(&ask)],
        &[text(&long), text(&ask[..9])],
        &[text(&long), Piece::Picture([1, 4, 4], 1), text(&ask)],
        &[text(&open), Piece::Picture([1, 8, 8], 2), text(&long), text(&ask)],
        &[text(&open), Piece::Picture([1, 8, 8], 2), text(&long), Piece::Picture([1, 4, 4], 1), text(&ask[..5])],
        &[text(&open), Piece::Picture([1, 8, 8], 3), text(&long), text(&ask)],
        &[text(&open), Piece::Picture([1, 4, 6], 4), text(&open), Piece::Picture([1, 8, 12], 5), text(&ask)],
        &[text(&ask)],
        &[text(&brim[0])],
        &[text(&brim[1])],
        &[text(&brim[2])],
    ];
    let ways = [
        SamplingParams::default(),
        SamplingParams { temperature: 1.5, seed: Some(7), top_k: 40, ..SamplingParams::default() },
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.4, ..SamplingParams::default() },
    ];
    let request = |(i, pieces): (usize, &&[Piece<'_>])| {
        let way = ways[i % ways.len()].clone();
        // Every other answer runs to its length; the others stop as the model likes.
        let sampling = SamplingParams {
            max_tokens: Some(if i < NUM_MIXED { 6 + 4 * (i % 4) } else { 36 }),
            logprobs: Some(3),
            ignore_eos: i % 2 == 0,
            ..way
        };
        PreparedRequest { sampling, ..prompt(pieces) }
    };
    prompts.iter().enumerate().map(request).collect()
}

fn any_options() -> impl Strategy<Value = Options> {
    let depth = 1_usize..3;
    (1_usize..80, 1_usize..9, 5_usize..9, 24_usize..40, proptest::bool::weighted(0.8), depth).prop_map(
        |(chunk, max_num_seqs, num_blocks, encoder_rows, prefix_caching, depth)| Options {
            chunk: chunk.max(max_num_seqs),
            max_num_seqs,
            num_blocks,
            encoder_rows,
            prefix_caching,
            depth,
        },
    )
}

fn any_arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let prompt = prop_oneof![0..NUM_MIXED, NUM_MIXED..NUM_MIXED + 3];
    let arrival = (prompt, 0_usize..4, proptest::option::weighted(0.2, 0_usize..25));
    let arrival = arrival.prop_map(|(prompt, pause, cancelled_after)| Arrival { prompt, pause, cancelled_after });
    proptest::collection::vec(arrival, 2..9)
}

/// Each request by itself, in one piece, with nothing to share.
const ALONE: Options =
    Options { chunk: 256, max_num_seqs: 1, num_blocks: 16, encoder_rows: 24, prefix_caching: false, depth: 1 };

fn alone(rig: &mut Rig, request: &PreparedRequest) -> Answer {
    rig.play(vec![(0, Event::Arrived(SeqId(0), Box::new(request.clone())))], ALONE).0.remove(0)
}

#[test]
fn what_runs_beside_a_request_changes_no_bit_of_its_answer() {
    let mut rig = Rig::load();
    let requests = requests();
    let expected: Vec<Answer> = requests.iter().map(|request| alone(&mut rig, request)).collect();
    let rig = RefCell::new(rig);
    let total = RefCell::new(EngineStats::default());
    let mut runner = TestRunner::new(ProptestConfig::with_cases(NUM_WORKLOADS));
    let result = runner.run(&(any_arrivals(), any_options()), |(arrivals, options)| {
        let (answers, stats) = rig.borrow_mut().play(due(&requests, &arrivals), options);
        for (arrival, answer) in arrivals.iter().zip(answers) {
            let whole = &expected[arrival.prompt];
            // `PartialEq` of floats: equal log-probabilities, not close ones.
            if answer.end == Some(Ok(FinishReason::Cancelled)) {
                prop_assert!(whole.tokens.starts_with(&answer.tokens), "{:?}", arrival);
            } else {
                prop_assert_eq!(&answer, whole, "{:?}", arrival);
            }
        }
        let mut total = total.borrow_mut();
        total.preemptions += stats.preemptions;
        total.prefix_hit_tokens += stats.prefix_hit_tokens;
        total.encoder_hits += stats.encoder_hits;
        Ok(())
    });
    result.unwrap();
    let total = total.into_inner();
    println!("{total:?}");
    assert!(total.preemptions > 10 && total.prefix_hit_tokens > 1000 && total.encoder_hits > 10, "{total:?}");
}

/// How far apart a log-probability of the small model may be when it is computed twice: transformers' own bfloat16 is up to 0.26
/// off in a logit (`bf16_noise.json`), and each of the two may be.
const MAX_GAP: f32 = 2.0 * 0.27;

/// A greedy answer against what the request gives alone: alike up to a step whose two best are close, and from there on against
/// what it gives alone behind the token that was chosen.
fn check_within_noise(rig: &mut Rig, request: &PreparedRequest, answer: &Answer) -> usize {
    let (mut request, mut tokens, mut num_partings) = (request.clone(), &answer.tokens[..], 0);
    loop {
        let whole = alone(rig, &request);
        let same = tokens.iter().zip(&whole.tokens).take_while(|(a, b)| a.token_id == b.token_id).count();
        for (a, b) in tokens.iter().zip(&whole.tokens).take(same) {
            assert!((a.logprob.unwrap() - b.logprob.unwrap()).abs() <= MAX_GAP, "{a:?}, alone {b:?}");
        }
        let (Some(parted), Some(alone)) = (tokens.get(same), whole.tokens.get(same)) else { return num_partings };
        let gap = alone.logprob.unwrap() - parted.logprob.unwrap();
        assert!(gap <= MAX_GAP, "{parted:?}, alone {alone:?}");
        num_partings += 1;
        // Alone, but with the answer so far as a part of the prompt.
        let n = request.input_ids.len();
        request.input_ids.extend(tokens[..=same].iter().map(|token| token.token_id));
        let more = same + 1;
        let axes = request.positions.chunks(n).map(<[i32]>::to_vec);
        let next = i32::try_from(n).unwrap() + request.rope_delta;
        let added = next..next + i32::try_from(more).unwrap();
        request.positions = axes.flat_map(|axis| axis.into_iter().chain(added.clone()).collect::<Vec<_>>()).collect();
        request.sampling.max_tokens = request.sampling.max_tokens.map(|max| max - more);
        tokens = &tokens[more..];
        if tokens.is_empty() {
            return num_partings;
        }
    }
}

/// On a GPU what runs beside a request moves its answer by rounding alone; whether steps are recorded moves nothing.
#[test]
fn recorded_steps_give_the_bits_of_eager_ones_and_answers_within_noise() {
    let Some(device) = gpu() else { return };
    let (mut recorded, mut eager) = (Rig::load_on(device.clone(), false), Rig::load_on(device, true));
    let requests = requests();
    let is_greedy =
        |i: usize| requests[i].sampling.temperature == 0.0 && requests[i].sampling.repetition_penalty == 1.0;
    let mut runner = TestRunner::deterministic();
    let (mut num_partings, mut num_checked) = (0, 0);
    for _ in 0..NUM_WORKLOADS {
        let workload = (any_arrivals(), any_options()).new_tree(&mut runner).unwrap().current();
        let (arrivals, options) = workload;
        let (answers, stats) = recorded.play(due(&requests, &arrivals), options);
        let (again, stats_again) = eager.play(due(&requests, &arrivals), options);
        assert_eq!(stats, stats_again);
        assert_eq!(answers, again, "{arrivals:?} {options:?}");
        for (arrival, answer) in arrivals.iter().zip(&answers) {
            if is_greedy(arrival.prompt) {
                num_partings += check_within_noise(&mut eager, &requests[arrival.prompt], answer);
                num_checked += answer.tokens.len();
            }
        }
    }
    let stats = recorded.executor.steps.stats();
    println!("{num_checked} tokens, {num_partings} partings; {stats:?}, {:.0} % padding", stats.waste() * 100.0);
    // Pictures of odd sizes are not recorded.
    assert!(stats.replays > 1000 && stats.eager_runs * 10 < stats.replays && stats.resets == 0, "{stats:?}");
    assert_eq!(eager.executor.steps.stats().replays, 0);
}

#[test]
fn who_is_refused_by_the_decoder_or_the_tower_fails_alone() {
    let mut rig = Rig::load();
    let [good, pictured] = [0, 3].map(|i| requests().swap_remove(i));
    let expected = [&good, &pictured].map(|request| alone(&mut rig, request));
    // The limits that requests pass first would refuse both of these.
    let mut unknown_token = good.clone();
    unknown_token.input_ids[45] = TokenId(1 << 20);
    let mut no_pixels = pictured.clone();
    no_pixels.images[0].pixels = std::sync::Arc::new(Vec::<u8>::new());
    no_pixels.images[0].hash.0[0] = 99;
    for (depth, chunk) in [(1, 16), (1, 256), (2, 16), (2, 256)] {
        let options = Options { chunk, max_num_seqs: 4, encoder_rows: 40, prefix_caching: true, depth, ..ALONE };
        let all = [&unknown_token, &good, &no_pixels, &pictured];
        // Some rounds apart: the pictures of one batch would fail together.
        let rounds = [0, 0, 2, 9];
        let arrivals = (0..).map(SeqId).zip(all).zip(rounds);
        let due = arrivals.map(|((id, request), round)| (round, Event::Arrived(id, Box::new(request.clone()))));
        let answers = rig.play(due.collect(), options).0;
        let code = |i: usize| match &answers[i].end {
            Some(Err(Error::Request(error))) => error.code,
            other => panic!("{other:?}"),
        };
        assert_eq!((code(0), code(2)), ("invalid_prompt", "invalid_image"));
        assert_eq!([&answers[1], &answers[3]], [&expected[0], &expected[1]], "chunks of {chunk}, depth {depth}");
    }
}
