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

fn check_prompt(case: &GoldenCase, request: &PreparedRequest) {
    let ids: Vec<u32> = request.input_ids.iter().map(|id| id.0).collect();
    assert_eq!(ids, case.prompt_ids, "{}", case.name);
    let grids: Vec<[usize; 3]> = request.images.iter().map(|image| image.grid_thw.map(|x| x as usize)).collect();
    assert_eq!(grids, case.image_grid_thw, "{}", case.name);
    let expected: Vec<i64> = case.mrope_positions.concat();
    let positions: Vec<i64> = request.positions.iter().copied().map(i64::from).collect();
    assert_eq!(positions, expected, "{}", case.name);
    assert_eq!(i64::from(request.rope_delta), case.mrope_delta, "{}", case.name);
}

/// The reference keeps every third row.
fn check_features(golden: &Golden, case: &GoldenCase, features: &Features) {
    let levels = features.deepstack.iter().enumerate().map(|(i, level)| (format!("deepstack.{i}"), level));
    for (name, tensor) in std::iter::once(("image_embeds".to_owned(), &features.embeds)).chain(levels) {
        let expected = golden.array(&format!("{}.{name}", case.name));
        let values = floats(tensor);
        let rows = values.chunks_exact(tensor.shape().row_len());
        let every_third: Vec<f32> = rows.step_by(3).flatten().copied().collect();
        let error = max_abs_relative_to_max(&every_third, &expected.values);
        assert!(error <= MAX_FEATURE_ERROR, "{} {name}: {error}", case.name);
    }
}

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

/// Edge of the video's frames: a multiple of every tower's merged patches, so that nothing is resized.
const FRAME_EDGE: u32 = 224;
/// Seconds between two temporal patches of the video, cut to whole ones.
const WHOLE_SECONDS: i32 = 3;

/// Two stills, and the video that shows each of them in two frames: a temporal patch is then a still's.
fn stills_and_their_video(reference: &Reference) -> [PreparedRequest; 2] {
    let frame = |factor: usize| {
        let pixels = (0..(FRAME_EDGE * FRAME_EDGE * 3) as usize).map(|i| ((i + 7) * factor % 251) as u8).collect();
        ImageInput::Rgb { width: FRAME_EDGE, height: FRAME_EDGE, pixels }
    };
    let stills = [frame(3), frame(5)];
    let frames = stills.iter().flat_map(|still| [still.clone(), still.clone()]).collect();
    // 4 of 70 frames at 10 a second: 2 frames every 3.5 seconds.
    let meta = VideoMeta { source_fps: 10.0, total_num_frames: 70, frame_indices: vec![0, 17, 35, 52] };
    let question = || ContentPart::Text("What is shown here?".to_owned());
    let video = vec![ContentPart::Video(VideoFrames { frames, meta }), question()];
    let stills = stills.into_iter().map(ContentPart::Image).chain(std::iter::once(question())).collect();
    [stills, video].map(|parts| reference.prepare_parts(parts))
}

/// Positions of a prompt with one video, token by token: text counts on, every temporal patch of a range stands
/// `step` behind the last one. What follows a range counts on from its longer side, however long the video lasts
/// (`get_rope_index` in `modeling_qwen2_5_vl.py`, transformers 5.17).
fn naive_positions(request: &PreparedRequest, step: i32) -> (Vec<i32>, i32) {
    let [_, h, w] = request.images[0].grid_thw.map(|patches| patches as usize / 2);
    let mut columns: Vec<[i32; 3]> = Vec::new();
    let mut next = 0;
    for row in 0..request.input_ids.len() {
        match request.image_token_ranges.iter().find(|range| range.contains(&row)) {
            None => columns.push([next; 3]),
            Some(range) => {
                let at = row - range.start;
                let first = columns[range.start - 1][0] + 1;
                let offset = [at / (h * w), at % (h * w) / w, at % w].map(|x| i32::try_from(x).unwrap());
                columns.push([first + offset[0] * step, first + offset[1], first + offset[2]]);
                next = first + i32::try_from(h.max(w)).unwrap() - 1;
            }
        }
        next += 1;
    }
    let end = columns.iter().flatten().max().unwrap() + 1;
    let positions = (0..3).flat_map(|axis| columns.iter().map(move |column| column[axis])).collect();
    (positions, end - i32::try_from(columns.len()).unwrap())
}

fn log_softmax(logits: &[f32], token: usize) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits[token] - most - logits.iter().map(|logit| (logit - most).exp()).sum::<f32>().ln()
}

/// A video against what it is made of: the features of its frames as stills, positions by a naive loop, and the
/// engine's answer against the parts put together by hand.
fn check_video(family: &str, num_ranges: usize, step: i32) {
    let pipeline = Pipeline::open(Reference::open(family, Device::cpu(2).unwrap()));
    let [stills, video] = stills_and_their_video(&pipeline.reference);
    let [_, h, w] = stills.images[0].grid_thw;
    assert_eq!(video.images[0].grid_thw, [2, h, w]);
    assert_eq!((video.images.len(), video.image_token_ranges.len()), (1, num_ranges));
    assert_eq!((video.positions.clone(), video.rope_delta), naive_positions(&video, step));

    let of_stills = pipeline.encode(&stills).unwrap();
    let features = pipeline.encode(&video).unwrap();
    assert_eq!(features.deepstack.len(), of_stills.deepstack.len());
    for (got, expected) in features.levels().zip(of_stills.levels()) {
        let error = max_abs_relative_to_max(&floats(got), &floats(expected));
        assert!(error <= MAX_FEATURE_ERROR, "{family}: {error}");
    }

    let tokens = answer(&pipeline.engine, video.clone());
    let forced: Vec<u32> = tokens.iter().map(|token| token.token_id.0).collect();
    let logits = pipeline.logits(&video, Some(&features), &forced[..forced.len() - 1]);
    assert_eq!(logits.len(), tokens.len());
    for (token, logits) in tokens.iter().zip(&logits) {
        let expected = log_softmax(logits, token.token_id.0 as usize);
        assert!((token.logprob.unwrap() - expected).abs() <= 1e-3, "{family}: {token:?} {expected}");
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(logits[token.token_id.0 as usize] >= best - 1e-3, "{family}: a greedy choice");
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
