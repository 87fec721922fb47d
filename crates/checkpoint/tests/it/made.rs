//! Rebuilt and dummy weights.

use std::collections::BTreeMap;
use std::fs;

use foveal_checkpoint::{CheckpointError, Formula, ModelFolder, WeightSource, prefix};
use foveal_testkit::{assert_bitwise_equal, lay_out_model_folder, test_assets};
use half::bf16;
use serde_json::Value;

use crate::support::{assert_says, golden_dir, read_config};

const SUPPORTED: [&str; 3] = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl_tied"];

fn manifest(family: &str) -> Vec<u8> {
    fs::read(golden_dir(family).join("manifest.json")).unwrap()
}

/// The first four values of every tensor of six checkpoints are those that numpy wrote.
#[test]
fn every_manifest_is_reproduced() {
    for family in SUPPORTED.into_iter().chain(["qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]) {
        let bytes = manifest(family);
        let parsed: Value = serde_json::from_slice(&bytes).unwrap();
        let tensors = parsed["tensors"].as_array().unwrap();
        assert!(tensors.iter().all(|t| t["first4_bf16_bits"].as_array().unwrap().len() == 4));
        assert_eq!(WeightSource::rebuilt(&bytes, family).unwrap().tensors().len(), tensors.len());
    }
}

/// The list of tensors that a config asks for is the list that transformers saved.
#[test]
fn configs_list_the_tensors_that_checkpoints_have() {
    for family in SUPPORTED {
        let config = read_config(&golden_dir(family));
        let weights = WeightSource::rebuilt(&manifest(family), family).unwrap();
        let saved: BTreeMap<_, _> = weights.tensors().map(|t| (t.name.to_owned(), t.shape.to_vec())).collect();
        let specs = config.tensors().unwrap();
        let listed: BTreeMap<_, _> = specs.iter().map(|s| (s.name.clone(), s.shape.clone())).collect();
        assert_eq!(listed, saved, "{family}");
        assert_eq!(specs.len(), saved.len(), "{family}: a name is listed twice");
        for spec in &specs {
            weights.get(&spec.name, &spec.shape).unwrap();
        }
        weights.finish(&[prefix::ALL]).unwrap();
    }
}

/// Dummy weights follow the same rule as the reference checkpoints.
#[test]
fn the_rule_for_scales_is_that_of_the_manifests() {
    for family in SUPPORTED {
        let is_tied = read_config(&golden_dir(family)).tie_word_embeddings;
        let parsed: Value = serde_json::from_slice(&manifest(family)).unwrap();
        for tensor in parsed["tensors"].as_array().unwrap() {
            let name = tensor["name"].as_str().unwrap();
            let shape: Vec<usize> =
                tensor["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
            let formula = Formula::for_tensor(11, name, &shape, is_tied);
            assert_eq!(Some(formula.offset), tensor["offset"].as_f64(), "{family} {name}");
            assert_eq!(Some(formula.scale), tensor["scale"].as_f64(), "{family} {name}");
        }
    }
}

#[test]
fn dummy_weights_of_the_same_seed_are_the_rebuilt_ones() {
    // This family's files have canonical names, which the formula hashes.
    let config = read_config(&golden_dir("qwen3_vl_tied"));
    let rebuilt = WeightSource::rebuilt(&manifest("qwen3_vl_tied"), "manifest.json").unwrap();
    let dummy = WeightSource::dummy(&config, 11).unwrap();
    assert_eq!(dummy.total_bytes(), rebuilt.total_bytes());
    for spec in config.tensors().unwrap() {
        let (a, b) = (dummy.get(&spec.name, &spec.shape).unwrap(), rebuilt.get(&spec.name, &spec.shape).unwrap());
        assert_bitwise_equal(a.view().as_slice::<bf16>().unwrap(), b.view().as_slice::<bf16>().unwrap());
    }
    let moe = read_config(&golden_dir("qwen3_vl_moe"));
    assert!(matches!(WeightSource::dummy(&moe, 0), Err(CheckpointError::Unsupported { .. })));
}

/// A rebuilt checkpoint becomes a model folder that opens like any other, names as they were.
#[test]
fn a_written_folder_holds_the_same_weights() {
    for family in SUPPORTED {
        let dir = tempfile::tempdir().unwrap();
        lay_out_model_folder(family, dir.path());
        let rebuilt = WeightSource::rebuilt(&manifest(family), "manifest.json").unwrap();
        rebuilt.write_safetensors(&dir.path().join("model.safetensors")).unwrap();

        let folder = ModelFolder::open(dir.path()).unwrap();
        let opened = WeightSource::open(&folder).unwrap();
        assert_eq!(opened.tensors().len(), rebuilt.tensors().len());
        for (made, read) in rebuilt.tensors().zip(opened.tensors()) {
            assert_eq!((made.name, made.written_name, made.shape), (read.name, read.written_name, read.shape));
            let (a, b) = (rebuilt.get(made.name, made.shape).unwrap(), opened.get(read.name, read.shape).unwrap());
            assert_bitwise_equal(a.view().as_slice::<bf16>().unwrap(), b.view().as_slice::<bf16>().unwrap());
        }
        assert_eq!(read_config(dir.path()), read_config(&golden_dir(family)));
    }
}

#[test]
fn a_file_that_can_not_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent/model.safetensors");
    let weights = WeightSource::rebuilt(&manifest("qwen2_vl"), "manifest.json").unwrap();
    let error = weights.write_safetensors(&path).unwrap_err();
    assert_says(&error, &["absent/model.safetensors", "can't be written", "does not exist"]);
}

#[test]
fn manifests_that_can_not_be() {
    let text = String::from_utf8(manifest("qwen2_vl")).unwrap();
    for (from, to, part) in [
        ("48651", "48652", "model.embed_tokens.weight the first bits [48651"),
        ("\"bfloat16\"", "\"float16\"", "`dtype` should be bfloat16"),
        ("\"offset\": 0.0", "\"offset\": \"x\"", "`tensors` should be a list"),
        ("[1024, 256]", "[1024, 4611686018427387904]", "can't be counted"),
        ("\"model.norm.weight\"", "\"model.norm.weight", "no valid JSON"),
    ] {
        let broken = text.replacen(from, to, 1);
        assert_ne!(broken, text);
        assert_says(&WeightSource::rebuilt(broken.as_bytes(), "m/manifest.json").unwrap_err(), &[part]);
    }
}

/// The published 2B model by its config alone: its size is public (2.1 billion parameters).
#[test]
fn a_published_config_makes_dummy_weights_of_its_size() {
    let Some(assets) = test_assets() else { return };
    let config = read_config(&assets.join("models/Qwen3-VL-2B-Instruct"));
    let weights = WeightSource::dummy(&config, 0).unwrap();
    assert_eq!(weights.total_bytes(), 2 * 2_127_532_032);
    // Nothing is made before it is asked for, and a norm is small.
    let norm = weights.get("model.language_model.norm.weight", &[2048]).unwrap();
    assert!(norm.view().as_slice::<bf16>().unwrap().iter().all(|x| (0.75..=1.25).contains(&x.to_f32())));
}
