//! The whole engine on the small model of this repository.

#[path = "support/prompts.rs"]
mod prompts;

use std::sync::Arc;

use foveal_checkpoint::{GenerationConfig, HostTensor, ModelConfig, ModelFolder, WeightSource};
use foveal_device::{DType, Device};
use foveal_engine::{Engine, EngineBuilder, EngineError};
use foveal_llm::GenerationDefaults;
use foveal_testkit::{Golden, fixtures_dir};
use foveal_types::{Delta, Error, FinishReason, PreparedRequest, SamplingParams, TokenId, TokenOutput, Usage};
use foveal_vision::Normalisation;
use prompts::{Piece, prompt};

/// Tokens of a page of the KV cache.
const PAGE: usize = 32;

fn config() -> (ModelFolder, ModelConfig) {
    let folder = ModelFolder::open(fixtures_dir().join("tiny")).unwrap();
    let config = ModelConfig::load(&folder).unwrap();
    (folder, config)
}

fn builder_with(weights: WeightSource) -> EngineBuilder {
    let (folder, config) = config();
    let defaults = GenerationDefaults::new(&GenerationConfig::load(&folder, &config.text).unwrap()).unwrap();
    Engine::builder()
        .model(config, weights)
        .generation_defaults(defaults)
        .normalisation(Normalisation { mean: [0.5; 3], std: [0.5; 3] })
        .device(Device::cpu(2).unwrap())
        .max_model_len(1024)
}

fn builder() -> EngineBuilder {
    builder_with(WeightSource::open(&config().0).unwrap())
}

fn golden_prompt(name: &str) -> PreparedRequest {
    let golden = Golden::open("tiny");
    prompt(&[Piece::Text(&golden.case(name).prompt_ids)])
}

fn answer(engine: &Engine, request: PreparedRequest) -> (Vec<TokenOutput>, Usage) {
    let mut tokens = Vec::new();
    for delta in engine.generate(request).blocking() {
        match delta.unwrap() {
            Delta::Token(token) => tokens.push(token),
            Delta::Finished { usage, .. } => return (tokens, usage),
            _ => {}
        }
    }
    panic!("the stream ended without `Finished`");
}

#[test]
fn greedy_answers_are_the_references() {
    let engine = builder().max_num_batched_tokens(64).build().unwrap();
    let golden = Golden::open("tiny");
    for case in golden.cases().iter().filter(|case| case.images.is_empty()) {
        let mut request = prompt(&[Piece::Text(&case.prompt_ids)]);
        request.sampling.max_tokens = Some(32);
        let (tokens, usage) = answer(&engine, request);
        let ids: Vec<u32> = tokens.iter().map(|token| token.token_id.0).collect();
        // A step whose two best are this close may fall either way, and what follows is then another text.
        let sure = case.greedy_top2_gaps.iter().position(|gap| *gap < 0.01).unwrap_or(case.greedy_ids.len());
        assert_eq!(ids[..sure], case.greedy_ids[..sure], "{}", case.name);
        assert_eq!(usage.prompt_tokens, case.prompt_ids.len());
        assert_eq!(usage.completion_tokens, ids.len());
    }
}

/// A chat of three turns about pictures: each turn's prompt begins with the last one's prompt and answer.
fn turns(engine: &Engine) -> Vec<(Vec<TokenOutput>, Usage)> {
    let (open, ask) = ([999, 434, 387, 198, 1007], [1008, 341, 260, 280, 13, 1000, 198, 999, 64, 82, 447, 449, 198]);
    let mut said: Vec<u32> = Vec::new();
    (0..3)
        .map(|turn| {
            let mut pieces = vec![Piece::Text(&open), Piece::Picture([1, 8, 12], 1), Piece::Text(&ask)];
            pieces.push(Piece::Text(&said));
            if turn > 0 {
                pieces.extend([Piece::Text(&open), Piece::Picture([1, 6, 4], 2), Piece::Text(&ask)]);
            }
            let turn = answer(engine, prompt(&pieces));
            if said.is_empty() {
                said = turn.0.iter().map(|token| token.token_id.0).collect();
            }
            turn
        })
        .collect()
}

#[test]
fn reused_prefixes_change_no_bit() {
    let fresh = turns(&builder().prefix_caching(false).build().unwrap());
    assert!(fresh.iter().all(|(_, usage)| usage.cached_tokens == 0));
    // Chunks that cut through pictures, and a workspace that holds one picture at a time.
    for chunk in [512, 7] {
        let engine = builder().max_num_batched_tokens(chunk).max_patches(96).build().unwrap();
        let reused = turns(&engine);
        for (turn, ((a, _), (b, _))) in fresh.iter().zip(&reused).enumerate() {
            // `PartialEq` of floats: equal log-probabilities, not close ones.
            assert_eq!(a, b, "turn {turn}, chunks of {chunk}");
        }
        let cached: Vec<usize> = reused.iter().map(|(_, usage)| usage.cached_tokens).collect();
        let [first, second, third] = [0, 1, 2].map(|turn: usize| reused[turn].1);
        assert_eq!(cached[0], 0);
        // The full pages of the first prompt and of its answer, whose last token was never computed.
        assert_eq!(cached[1], (first.prompt_tokens + first.completion_tokens - 1) / PAGE * PAGE);
        // The same prompt again: the full pages before the row that chooses the first token.
        assert_eq!(cached[2], (second.prompt_tokens - 1) / PAGE * PAGE);
        assert!(cached[1] > 0 && cached[2] > cached[1], "{cached:?}");
        assert_eq!((first.image_tokens, third.image_tokens), (24, 30));
    }
}

#[test]
fn another_picture_under_the_same_tokens_is_another_prompt() {
    let engine = builder().build().unwrap();
    let before = [7; PAGE];
    let ask = |number| prompt(&[Piece::Text(&before), Piece::Picture([1, 8, 16], number), Piece::Text(&[1008, 5, 6])]);
    let fresh = answer(&builder().build().unwrap(), ask(2)).0;
    answer(&engine, ask(1));
    let (tokens, usage) = answer(&engine, ask(2));
    assert_eq!(usage.cached_tokens, PAGE, "what stands before the picture");
    assert_eq!(tokens, fresh);
}

#[test]
fn a_cancelled_request_leaves_an_engine_as_good_as_new() {
    let engine = builder().max_num_batched_tokens(16).num_blocks(32).build().unwrap();
    let expected = answer(&builder().build().unwrap(), golden_prompt("text_count")).0;
    for steps in [1, 2, 5, 9] {
        let mut long = golden_prompt("text_long");
        long.sampling.max_tokens = None;
        long.sampling.ignore_eos = true;
        assert_eq!(engine.generate(long).blocking().take(steps).filter(|delta| delta.is_ok()).count(), steps);
        assert_eq!(answer(&engine, golden_prompt("text_count")).0, expected);
    }
}

#[test]
fn a_seed_draws_the_same_answer() {
    let engine = builder().build().unwrap();
    let drawn = |seed| {
        let mut request = golden_prompt("text_hello");
        request.sampling = SamplingParams { temperature: 3.0, seed: Some(seed), ignore_eos: true, ..request.sampling };
        answer(&engine, request).0
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn what_can_never_fit_is_refused_by_class() {
    let engine = builder().max_patches(64).build().unwrap();
    let refusal = |request| match engine.generate(request).blocking().next() {
        Some(Err(Error::Request(error))) => (error.code, error.message),
        other => panic!("{other:?}"),
    };
    let (code, message) = refusal(prompt(&[Piece::Text(&[7; 1024])]));
    assert_eq!(code, "context_length_exceeded");
    assert!(message.contains("1024 tokens"), "{message}");
    let (code, message) = refusal(prompt(&[Piece::Text(&[7]), Piece::Picture([1, 8, 10], 1), Piece::Text(&[7])]));
    assert_eq!(code, "image_too_large");
    assert!(message.contains("80 patches") && message.contains("64"), "{message}");
}

#[test]
fn options_that_make_no_engine_are_refused_by_name() {
    let message = |result: Result<Engine, EngineError>| result.unwrap_err().to_string();
    assert!(message(Engine::builder().build()).contains("EngineBuilder::model"));
    assert!(message(builder().max_num_batched_tokens(0).build()).contains("`max_num_batched_tokens` is 0"));
    assert!(message(builder().max_num_seqs(0).build()).contains("`max_num_seqs` is 0"));
    assert!(message(builder().kv_cache_bytes(100).build()).contains("one page"));
    assert!(message(builder().max_model_len(1 << 20).build()).contains("8192"));
    let (_, config) = config();
    let nothing = WeightSource::in_memory("nowhere", []).unwrap();
    let error = Engine::builder().model(config, nothing).normalisation(Normalisation { mean: [0.5; 3], std: [0.5; 3] });
    assert!(message(error.build()).contains("missing from nowhere"));
}

/// The small model with one row of its embedding table spoilt.
fn weights_with_nan_at(token: usize) -> WeightSource {
    let (folder, config) = config();
    let source = WeightSource::open(&folder).unwrap();
    let tensors: Vec<HostTensor> = source
        .tensors()
        .map(|info| {
            let tensor = source.get(info.name, info.shape).unwrap();
            assert_eq!(tensor.dtype(), DType::BF16);
            let mut values = tensor.view().as_slice::<half::bf16>().unwrap().to_vec();
            if info.name.ends_with("embed_tokens.weight") {
                let width = config.text.hidden_size;
                values[token * width] = half::bf16::NAN;
            }
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            HostTensor {
                name: info.name.to_owned(),
                dtype: DType::BF16,
                shape: info.shape.to_vec(),
                bytes: Arc::new(bytes),
            }
        })
        .collect();
    WeightSource::in_memory("memory", tensors).unwrap()
}

#[test]
fn nan_logits_fail_their_request_alone() {
    let engine = builder_with(weights_with_nan_at(77)).build().unwrap();
    let healthy = builder().build().unwrap();
    let expected = answer(&healthy, golden_prompt("text_hello")).0;
    for _ in 0..2 {
        let mut bad = golden_prompt("text_hello");
        bad.input_ids[3] = TokenId(77);
        match engine.generate(bad).blocking().last() {
            Some(Err(Error::Request(error))) => {
                assert_eq!(error.code, "no_usable_logits");
                assert!(error.message.contains("NaN"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        // Nothing of the failed request's cache is taken over.
        let (tokens, usage) = answer(&engine, golden_prompt("text_hello"));
        assert_eq!(tokens, expected);
        assert_eq!(usage.cached_tokens, 0);
    }
    // Nor does it harm who runs beside it.
    let mut bad = golden_prompt("text_hello");
    bad.input_ids[3] = TokenId(77);
    let requests = [golden_prompt("text_hello"), bad, golden_prompt("text_hello")];
    let streams = requests.map(|request| engine.generate(request));
    let [first, bad, second] = streams.map(|stream| stream.blocking().collect::<Vec<_>>());
    assert!(bad.iter().any(Result::is_err));
    for deltas in [first, second] {
        let tokens = deltas.into_iter().filter_map(|delta| match delta.unwrap() {
            Delta::Token(token) => Some(token),
            _ => None,
        });
        assert_eq!(tokens.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn length_and_stop_are_told_apart() {
    let engine = builder().build().unwrap();
    let reason = |request| match engine.generate(request).blocking().last() {
        Some(Ok(Delta::Finished { reason, .. })) => reason,
        other => panic!("{other:?}"),
    };
    let mut request = golden_prompt("text_count");
    request.sampling.max_tokens = Some(3);
    assert_eq!(reason(request.clone()), FinishReason::Length);
    request.sampling.max_tokens = Some(200);
    assert_eq!(reason(request), FinishReason::Stop);
}

#[test]
fn requests_that_run_side_by_side_get_what_they_get_alone() {
    let requests: Vec<_> = (0..12)
        .map(|i: u32| {
            let text: Vec<u32> = (0..20 + 7 * i).map(|j| 300 + j % (5 + i)).collect();
            let mut request =
                prompt(&[Piece::Text(&text), Piece::Picture([1, 4, 8], (i % 3) as u8), Piece::Text(&[64])]);
            request.sampling.ignore_eos = true;
            request
        })
        .collect();
    let alone = builder().max_num_seqs(1).prefix_caching(false).build().unwrap();
    let expected: Vec<_> = requests.iter().map(|request| answer(&alone, request.clone()).0).collect();
    for run_ahead in [false, true] {
        // Twelve requests come to some thirty pages.
        let engine = builder().num_blocks(12).max_num_batched_tokens(48).run_ahead(run_ahead).build().unwrap();
        let streams: Vec<_> = requests.iter().map(|request| engine.generate(request.clone())).collect();
        for (stream, expected) in streams.into_iter().zip(&expected) {
            let tokens = stream.blocking().filter_map(|delta| match delta.unwrap() {
                Delta::Token(token) => Some(token),
                _ => None,
            });
            assert_eq!(tokens.collect::<Vec<_>>(), *expected);
        }
        let stats = engine.stats();
        assert_eq!((stats.running, stats.waiting, stats.kv_pages_used, stats.kv_pages_total), (0, 0, 0, 12));
        assert!(stats.encoder_hits > 0, "{stats:?}");
    }
}
