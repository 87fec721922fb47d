//! `foveal run` with FP8 weights and an FP8 cache.

mod common;

use std::path::Path;

use common::{foveal, run_tiny, shapes, tiny};
use foveal_testkit::fp8::{Quantizer, Scheme};

/// What the float model answers, and what the picture shows.
const TRUE_CONTENT: &str = "There are four shapes: an orange cross on the left, a blue star on the right, a black \
                            triangle at the bottom left and a purple square at the bottom right.";

fn describe(model: &Path, options: &[&str]) -> common::Outcome {
    let shapes = shapes();
    let mut args = vec!["run", "--model", model.to_str().unwrap(), "--image", shapes.to_str().unwrap()];
    args.extend(options);
    args.push("Describe the picture.");
    foveal(args)
}

#[test]
fn every_published_format_describes_the_picture() {
    for scheme in Scheme::ALL {
        let dir = tempfile::tempdir().unwrap();
        // Of this model's activations none is beyond 105.
        Quantizer::new(scheme).input_scale(|_| 0.25).kv_scales([0.05, 0.05]).folder(&tiny(), dir.path());
        assert_eq!(describe(dir.path(), &[]).answer(), TRUE_CONTENT, "{scheme:?}");
        let outcome = describe(dir.path(), &["--kv-cache-dtype", "fp8"]);
        assert_eq!(outcome.answer(), TRUE_CONTENT, "{scheme:?}");
        assert_eq!(outcome.stderr, "", "the checkpoint has scales for the cache");
        assert_eq!(describe(dir.path(), &["--quantization", "none"]).answer(), TRUE_CONTENT, "{scheme:?}");
    }
}

#[test]
fn a_float_model_is_rounded_while_it_is_loaded() {
    let outcome = describe(&tiny(), &["--quantization", "fp8", "--kv-cache-dtype", "fp8"]);
    assert_eq!(outcome.answer(), TRUE_CONTENT);
    // Said once, and the answer comes all the same.
    assert_eq!(outcome.stderr.matches("no scales for an FP8 KV cache").count(), 1, "{}", outcome.stderr);
}

#[test]
fn other_words_are_refused_with_those_that_are_known() {
    let refused = run_tiny(["--quantization", "awq", "Hello"]);
    let text = refused.refusal();
    assert!(text.contains("--quantization") && text.contains("`awq`") && text.contains("fp8"), "{text}");
    let refused = run_tiny(["--kv-cache-dtype", "int8", "Hello"]);
    let text = refused.refusal();
    assert!(text.contains("--kv-cache-dtype") && text.contains("`int8`") && text.contains("bfloat16"), "{text}");
}
