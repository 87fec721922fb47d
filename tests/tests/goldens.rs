//! Every reference case of HF transformers through the whole pipeline: processor, vision tower, decoder, engine.

#[path = "support/pipeline.rs"]
mod pipeline;
mod support;

use foveal_device::Device;
use foveal_mrope::VideoMeta;
use foveal_processor::{ContentPart, ImageInput, VideoFrames};
use foveal_testkit::{Golden, GoldenCase, assert_close, max_abs_relative_to_max};
use foveal_types::{PreparedRequest, TokenId, TokenOutput};
use pipeline::{Features, Pipeline, floats};
use support::{Reference, answer};

/// Features may differ by this share of the reference's largest value.
const MAX_FEATURE_ERROR: f64 = 1e-3;
/// Logits may differ by this.
const MAX_LOGIT_ERROR: f32 = 5e-3;
/// A greedy step whose two best are closer than this may fall either way.
const MIN_GAP: f32 = 0.01;
/// Log-probabilities of greedy steps may differ by this; the reference has four decimals of them.
const MAX_LOGPROB_ERROR: f32 = 0.01;

fn check_greedy(case: &GoldenCase, tokens: &[TokenOutput]) {
    let sure = case.greedy_top2_gaps.iter().position(|gap| *gap < MIN_GAP).unwrap_or(case.greedy_ids.len());
    let ids: Vec<u32> = tokens.iter().map(|token| token.token_id.0).collect();
    assert!(ids.len() >= sure, "{}: {ids:?}", case.name);
    assert_eq!(ids[..sure], case.greedy_ids[..sure], "{}", case.name);
    if sure == case.greedy_ids.len() {
        assert_eq!(ids.len(), sure, "{}: the answer ends where the reference's ends", case.name);
    }
    for (step, token) in tokens.iter().enumerate().take(sure) {
        let expected = case.greedy_top5_logprobs[step][0];
        let got = token.logprob.unwrap();
        assert!((got - expected).abs() <= MAX_LOGPROB_ERROR, "{} step {step}: {got} {expected}", case.name);
        let top = &token.logprobs.as_ref().unwrap().top;
        assert_eq!(top.len(), 5);
        assert_eq!(top[0], (token.token_id, got), "{} step {step}: the best is the chosen one", case.name);
    }
}

fn check_family(family: &str) {
    let pipeline = Pipeline::open(Reference::open(family, Device::cpu(2).unwrap()));
    let Reference { golden, processor, .. } = &pipeline.reference;
    assert_eq!(golden.cases().len(), 14);
    for case in golden.cases() {
        let request = pipeline.reference.prepare(case);
        check_prompt(case, &request);
        let features = pipeline.encode(&request);
        assert_eq!(features.is_some(), !case.images.is_empty());
        if let Some(features) = &features {
            check_features(golden, case, features);
        }
        let logits = pipeline.logits(&request, features.as_ref(), &case.forced_ids);
        let expected = golden.array(&format!("{}.logits", case.name));
        assert_close(&logits[0], &expected.values, MAX_LOGIT_ERROR, 0.0);
        let expected = golden.array(&format!("{}.forced_logits", case.name));
        assert_eq!(expected.shape[0], 12);
        assert_close(&logits[1..].concat(), &expected.values, MAX_LOGIT_ERROR, 0.0);

        let tokens = answer(&pipeline.engine, request);
        check_greedy(case, &tokens);
        if family == "tiny" {
            let ids: Vec<TokenId> = tokens.iter().map(|token| token.token_id).collect();
            assert_eq!(processor.tokenizer().decode(&ids), case.text);
        }
    }
}

#[test]
fn a_video_between_timestamps_is_its_frames() {
    check_video("tiny", 2, 1);
}

#[test]
fn a_video_in_seconds_is_its_frames_further_apart() {
    let tokens_per_second = 4;
    check_video("qwen2_5_vl", 1, tokens_per_second * WHOLE_SECONDS);
}

#[test]
fn a_video_by_frame_index_is_its_frames() {
    check_video("qwen2_vl", 1, 1);
}

#[test]
fn tiny_agrees_with_the_reference() {
    check_family("tiny");
}

#[test]
fn qwen3_vl_tied_agrees_with_the_reference() {
    check_family("qwen3_vl_tied");
}

#[test]
fn qwen2_5_vl_agrees_with_the_reference() {
    check_family("qwen2_5_vl");
}

#[test]
fn qwen2_vl_agrees_with_the_reference() {
    check_family("qwen2_vl");
}
