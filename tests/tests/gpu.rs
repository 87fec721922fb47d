//! The reference cases on an NVIDIA GPU, and what a step must not do there. Without a GPU each test says `skipped`; with
//! `FOVEAL_REQUIRE_GPU` set, it fails instead.

#[path = "support/pipeline.rs"]
mod pipeline;
mod support;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foveal_device::{Device, counters};
use foveal_testkit::{Golden, GoldenCase, max_abs_relative_to_max};
use foveal_types::{Delta, TokenOutput};
use pipeline::{Features, Pipeline, floats};
use serde::Deserialize;
use support::{Reference, answer};

/// How many times transformers' own bfloat16 error ours may be, over a family's cases together.
const MAX_NOISE_RATIO: f64 = 1.5;
/// The same for one case: a single row of logits varies far more than fourteen.
const MAX_CASE_RATIO: f64 = 4.0;
/// Features may differ by this share of the reference's largest value: bfloat16's, after four blocks.
const MAX_FEATURE_ERROR: f64 = 3e-2;

/// Page-locked memory for copies.
const PINNED_BYTES: usize = 64 << 20;

/// How far transformers in bfloat16 is from its float32 on one case; `tests/reference/bf16_noise.py` wrote it.
#[derive(Deserialize)]
struct Noise {
    logits: f64,
    forced_logits: f64,
    max_difference: f64,
}

/// Sums of squares over a family's cases: our differences, transformers' in bfloat16, the reference itself.
#[derive(Default)]
struct Pooled {
    ours: f64,
    noise: f64,
    size: f64,
}

impl Pooled {
    fn add(&mut self, got: &[f32], expected: &[f32], noise: f64) {
        assert_eq!(got.len(), expected.len());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let size: f64 = expected.iter().copied().map(square).sum();
        self.ours += got.iter().zip(expected).map(|(a, b)| square(a - b)).sum::<f64>();
        self.noise += noise * noise * size;
        self.size += size;
    }

    fn ratio(&self) -> f64 {
        (self.ours / self.noise).sqrt()
    }

    fn error(&self) -> f64 {
        (self.ours / self.size).sqrt()
    }
}

/// The GPU, for one test at a time: the counters are the whole process's.
fn gpu() -> Option<(Device, MutexGuard<'static, ()>)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    match Device::cuda(0) {
        Ok(device) => Some((device, ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))),
        Err(error) => {
            assert!(std::env::var_os("FOVEAL_REQUIRE_GPU").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

fn noise(golden: &Golden) -> BTreeMap<String, Noise> {
    let path = golden.dir().join("bf16_noise.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The largest error of a case's features; the reference keeps every third row.
fn feature_error(golden: &Golden, case: &GoldenCase, features: &Features) -> f64 {
    let names = (0..features.deepstack.len()).map(|i| format!("deepstack.{i}"));
    let names = std::iter::once("image_embeds".to_owned()).chain(names);
    let errors = names.zip(features.levels()).map(|(name, tensor)| {
        let expected = golden.array(&format!("{}.{name}", case.name));
        let values = floats(tensor);
        let rows = values.chunks_exact(tensor.shape().row_len());
        let every_third: Vec<f32> = rows.step_by(3).flatten().copied().collect();
        max_abs_relative_to_max(&every_third, &expected.values)
    });
    errors.fold(0.0, f64::max)
}

/// Greedy ids part only at a step where the reference's two best are closer than two logits can be off.
fn check_greedy(case: &GoldenCase, tokens: &[TokenOutput], max_difference: f64) {
    let ids: Vec<u32> = tokens.iter().map(|token| token.token_id.0).collect();
    if let Some(step) = case.greedy_ids.iter().zip(&ids).position(|(a, b)| a != b) {
        let gap = f64::from(case.greedy_top2_gaps[step]);
        assert!(gap <= 2.0 * max_difference, "{} step {step}: {ids:?}, a gap of {gap}", case.name);
        println!("{}: parts at step {step}, where the two best are {gap} apart", case.name);
    }
}

fn check_family(family: &str) {
    let Some((device, _alone)) = gpu() else { return };
    let _pool = foveal_pinned::install(&device, PINNED_BYTES);
    let pipeline = Pipeline::open(Reference::open(family, device));
    let golden = &pipeline.reference.golden;
    let noise = noise(golden);
    let max_difference = noise.values().map(|noise| noise.max_difference).fold(0.0, f64::max);
    let (mut first, mut forced, mut worst_feature) = (Pooled::default(), Pooled::default(), 0.0_f64);
    let mut alone = Vec::new();
    for case in golden.cases() {
        let request = pipeline.reference.prepare(case);
        let ids: Vec<u32> = request.input_ids.iter().map(|id| id.0).collect();
        assert_eq!(ids, case.prompt_ids, "{}", case.name);
        let features = pipeline.encode(&request);
        assert_eq!(features.is_some(), !case.images.is_empty());
        if let Some(features) = &features {
            worst_feature = worst_feature.max(feature_error(golden, case, features));
        }
        let logits = pipeline.logits(&request, features.as_ref(), &case.forced_ids);
        let own = &noise[&case.name];
        for (pooled, got, name, noise) in [
            (&mut first, logits[0].clone(), "logits", own.logits),
            (&mut forced, logits[1..].concat(), "forced_logits", own.forced_logits),
        ] {
            let expected = golden.array(&format!("{}.{name}", case.name));
            pooled.add(&got, &expected.values, noise);
            let mut one = Pooled::default();
            one.add(&got, &expected.values, noise);
            alone.push((format!("{} {name}", case.name), one.error()));
        }
        check_greedy(case, &answer(&pipeline.engine, request), max_difference);
    }
    let pooled_noise = (first.noise / first.size).sqrt().max((forced.noise / forced.size).sqrt());
    println!(
        "{family}: logits {:.2e} ({:.2} of bfloat16's), forced logits {:.2e} ({:.2}), features {worst_feature:.1e}",
        first.error(),
        first.ratio(),
        forced.error(),
        forced.ratio()
    );
    assert!(first.ratio() <= MAX_NOISE_RATIO && forced.ratio() <= MAX_NOISE_RATIO);
    for (name, error) in alone {
        assert!(error <= MAX_CASE_RATIO * pooled_noise, "{name}: {error:.2e}, noise {pooled_noise:.2e}");
    }
    assert!(worst_feature <= MAX_FEATURE_ERROR, "{worst_feature}");
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

/// Between two tokens of one request nothing is allocated and nothing is copied from pageable memory, and the host waits
/// for one event.
#[test]
fn a_token_costs_one_wait_and_no_allocation() {
    let Some((device, _alone)) = gpu() else { return };
    let reference = Reference::open("tiny", device);
    let engine = reference.engine().build().unwrap();
    let case = reference.golden.case("text_count");
    // A first request may make what later ones use again.
    let expected = answer(&engine, reference.prepare(case));
    let mut seen = Vec::new();
    for delta in engine.generate(reference.prepare(case)).blocking() {
        if matches!(delta.unwrap(), Delta::Token(_)) {
            seen.push(counters());
        }
    }
    assert_eq!(seen.len(), expected.len());
    assert!(seen.len() > 8, "{} tokens", seen.len());
    // The engine may be steps ahead of who reads: what is compared is the whole answer beyond its first tokens.
    let (start, end) = (seen[2], counters());
    assert_eq!(end.allocations, start.allocations);
    assert_eq!(end.synchronises, start.synchronises);
    assert_eq!(end.pageable_copies, 0);
    assert!(end.event_waits - start.event_waits <= seen.len() as u64, "{start:?} {end:?}");
    assert!(end.launches > 0 && end.pinned_copies > 0, "{end:?}");
}

/// How the engine cuts a prompt changes no token by more than noise may.
#[test]
fn chunks_give_the_same_answer() {
    let Some((device, _alone)) = gpu() else { return };
    let reference = Reference::open("tiny", device);
    let noise = noise(&reference.golden);
    let max_difference = noise.values().map(|noise| noise.max_difference).fold(0.0, f64::max);
    for chunk in [7, 48, 512] {
        let engine = reference.engine().max_num_batched_tokens(chunk).build().unwrap();
        for name in ["image_0", "three_images", "text_long"] {
            let case = reference.golden.case(name);
            check_greedy(case, &answer(&engine, reference.prepare(case)), max_difference);
        }
    }
}
