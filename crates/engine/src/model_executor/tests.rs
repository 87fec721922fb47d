//! Random workloads on the small model: what runs beside a request changes no bit of its answer.

#[path = "../../tests/support/prompts.rs"]
mod prompts;

use std::cell::RefCell;
use std::collections::HashMap;

use foveal_checkpoint::{GenerationConfig, ModelConfig, ModelFolder, WeightSource};
use foveal_llm::GenerationDefaults;
use foveal_testkit::fixtures_dir;
use foveal_types::{Delta, PreparedRequest, SamplingParams, TokenOutput};
use foveal_vision::Normalisation;
use prompts::{Piece, prompt};
use proptest::prelude::*;
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

/// What a caller got, and whether it is all.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<TokenOutput>,
    is_cancelled: bool,
}

impl Rig {
    fn load() -> Self {
        let folder = ModelFolder::open(fixtures_dir().join("tiny")).unwrap();
        let config = ModelConfig::load(&folder).unwrap();
        let defaults = GenerationDefaults::new(&GenerationConfig::load(&folder, &config.text).unwrap()).unwrap();
        let builder = Engine::builder()
            .model(config, WeightSource::open(&folder).unwrap())
            .generation_defaults(defaults.clone())
            .normalisation(Normalisation { mean: [0.5; 3], std: [0.5; 3] })
            .device(Device::cpu(1).unwrap())
            .max_model_len(256)
            .max_num_batched_tokens(256)
            .max_patches(96)
            .encoder_cache_bytes(1 << 20)
            .num_blocks(16);
        let (executor, options) = builder.load().unwrap();
        Self { executor, limits: options.limits, defaults }
    }

    fn play(
        &mut self,
        requests: &[PreparedRequest],
        arrivals: &[Arrival],
        options: Options,
    ) -> (Vec<Answer>, EngineStats) {
        let limits = Limits {
            max_num_batched_tokens: options.chunk,
            max_num_seqs: options.max_num_seqs.min(options.chunk),
            num_blocks: options.num_blocks,
            encoder_rows: options.encoder_rows,
            ..self.limits
        };
        // A workload that failed may have left something.
        self.executor.results.clear();
        self.executor.states.clear();
        let mut scheduler = Scheduler::new(limits, self.defaults.clone(), options.prefix_caching);
        let mut answers = vec![None; arrivals.len()];
        let mut told = vec![Answer::default(); arrivals.len()];
        // By round, in order.
        let mut due: Vec<(usize, Event)> = Vec::new();
        let mut round = 0;
        for (id, arrival) in (0..).map(SeqId).zip(arrivals) {
            round += arrival.pause;
            let request = requests[arrival.prompt].clone();
            limits.check(&request).unwrap();
            due.push((round, Event::Arrived(id, Box::new(request))));
            due.extend(arrival.cancelled_after.map(|rounds| (round + rounds, Event::Cancelled(id))));
        }
        due.sort_by_key(|(round, _)| *round);
        let (mut round, mut num_in_flight, mut events) = (0, 0, Vec::new());
        while answers.iter().any(Option::is_none) || num_in_flight > 0 {
            events.extend(due.extract_if(.., |(at, _)| *at <= round).map(|(_, event)| event));
            round += 1;
            assert!(round < 3000, "somebody starves");
            let plan = scheduler.step(std::mem::take(&mut events));
            for news in plan.news {
                match news {
                    News::Delta(id, Delta::Token(token)) => told[id.0 as usize].tokens.push(token),
                    News::Delta(id, Delta::Finished { reason, .. }) => {
                        let answer = &mut told[id.0 as usize];
                        answer.is_cancelled = reason == foveal_types::FinishReason::Cancelled;
                        assert!(answers[id.0 as usize].replace(answer.clone()).is_none(), "ended twice");
                    }
                    News::Failed(id, error) => panic!("{id:?}: {error}"),
                    _ => {}
                }
            }
            plan.ended.into_iter().for_each(|id| self.executor.forget(id));
            let has_work = plan.work.is_some();
            if let Some(work) = plan.work {
                self.executor.submit(work).unwrap();
                num_in_flight += 1;
            }
            if num_in_flight == options.depth || (!has_work && num_in_flight > 0) {
                events.push(Event::Completed(self.executor.wait().unwrap()));
                num_in_flight -= 1;
            }
        }
        scheduler.step(events).ended.into_iter().for_each(|id| self.executor.forget(id));
        let stats = scheduler.stats();
        assert_eq!((stats.running, stats.waiting, stats.kv_pages_used), (0, 0, 0));
        assert!(self.executor.states.is_empty(), "every sequence is forgotten");
        (answers.into_iter().flatten().collect(), stats)
    }
}

/// Prompts that begin alike, share pictures or don't, and are answered in all the ways there are.
fn requests() -> Vec<PreparedRequest> {
    let open = [999, 434, 387, 198, 1007];
    let ask = [1008, 341, 260, 280, 13, 1000, 198, 999, 64, 82, 447, 449, 198];
    let long: Vec<u32> = (0..40).map(|i| 300 + i * 7 % 90).collect();
    let text = Piece::Text;
    // Close to the end of a page, so that those who start together are soon short of pages together.
    let brim: Vec<Vec<u32>> = (0..3).map(|n| (0..30).map(|i| 200 + 60 * n + i * 11 % 60).collect()).collect();
    let prompts: [&[Piece<'_>]; 11] = [
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
            max_tokens: Some(if i < 8 { 6 + 4 * (i % 4) } else { 36 }),
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

fn any_arrivals(num_prompts: usize) -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (0..num_prompts, 0_usize..4, proptest::option::weighted(0.2, 0_usize..25));
    let arrival = arrival.prop_map(|(prompt, pause, cancelled_after)| Arrival { prompt, pause, cancelled_after });
    proptest::collection::vec(arrival, 2..8)
}

#[test]
fn what_runs_beside_a_request_changes_no_bit_of_its_answer() {
    let mut rig = Rig::load();
    let requests = requests();
    let alone =
        Options { chunk: 256, max_num_seqs: 1, num_blocks: 16, encoder_rows: 24, prefix_caching: false, depth: 1 };
    let once = |prompt| [Arrival { prompt, pause: 0, cancelled_after: None }];
    let expected: HashMap<usize, Answer> =
        (0..requests.len()).map(|i| (i, rig.play(&requests, &once(i), alone).0.remove(0))).collect();
    let rig = RefCell::new(rig);
    let total = RefCell::new(EngineStats::default());
    let mut runner = TestRunner::new(ProptestConfig::with_cases(NUM_WORKLOADS));
    let result = runner.run(&(any_arrivals(requests.len()), any_options()), |(arrivals, options)| {
        let (answers, stats) = rig.borrow_mut().play(&requests, &arrivals, options);
        for (arrival, answer) in arrivals.iter().zip(answers) {
            let whole = &expected[&arrival.prompt];
            // `PartialEq` of floats: equal log-probabilities, not close ones.
            if answer.is_cancelled {
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
    assert!(total.preemptions > 20 && total.prefix_hit_tokens > 1000 && total.encoder_hits > 20, "{total:?}");
}
