//! `foveal verify`: the real binary, the tiny model, and what HF transformers wrote about it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Outcome, foveal, tiny};
use foveal_testkit::fixtures_dir;
use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize};

fn reference() -> PathBuf {
    fixtures_dir().join("reference/tiny.safetensors")
}

fn verify(reference: &Path, more: &[&str]) -> Outcome {
    let (model, reference) = (tiny().display().to_string(), reference.display().to_string());
    let args = ["verify", "--device", "cpu", "--model", &model, "--reference", &reference];
    foveal(args.into_iter().chain(more.iter().copied()))
}

/// A copy of the reference in which one tensor's bytes are changed.
fn spoilt(folder: &Path, tensor: &str, spoil: impl Fn(&mut Vec<u8>)) -> PathBuf {
    let bytes = fs::read(reference()).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut copies = Vec::new();
    for (name, view) in tensors.tensors() {
        let mut data = view.data().to_vec();
        if name == tensor {
            spoil(&mut data);
        }
        copies.push((name, view.dtype(), view.shape().to_vec(), data));
    }
    let views =
        copies.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let path = folder.join("spoilt.safetensors");
    fs::write(&path, serialize(views, metadata.metadata().clone()).unwrap()).unwrap();
    path
}

#[test]
fn the_tiny_model_is_the_references() {
    let outcome = verify(&reference(), &[]);
    let lines: Vec<&str> = outcome.answer().lines().collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert!(lines[0].starts_with("against Qwen3VLForConditionalGeneration of transformers 5.17"), "{}", lines[0]);
    assert!(lines[1..].iter().all(|line| line.starts_with("ok ")), "{lines:?}");

    let json = verify(&reference(), &["--json"]).json();
    assert_eq!(json["good"], true);
    // Float32 against float32: far inside of bfloat16's noise.
    for errors in [&json["logits"], &json["forced"]] {
        assert!(errors["error"].as_f64().unwrap() < 1e-5 && errors["bf16_error"].as_f64().unwrap() > 1e-3, "{errors}");
    }
    let cases = json["cases"].as_array().unwrap();
    assert!(cases.iter().all(|case| case["same_best"] == 5 && case["same_prompt"] == true), "{json}");
}

#[test]
fn other_logits_and_other_prompts_are_found_out() {
    let folder = tempfile::tempdir().unwrap();
    // Little-endian float32: the sign of every logit.
    let signs = |data: &mut Vec<u8>| data.iter_mut().skip(3).step_by(4).for_each(|byte| *byte ^= 0x80);
    let outcome = verify(&spoilt(folder.path(), "one_image.logits", signs), &[]);
    assert_eq!(outcome.code(), Some(1));
    assert!(outcome.stdout.contains("BAD  one_image") && outcome.stdout.contains("ok   text"), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("not within the reference"), "{}", outcome.stderr);

    let outcome = verify(&spoilt(folder.path(), "text.prompt_ids", |data| data[0] ^= 1), &[]);
    assert_eq!(outcome.code(), Some(1));
    assert!(outcome.stdout.contains("NOT THE REFERENCE'S"), "{}", outcome.stdout);
}

#[test]
fn files_that_are_no_reference_and_other_weights_are_refused() {
    let refused = |outcome: Outcome, expected: &str| {
        assert!(outcome.refusal().contains(expected), "{outcome:?}");
    };
    refused(verify(&fixtures_dir().join("nowhere"), &[]), "can't be read");
    refused(verify(&fixtures_dir().join("tiny/config.json"), &[]), "it is no safetensors file");
    refused(verify(&fixtures_dir().join("tiny/model.safetensors"), &[]), "has no `foveal_reference`");
    refused(verify(&reference(), &["--load-format", "dummy"]), "about a model's own weights");
    refused(verify(&reference(), &["--load-format", "gguf"]), "--load-format is `gguf`");
    let folder = tempfile::tempdir().unwrap();
    let half = folder.path().join("half.safetensors");
    let bytes = fs::read(reference()).unwrap();
    fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    refused(verify(&half, &[]), "can't be read");
}
