//! The whole engine on the small model of this repository.

use std::sync::Arc;

use foveal_checkpoint::{GenerationConfig, HostTensor, ModelConfig, ModelFolder, WeightSource};
use foveal_device::{DType, Device};
use foveal_engine::{Engine, EngineBuilder, EngineError};
use foveal_llm::GenerationDefaults;
use foveal_mrope::{PositionRule, Span, TemporalRule, position_ids};
use foveal_testkit::{Golden, fixtures_dir};
use foveal_types::{
    ContentHash, Delta, Error, FinishReason, PreparedImage, PreparedRequest, SamplingParams, TokenId, TokenOutput,
    Usage,
};
use foveal_vision::Normalisation;

const IMAGE_TOKEN: u32 = 1010;

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

/// A prompt from pieces of text and pictures; a picture's pixels and hash follow from its number.
enum Piece<'a> {
    Text(&'a [u32]),
    Picture([u32; 3], u8),
}

fn prompt(pieces: &[Piece<'_>]) -> PreparedRequest {
    let mut request = PreparedRequest {
        input_ids: Vec::new(),
        image_token_ranges: Vec::new(),
        positions: Vec::new(),
        rope_delta: 0,
        images: Vec::new(),
        sampling: SamplingParams { max_tokens: Some(12), logprobs: Some(3), ..SamplingParams::default() },
    };
    let mut spans = Vec::new();
    for piece in pieces {
        let start = request.input_ids.len();
        match *piece {
            Piece::Text(ids) => {
                request.input_ids.extend(ids.iter().copied().map(TokenId));
                spans.push(Span::Text { len: ids.len() });
            }
            Piece::Picture(grid_thw, number) => {
                let [t, h, w] = grid_thw;
                let rows = (t * h * w / 4) as usize;
                request.input_ids.extend(std::iter::repeat_n(TokenId(IMAGE_TOKEN), rows));
                request.image_token_ranges.push(start..start + rows);
                request.images.push(picture(grid_thw, number, start));
                spans.push(Span::Image { grid: grid_thw.into() });
            }
        }
    }
    let rule = PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FramesBetweenTimestamps };
    let positions = position_ids(&spans, &rule).unwrap();
    request.positions = (0..3).flat_map(|axis| positions.axis(axis).to_vec()).collect();
    request.rope_delta = positions.delta();
    request
}

fn picture(grid_thw: [u32; 3], number: u8, placeholder_start: usize) -> PreparedImage {
    let bytes = grid_thw.iter().product::<u32>() as usize * 3 * 16 * 16;
    // Any pixels will do as long as they differ: a multiplicative walk through the bytes.
    let pixels: Vec<u8> = (0..bytes).map(|i| ((i + 7) * (2 * usize::from(number) + 3) % 251) as u8).collect();
    PreparedImage {
        grid_thw,
        pixels: Arc::new(pixels),
        temporal_slices: 1,
        hash: ContentHash([number; 32]),
        placeholder_start,
    }
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
        // All of the first prompt and of its answer but the last token.
        assert_eq!(cached[1], first.prompt_tokens + first.completion_tokens - 1);
        // The same prompt again: all but the row that chooses the first token.
        assert_eq!(cached[2], second.prompt_tokens - 1);
        assert_eq!((first.image_tokens, third.image_tokens), (24, 30));
    }
}

#[test]
fn another_picture_under_the_same_tokens_is_another_prompt() {
    let engine = builder().build().unwrap();
    let ask =
        |number| prompt(&[Piece::Text(&[999, 1007]), Piece::Picture([1, 4, 4], number), Piece::Text(&[1008, 5, 6])]);
    let fresh = answer(&builder().build().unwrap(), ask(2)).0;
    answer(&engine, ask(1));
    let (tokens, usage) = answer(&engine, ask(2));
    assert_eq!(usage.cached_tokens, 2);
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
