//! What a token must not cost, by the device's counters. A test program of its own: they are the process's. The GPU's
//! halves say `skipped` without a GPU; with `FOVEAL_REQUIRE_GPU` set, they fail instead.

#[path = "support/gpu.rs"]
mod gpu;
#[path = "support/pipeline.rs"]
mod pipeline;
mod support;

use foveal_device::{Counters, Device, counters};
use foveal_engine::Engine;
use foveal_llm::{GenerationDefaults, Sampler, SamplerState, StopCriteria};
use foveal_types::{Delta, PreparedRequest, SamplingParams};
use gpu::{alone, gpu};
use pipeline::Pipeline;
use support::{MAX_MODEL_LEN, Reference, answer};

/// Page-locked memory for copies.
const PINNED_BYTES: usize = 64 << 20;
/// Tokens of an answer that is driven by hand; beyond the reference's, and through more than one page.
const NUM_TOKENS: usize = 48;

/// What happened between two readings; `waits` is how many events the host may have waited for.
fn check_costs(device: &Device, before: Counters, after: Counters, waits: u64) {
    let grown = |counter: fn(&Counters) -> u64| counter(&after) - counter(&before);
    assert_eq!(grown(|counters| counters.allocations), 0, "{before:?} {after:?}");
    assert_eq!(grown(|counters| counters.synchronises), 0, "{before:?} {after:?}");
    assert_eq!(grown(|counters| counters.pageable_copies), 0, "{before:?} {after:?}");
    // The CPU has nothing to wait for.
    let waits = if device.is_cuda() { waits } else { 0 };
    assert!(grown(|counters| counters.event_waits) <= waits, "at most {waits}: {before:?} {after:?}");
}

/// A GPU has been at work, and has counted it.
fn check_work(device: &Device, before: Counters, after: Counters) {
    assert_eq!(after.launches > before.launches, device.is_cuda(), "{before:?} {after:?}");
    assert_eq!(after.pinned_copies > before.pinned_copies, device.is_cuda(), "{before:?} {after:?}");
}

/// The tokens of one answer, and the counters behind each.
fn decode(
    pipeline: &Pipeline,
    sampler: &mut Sampler,
    request: &PreparedRequest,
    params: &SamplingParams,
) -> Vec<(u32, Counters)> {
    let stream = pipeline.reference.device.stream();
    let n = request.input_ids.len();
    let stop = StopCriteria::new(params, &GenerationDefaults::default(), n, MAX_MODEL_LEN);
    let mut state = SamplerState::new(params, &request.input_ids, &stop).unwrap();
    let features = pipeline.encode(request);
    let mut run = pipeline.run(n + NUM_TOKENS, n);
    let mut seen: Vec<(u32, Counters)> = Vec::new();
    while seen.len() < NUM_TOKENS {
        let logits = match seen.last() {
            None => run.prefill(request, features.as_ref(), n),
            Some((token, _)) => run.decode(request, seen.len() - 1, *token),
        };
        let sampled = sampler.sample(stream, logits, &mut [&mut state]).unwrap().remove(0).unwrap();
        seen.push((sampled.token_id.0, counters()));
    }
    seen
}

/// Between two tokens of one request through the decoder and the sampler nothing is allocated, nothing is copied from
/// pageable memory, no stream is waited for, and at most one event is.
fn a_token_by_hand(device: &Device) {
    let _pool = foveal_pinned::install(device, PINNED_BYTES);
    let pipeline = Pipeline::open(Reference::open("tiny", device.clone()));
    let mut sampler = Sampler::new(device, 1, pipeline.reference.config.text.vocab_size).unwrap();
    let greedy = SamplingParams::default();
    let drawn = SamplingParams {
        temperature: 1.0,
        top_k: 8,
        top_p: 0.9,
        logprobs: Some(5),
        seed: Some(1),
        ..SamplingParams::default()
    };
    for name in ["text_count", "image_0"] {
        let case = pipeline.reference.golden.case(name);
        let request = pipeline.reference.prepare(case);
        for params in [&greedy, &drawn] {
            // A first request may make what later ones use again.
            decode(&pipeline, &mut sampler, &request, params);
            let seen = decode(&pipeline, &mut sampler, &request, params);
            for pair in seen.windows(2) {
                check_costs(device, pair[0].1, pair[1].1, 1);
                check_work(device, pair[0].1, pair[1].1);
            }
            if !device.is_cuda() && params.temperature == 0.0 {
                let len = case.greedy_ids.len().min(NUM_TOKENS);
                let ids: Vec<u32> = seen.iter().map(|(token, _)| *token).collect();
                assert_eq!(ids[..len], case.greedy_ids[..len], "{name}: an answer, and not just steps");
            }
        }
    }
}

/// The same of an answer of the engine, which may be ahead of who reads: what is compared is the whole answer beyond its
/// first tokens.
fn a_token_of_the_engine(device: &Device) {
    let start = counters();
    let reference = Reference::open("tiny", device.clone());
    let engine = reference.engine().build().unwrap();
    let case = reference.golden.case("text_count");
    let expected = answer(&engine, reference.prepare(case));
    let mut seen = Vec::new();
    for delta in engine.generate(reference.prepare(case)).blocking() {
        if matches!(delta.unwrap(), Delta::Token(_)) {
            seen.push(counters());
        }
    }
    let end = counters();
    assert_eq!(seen.len(), expected.len());
    assert!(seen.len() > 8, "{} tokens", seen.len());
    // One wait for each token behind the third.
    check_costs(device, seen[2], end, seen.len() as u64 - 3);
    check_work(device, start, end);
    // The weights too.
    assert_eq!(end.pageable_copies, start.pageable_copies);
}

/// The launches of an answer of one token.
fn launches(engine: &Engine, mut request: PreparedRequest) -> u64 {
    request.sampling.max_tokens = Some(1);
    let before = counters().launches;
    assert_eq!(answer(engine, request).len(), 1);
    counters().launches - before
}

/// No embedding of a picture is made for text alone, and nothing of the tower is launched: that is what a picture's request has
/// beyond it, and nothing of it stays behind for text that comes later.
fn text_alone_launches_no_tower(device: &Device) {
    let reference = Reference::open("tiny", device.clone());
    let engine = reference.engine().enforce_eager(true).prefix_caching(false).build().unwrap();
    let request = |name: &str| reference.prepare(reference.golden.case(name));
    let text = launches(&engine, request("text_count"));
    assert_eq!(engine.stats().encoder_rows_used, 0);
    let picture = launches(&engine, request("image_0"));
    assert!(engine.stats().encoder_rows_used > 0);
    let rows = engine.stats().encoder_rows_used;
    assert_eq!(launches(&engine, request("text_count")), text);
    assert_eq!(engine.stats().encoder_rows_used, rows);
    let blocks = reference.config.vision.depth as u64;
    if device.is_cuda() {
        assert!(text > 0 && picture > text + blocks, "{text} and {picture} launches");
    }
}

mod cpu {
    use super::{Device, alone};

    #[test]
    fn text_alone_launches_no_tower() {
        let _alone = alone();
        super::text_alone_launches_no_tower(&Device::cpu(2).unwrap());
    }

    #[test]
    fn a_token_by_hand() {
        let _alone = alone();
        super::a_token_by_hand(&Device::cpu(2).unwrap());
    }

    #[test]
    fn a_token_of_the_engine() {
        let _alone = alone();
        super::a_token_of_the_engine(&Device::cpu(2).unwrap());
    }
}

mod cuda {
    use super::{alone, gpu};

    #[test]
    fn text_alone_launches_no_tower() {
        let _alone = alone();
        if let Some(device) = gpu() {
            super::text_alone_launches_no_tower(&device);
        }
    }

    #[test]
    fn a_token_by_hand() {
        let _alone = alone();
        if let Some(device) = gpu() {
            super::a_token_by_hand(&device);
        }
    }

    #[test]
    fn a_token_of_the_engine() {
        let _alone = alone();
        if let Some(device) = gpu() {
            super::a_token_of_the_engine(&device);
        }
    }
}
