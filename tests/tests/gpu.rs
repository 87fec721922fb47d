//! The reference cases on an NVIDIA GPU, within what bfloat16 costs transformers itself. Without a GPU each test says
//! `skipped`; with `FOVEAL_REQUIRE_GPU` set, it fails instead.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/gpu.rs"]
mod gpu;
#[path = "support/pipeline.rs"]
mod pipeline;
mod support;
#[path = "support/video.rs"]
mod video;

use std::collections::BTreeMap;

use compare::check_prompt;
use foveal_testkit::{Golden, GoldenCase};
use foveal_types::TokenOutput;
use gpu::{alone, gpu};
use pipeline::Pipeline;
use serde::Deserialize;
use support::{Reference, answer};
use video::{BETWEEN_TIMESTAMPS, BY_FRAME_INDEX, IN_SECONDS, Limits, Video};

/// How many times transformers' own bfloat16 error ours may be, over a family's cases together.
const MAX_NOISE_RATIO: f64 = 1.5;
/// How many times the family's noise one case's error may be, unless transformers' own worst pass is further out: a
/// single row of logits varies far more than fourteen.
const MAX_CASE_RATIO: f64 = 4.0;
/// Features may differ by this share of the reference's largest value: bfloat16's, after four blocks.
const MAX_FEATURE_ERROR: f64 = 3e-2;

/// Page-locked memory for copies.
const PINNED_BYTES: usize = 64 << 20;

/// How far transformers in bfloat16 is from its float32 on one case, over passes that round in different ways;
/// `tests/reference/bf16_noise.py` wrote it.
#[derive(Deserialize)]
struct CaseNoise {
    logits: f64,
    forced_logits: f64,
    /// The largest error of either.
    worst: f64,
    max_difference: f64,
}

/// That of all cases of a family.
struct Noise(BTreeMap<String, CaseNoise>);

impl Noise {
    fn of(golden: &Golden) -> Self {
        let path = golden.dir().join("bf16_noise.json");
        let cases: BTreeMap<String, CaseNoise> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(cases.len(), golden.cases().len());
        Self(cases)
    }

    /// The largest difference of a logit.
    fn max_difference(&self) -> f64 {
        self.0.values().map(|case| case.max_difference).fold(0.0, f64::max)
    }

    /// How far apart two logits may be that change places: each is off by the largest difference.
    fn max_gap(&self) -> f64 {
        2.0 * self.max_difference()
    }
}

/// Sums of squares: our differences, transformers' in bfloat16, the reference itself.
#[derive(Clone, Copy, Default)]
struct Squares {
    ours: f64,
    noise: f64,
    size: f64,
}

impl Squares {
    fn new(got: &[f32], expected: &[f32], noise: f64) -> Self {
        assert_eq!(got.len(), expected.len());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let size: f64 = expected.iter().copied().map(square).sum();
        let ours = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
        Self { ours, noise: noise * noise * size, size }
    }

    /// Of all together.
    fn pooled<'a>(each: impl IntoIterator<Item = &'a Self>) -> Self {
        each.into_iter().fold(Self::default(), |sum, one| Self {
            ours: sum.ours + one.ours,
            noise: sum.noise + one.noise,
            size: sum.size + one.size,
        })
    }

    fn ratio(&self) -> f64 {
        (self.ours / self.noise).sqrt()
    }

    fn error(&self) -> f64 {
        (self.ours / self.size).sqrt()
    }

    fn noise(&self) -> f64 {
        (self.noise / self.size).sqrt()
    }
}

/// A family's logits, case by case: behind the prompts, and behind the forced tokens.
#[derive(Default)]
struct Measured {
    names: Vec<String>,
    logits: Vec<Squares>,
    forced: Vec<Squares>,
    /// Transformers' own worst case.
    worst_noise: f64,
}

impl Measured {
    /// `expected` holds the first row, and then the others.
    fn add(&mut self, case: &GoldenCase, got: &[Vec<f32>], expected: [&[f32]; 2], noise: &CaseNoise) {
        self.names.push(case.name.clone());
        self.logits.push(Squares::new(&got[0], expected[0], noise.logits));
        self.forced.push(Squares::new(&got[1..].concat(), expected[1], noise.forced_logits));
        self.worst_noise = self.worst_noise.max(noise.worst);
    }

    /// All together within the noise, and none far outside.
    fn check(&self, what: &str) {
        let (logits, forced) = (Squares::pooled(&self.logits), Squares::pooled(&self.forced));
        let noise = Squares::pooled([&logits, &forced]).noise();
        let named = || self.names.iter().zip(self.logits.iter().zip(&self.forced));
        let worst = named().map(|(_, (logits, forced))| logits.error().max(forced.error())).fold(0.0, f64::max);
        println!(
            "{what}: logits {:.2e} ({:.2} of bfloat16's), forced logits {:.2e} ({:.2}), worst case {:.2}",
            logits.error(),
            logits.ratio(),
            forced.error(),
            forced.ratio(),
            worst / noise
        );
        assert!(logits.ratio() <= MAX_NOISE_RATIO && forced.ratio() <= MAX_NOISE_RATIO, "{what}");
        let limit = (MAX_CASE_RATIO * noise).max(MAX_NOISE_RATIO * self.worst_noise);
        for (name, (logits, forced)) in named() {
            let within = |squares: &Squares| squares.error() <= limit;
            assert!(within(logits) && within(forced), "{what} {name}: {} {}", logits.error(), forced.error());
        }
    }
}

/// Greedy ids part only at a step where the reference's two best are closer than two logits can be off.
fn check_greedy(case: &GoldenCase, tokens: &[TokenOutput], max_gap: f64) {
    let ids: Vec<u32> = tokens.iter().map(|token| token.token_id.0).collect();
    match case.greedy_ids.iter().zip(&ids).position(|(a, b)| a != b) {
        Some(step) => {
            let gap = f64::from(case.greedy_top2_gaps[step]);
            assert!(gap <= max_gap, "{} step {step}: {ids:?}, a gap of {gap}", case.name);
            println!("{}: parts at step {step}, where the two best are {gap} apart", case.name);
        }
        None => assert_eq!(ids, case.greedy_ids, "{}: the answer ends where the reference's ends", case.name),
    }
}

fn check_family(family: &str) {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let _pool = foveal_pinned::install(&device, PINNED_BYTES);
    let pipeline = Pipeline::open(Reference::open(family, device));
    let golden = &pipeline.reference.golden;
    let noise = Noise::of(golden);
    let engine = pipeline.engine();
    let mut feature_errors = pipeline.reference_video_errors();
    let mut measured = Measured::default();
    for case in golden.cases() {
        let request = pipeline.reference.prepare(case);
        check_prompt(case, &request);
        let features = pipeline.encode(&request);
        assert_eq!(features.is_some(), !case.images.is_empty());
        feature_errors.extend(features.iter().flat_map(|features| features.case_errors(golden, case)));
        let logits = pipeline.logits(&request, features.as_ref(), &case.forced_ids, usize::MAX);
        let expected = ["logits", "forced_logits"].map(|name| golden.array(&format!("{}.{name}", case.name)).values);
        measured.add(case, &logits, [&expected[0], &expected[1]], &noise.0[&case.name]);
        check_greedy(case, &answer(&engine, request), noise.max_gap());
    }
    measured.check(family);
    let worst = feature_errors.iter().map(|(_, error)| *error).fold(0.0, f64::max);
    println!("{family}: features {worst:.1e}");
    for (name, error) in feature_errors {
        assert!(error <= MAX_FEATURE_ERROR, "{name}: {error}");
    }
}

#[test]
fn tiny_is_within_the_references_noise() {
    check_family("tiny");
}

#[test]
fn qwen3_vl_tied_is_within_the_references_noise() {
    check_family("qwen3_vl_tied");
}

#[test]
fn qwen2_5_vl_is_within_the_references_noise() {
    check_family("qwen2_5_vl");
}

#[test]
fn qwen2_vl_is_within_the_references_noise() {
    check_family("qwen2_vl");
}

/// Where a prompt is cut changes its logits, and those behind it, by no more than noise: against the reference, and
/// against the whole prompt's.
fn check_chunks(family: &str) {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let _pool = foveal_pinned::install(&device, PINNED_BYTES);
    let pipeline = Pipeline::open(Reference::open(family, device));
    let golden = &pipeline.reference.golden;
    let noise = Noise::of(golden);
    for chunk in [7, 48] {
        let (mut to_reference, mut to_whole) = (Measured::default(), Measured::default());
        for case in golden.cases() {
            let request = pipeline.reference.prepare(case);
            let features = pipeline.encode(&request);
            let logits = |chunk| pipeline.logits(&request, features.as_ref(), &case.forced_ids, chunk);
            let (whole, cut) = (logits(usize::MAX), logits(chunk));
            let of_case = &noise.0[&case.name];
            to_whole.add(case, &cut, [&whole[0], &whole[1..].concat()], of_case);
            let expected =
                ["logits", "forced_logits"].map(|name| golden.array(&format!("{}.{name}", case.name)).values);
            to_reference.add(case, &cut, [&expected[0], &expected[1]], of_case);
        }
        to_reference.check(&format!("{family} in chunks of {chunk}"));
        to_whole.check(&format!("{family} in chunks of {chunk}, against whole prompts"));
    }
}

#[test]
fn chunks_of_tiny_are_within_the_references_noise() {
    check_chunks("tiny");
}

#[test]
fn chunks_of_qwen2_5_vl_are_within_the_references_noise() {
    check_chunks("qwen2_5_vl");
}

/// How the engine cuts a prompt changes no token by more than noise may.
#[test]
fn chunks_give_the_same_answer() {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let reference = Reference::open("tiny", device);
    let max_gap = Noise::of(&reference.golden).max_gap();
    for chunk in [7, 48, 512] {
        let engine = reference.engine().max_num_batched_tokens(chunk).build().unwrap();
        for name in ["image_0", "three_images", "text_long"] {
            let case = reference.golden.case(name);
            check_greedy(case, &answer(&engine, reference.prepare(case)), max_gap);
        }
    }
}

/// A video's answer is computed twice, each time with a noise of its own.
fn check_video(video: &Video) {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let _pool = foveal_pinned::install(&device, PINNED_BYTES);
    let reference = Reference::open(video.family, device);
    let logit = Noise::of(&reference.golden).max_gap() as f32;
    video::check_video(reference, video, &Limits { feature: MAX_FEATURE_ERROR, logit });
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
