//! Every reference case of HF transformers through the whole pipeline on the CPU: processor, vision tower, decoder, engine.
//! `gpu.rs` has the same for a GPU, with a GPU's limits.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/pipeline.rs"]
mod pipeline;
mod support;
#[path = "support/video.rs"]
mod video;

use compare::check_prompt;
use foveal_device::Device;
use foveal_testkit::{GoldenCase, assert_bitwise_equal, assert_close};
use foveal_types::{TokenId, TokenOutput};
use pipeline::Pipeline;
use support::{Reference, answer};
use video::{BETWEEN_TIMESTAMPS, BY_FRAME_INDEX, IN_SECONDS, Limits, Video};

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

fn open(family: &str) -> Reference {
    Reference::open(family, Device::cpu(2).unwrap())
}

fn check_family(family: &str) {
    let pipeline = Pipeline::open(open(family));
    let Reference { golden, processor, .. } = &pipeline.reference;
    assert_eq!(golden.cases().len(), 14);
    let engine = pipeline.engine();
    let mut feature_errors = pipeline.reference_video_errors();
    for case in golden.cases() {
        let request = pipeline.reference.prepare(case);
        check_prompt(case, &request);
        let features = pipeline.encode(&request);
        assert_eq!(features.is_some(), !case.images.is_empty());
        feature_errors.extend(features.iter().flat_map(|features| features.case_errors(golden, case)));
        let logits = pipeline.logits(&request, features.as_ref(), &case.forced_ids, usize::MAX);
        let expected = golden.array(&format!("{}.logits", case.name));
        assert_close(&logits[0], &expected.values, MAX_LOGIT_ERROR, 0.0);
        let expected = golden.array(&format!("{}.forced_logits", case.name));
        assert_eq!(expected.shape[0], 12);
        assert_close(&logits[1..].concat(), &expected.values, MAX_LOGIT_ERROR, 0.0);

        let tokens = answer(&engine, request);
        check_greedy(case, &tokens);
        if family == "tiny" {
            let ids: Vec<TokenId> = tokens.iter().map(|token| token.token_id).collect();
            assert_eq!(processor.tokenizer().decode(&ids), case.text);
        }
    }
    for (name, error) in feature_errors {
        assert!(error <= MAX_FEATURE_ERROR, "{name}: {error}");
    }
}

/// Where a prompt is cut changes no bit of its logits, nor of those behind it.
#[test]
fn chunks_give_the_same_logits() {
    let pipeline = Pipeline::open(open("tiny"));
    for name in ["two_images", "text_long"] {
        let case = pipeline.reference.golden.case(name);
        let request = pipeline.reference.prepare(case);
        let features = pipeline.encode(&request);
        let logits = |chunk| pipeline.logits(&request, features.as_ref(), &case.forced_ids[..2], chunk).concat();
        let whole = logits(usize::MAX);
        for chunk in [7, 48] {
            assert_bitwise_equal(&logits(chunk), &whole);
        }
    }
}

fn check_video(video: &Video) {
    video::check_video(open(video.family), video, &Limits { feature: MAX_FEATURE_ERROR, logit: 1e-3 });
}

#[test]
fn a_video_between_timestamps_is_its_frames() {
    check_video(&BETWEEN_TIMESTAMPS);
}

#[test]
fn a_video_in_seconds_is_its_frames_further_apart() {
    check_video(&IN_SECONDS);
}

#[test]
fn a_video_by_frame_index_is_its_frames() {
    check_video(&BY_FRAME_INDEX);
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
