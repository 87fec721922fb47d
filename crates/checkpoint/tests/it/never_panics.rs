//! Damaged files end in an error or in a sound result, never in a panic.

use std::fs;

use foveal_checkpoint::{
    CheckpointError, GenerationConfig, LinearFormat, ModelConfig, ModelFolder, WeightSource, prefix,
};
use foveal_device::DType;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Counting, config_json, folder, index, parse, safetensors_bytes, with_header};

/// A change to a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Flip(at, mask) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            Self::Flip(..) => {}
            Self::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            Self::Insert(at, extra) => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, extra.iter().copied());
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        4 => (any::<prop::sample::Index>(), 1_u8..).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        1 => (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, extra)| Damage::Insert(at, extra)),
    ];
    prop::collection::vec(one, 1..5)
}

fn damaged(bytes: &[u8], damage: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    damage.iter().for_each(|d| d.apply(&mut bytes));
    bytes
}

/// Everything that one can do with a source.
fn exercise(weights: &WeightSource) {
    for tensor in weights.tensors() {
        for taken in [weights.get(tensor.name, tensor.shape), weights.get_bytes(tensor.name, tensor.shape)] {
            match taken {
                Ok(taken) => assert_eq!(taken.len_bytes(), tensor.len_bytes),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
    exercise_fp8(weights);
    let _ = weights.finish(&[prefix::ALL]);
    assert_eq!(weights.summary().values().map(|part| part.len_bytes).sum::<u64>(), weights.total_bytes());
}

fn exercise_fp8(weights: &WeightSource) {
    let all = weights.at("");
    for tensor in weights.tensors() {
        if let (Some(module), &[n, k]) = (tensor.name.strip_suffix(".weight"), tensor.shape) {
            let scheme = all.linear_scheme(module, [n, k]);
            match (all.linear_format(module, [n, k]), scheme) {
                (Ok(LinearFormat::Float), scheme) => assert_eq!(scheme, Ok(None)),
                (Ok(LinearFormat::Fp8(format)), scheme) => assert_eq!(scheme, Ok(Some(format.scheme()))),
                (Err(CheckpointError::BadScale { .. }), Ok(_)) => {}
                (Err(error), scheme) => assert_eq!(scheme, Err(error)),
            }
            if let Ok(elements) = all.get_fp8(tensor.name, tensor.shape) {
                assert_eq!(elements.len_bytes(), tensor.len_bytes);
            }
        }
        if let Some((parent, _)) = tensor.name.rsplit_once('.') {
            let _ = all.kv_scales(parent);
        }
    }
}

fn exercise_config(config: &ModelConfig) {
    let _ = (config.text.kv_bytes_per_token(DType::F32), config.vision.patch_len(), config.vision.merged_size());
    if let Ok(specs) = config.tensors() {
        assert!(!specs.is_empty());
        let _ = WeightSource::dummy(config, 1);
    }
}

/// Paths of all values in a JSON document.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    if let Value::Object(map) = value {
        for (key, value) in map {
            let path = format!("{at}/{key}");
            pointers(value, &path, out);
            out.push(path);
        }
    }
}

/// What a checkpoint may say of its quantisation.
#[derive(Clone, Copy, Debug)]
enum Section {
    Official,
    Compressed,
    ModelOpt,
}

impl Section {
    fn json(self) -> Value {
        let float8 = json!({
            "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128], "dynamic": true,
            "group_size": 128, "symmetric": true
        });
        match self {
            Self::Official => json!({
                "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
                "modules_to_not_convert": ["lm_head"]
            }),
            Self::Compressed => json!({
                "quant_method": "compressed-tensors", "ignore": ["lm_head"], "kv_cache_scheme": float8,
                "config_groups": {"group_0": {"weights": float8, "input_activations": float8}},
                "sparsity_config": {"format": "dense"}
            }),
            Self::ModelOpt => json!({
                "quant_method": "modelopt",
                "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
            }),
        }
    }
}

fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!({})),
        Just(json!("default")),
        any::<i64>().prop_map(|n| json!(n)),
        any::<u64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|x| json!(x)),
        (0_u32..70_000).prop_map(|n| json!(n)),
        prop::collection::vec(0_u64..100, 0..5).prop_map(|list| json!(list)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn damaged_weights(damage in damage()) {
        let tensors = [Counting("visual.a", &[3, 2], 5), Counting("lm_head.weight", &[4], 9)];
        let bytes = damaged(&safetensors_bytes(&tensors), &damage);
        let dir = folder(&[("model.safetensors", &bytes)]);
        match WeightSource::open(&ModelFolder::open(dir.path()).unwrap()) {
            Ok(weights) => exercise(&weights),
            Err(error) => prop_assert!(error.to_string().contains("model.safetensors")),
        }
    }

    #[test]
    fn damaged_index(damage in damage()) {
        let shard = safetensors_bytes(&[Counting("a", &[3], 5), Counting("b", &[4], 9)]);
        let bytes = damaged(&index(&[("a", "s.safetensors"), ("b", "s.safetensors")]), &damage);
        let dir = folder(&[("s.safetensors", &shard), ("model.safetensors.index.json", &bytes)]);
        match WeightSource::open(&ModelFolder::open(dir.path()).unwrap()) {
            Ok(weights) => exercise(&weights),
            Err(error) => prop_assert!(error.to_string().contains("model.safetensors.index.json")),
        }
    }

    #[test]
    fn damaged_fp8_weights(damage in damage()) {
        let header = br#"{"l.weight":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]},"l.weight_scale":{"dtype":"BF16","shape":[2,1],"data_offsets":[6,10]},"l.input_scale":{"dtype":"F16","shape":[],"data_offsets":[10,12]},"a.k_scale":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},"a.v_scale":{"dtype":"F32","shape":[],"data_offsets":[16,20]}}"#;
        let mut bytes = with_header(header, 0);
        bytes.extend([0x3F; 20]);
        let dir = folder(&[("model.safetensors", &damaged(&bytes, &damage))]);
        match WeightSource::open(&ModelFolder::open(dir.path()).unwrap()) {
            Ok(weights) => exercise(&weights),
            Err(error) => prop_assert!(error.to_string().contains("model.safetensors")),
        }
    }

    #[test]
    fn odd_quantisation(
        section in prop::sample::select(&[Section::Official, Section::Compressed, Section::ModelOpt][..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), odd_value()), 1..4),
        is_file in any::<bool>(),
    ) {
        let mut config = config_json("tiny");
        let mut section = section.json();
        for (at, value) in changes {
            let mut paths = Vec::new();
            pointers(&section, "", &mut paths);
            if !paths.is_empty() {
                let path: &String = at.get(&paths);
                *section.pointer_mut(path).unwrap() = value;
            }
        }
        let file = serde_json::to_vec(&section).unwrap();
        let key = if is_file { "not_looked_at" } else { "quantization_config" };
        config[key] = section;
        let config = serde_json::to_vec(&config).unwrap();
        let dir = folder(&[("config.json", &config), ("hf_quant_config.json", &file)]);
        match ModelConfig::load(&ModelFolder::open(dir.path()).unwrap()) {
            Ok(config) => exercise_config(&config),
            Err(error) => prop_assert!(error.to_string().contains("quant"), "{error}"),
        }
    }

    #[test]
    fn damaged_config_bytes(family in prop::sample::select(&["tiny", "qwen2_vl", "qwen2_5_vl"][..]), damage in damage()) {
        let bytes = damaged(&serde_json::to_vec(&config_json(family)).unwrap(), &damage);
        match ModelConfig::from_json(&bytes, "config.json") {
            Ok(config) => exercise_config(&config),
            Err(error) => prop_assert!(error.to_string().contains("config.json")),
        }
    }

    #[test]
    fn odd_config_values(
        family in prop::sample::select(&["tiny", "qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_5"][..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), odd_value()), 1..4),
    ) {
        let mut config = config_json(family);
        for (at, value) in changes {
            let mut paths = Vec::new();
            pointers(&config, "", &mut paths);
            if !paths.is_empty() {
                let path: &String = at.get(&paths);
                *config.pointer_mut(path).unwrap() = value;
            }
        }
        if let Ok(config) = parse(&config) {
            exercise_config(&config);
        }
    }

    #[test]
    fn damaged_manifest_and_generation_config(damage in damage()) {
        let manifest = json!({"seed": 3, "dtype": "bfloat16", "tensors": [
            {"name": "a", "shape": [2, 3], "offset": 0.0, "scale": 0.5},
            {"name": "b", "shape": [], "offset": 1.0, "scale": 0.25},
        ]});
        if let Ok(weights) = WeightSource::rebuilt(&damaged(&serde_json::to_vec(&manifest).unwrap(), &damage), "m") {
            // A larger shape is a larger tensor: only what memory holds is made.
            if weights.total_bytes() < 1 << 20 {
                exercise(&weights);
            }
        }
        let generation = damaged(br#"{"eos_token_id": [1, 2], "top_k": 20, "top_p": 0.8, "temperature": 0.7}"#, &damage);
        let dir = folder(&[("generation_config.json", &generation)]);
        let text = parse(&config_json("tiny")).unwrap().text;
        let _ = GenerationConfig::load(&ModelFolder::open(dir.path()).unwrap(), &text);
        fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    }
}
