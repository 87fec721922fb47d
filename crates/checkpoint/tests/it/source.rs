//! What a weight source hands out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foveal_checkpoint::{CheckpointError, Component, HostTensor, ModelFolder, WeightSource, prefix};
use foveal_device::{DType, Tensor, allocated_bytes};
use foveal_testkit::fixtures_dir;
use half::bf16;

use crate::support::{Counting, folder, index, open_weights, read_config, safetensors_bytes};

fn bits(tensor: &Tensor) -> Vec<u16> {
    tensor.view().as_slice::<bf16>().unwrap().iter().map(|x| x.to_bits()).collect()
}

fn address(tensor: &Tensor) -> usize {
    tensor.view().as_slice::<bf16>().unwrap().as_ptr().addr()
}

/// Every tensor of the trained model is asked for by its config, and none is left over.
#[test]
fn the_tiny_model_is_complete() {
    let folder = ModelFolder::open(fixtures_dir().join("tiny")).unwrap();
    assert_eq!(folder.name(), "tiny");
    let config = read_config(&fixtures_dir().join("tiny"));
    let weights = WeightSource::open(&folder).unwrap();
    let before = allocated_bytes();
    let tensors: Vec<_> =
        config.tensors().unwrap().iter().map(|spec| weights.get(&spec.name, &spec.shape).unwrap()).collect();
    weights.finish(&[prefix::ALL]).unwrap();
    assert!(tensors.iter().all(|t| t.dtype() == DType::BF16));
    assert_eq!(tensors.iter().map(|t| t.len_bytes() as u64).sum::<u64>(), weights.total_bytes());
    assert_eq!(allocated_bytes(), before, "a mapped tensor takes no memory of its own");
}

#[test]
fn a_tower_loads_alone() {
    let config = read_config(&fixtures_dir().join("tiny"));
    let weights = open_weights(&fixtures_dir().join("tiny")).unwrap();
    for spec in config.tensors().unwrap().iter().filter(|spec| spec.name.starts_with(prefix::VISION)) {
        weights.get(&spec.name, &spec.shape).unwrap();
    }
    weights.finish(&[prefix::VISION]).unwrap();
    assert!(matches!(weights.finish(&[prefix::ALL]), Err(CheckpointError::SurplusTensors { .. })));
}

#[test]
fn shards_are_mapped_in_place_and_tensors_are_shared() {
    let (x, y) = (Counting("model.x.weight", &[3, 2], 7), Counting("model.y.weight", &[5], 50));
    let a = safetensors_bytes(&[x, y]);
    let b = safetensors_bytes(&[Counting("visual.z.weight", &[2], 90)]);
    let index =
        index(&[("model.x.weight", "a.safetensors"), ("model.y.weight", "a.safetensors"), ("visual.z.weight", "b")]);
    let dir = folder(&[("a.safetensors", &a), ("b", &b), ("model.safetensors.index.json", &index)]);
    let weights = open_weights(dir.path()).unwrap();
    let text = weights.at(prefix::TEXT);
    let (x, y) = (text.get("x.weight", &[3, 2]).unwrap(), text.get("y.weight", &[5]).unwrap());
    assert_eq!(bits(&x), [7, 8, 9, 10, 11, 12]);
    assert_eq!(bits(&y), [50, 51, 52, 53, 54]);
    assert_eq!(address(&y), address(&x) + x.len_bytes(), "both are views of one map");
    assert!(Arc::ptr_eq(&x, &weights.get("model.language_model.x.weight", &[3, 2]).unwrap()));
    let z = weights.at("model").at("visual").get("z.weight", &[2]).unwrap();
    assert_eq!(bits(&z), [90, 91]);

    // Views outlive the source and the folder.
    drop(weights);
    drop(dir);
    assert_eq!(bits(&x), [7, 8, 9, 10, 11, 12]);
}

/// A file whose tensors begin at odd bytes is read all the same.
#[test]
fn tensors_that_lie_badly_are_copied() {
    let header = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[1,5]}} "#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(&[9, 1, 0, 2, 0]);
    // One of the two files has `b` at an odd address, whatever the header's length is.
    for pad in [&b""[..], b" "] {
        let mut file = file.clone();
        let len = (header.len() + pad.len()) as u64;
        file.splice(8 + header.len()..8 + header.len(), pad.iter().copied());
        file[..8].copy_from_slice(&len.to_le_bytes());
        let dir = folder(&[("model.safetensors", &file)]);
        let weights = open_weights(dir.path()).unwrap();
        assert_eq!(bits(&weights.get("b", &[2]).unwrap()), [1, 2]);
    }
}

#[test]
fn embedded_and_in_memory_weights() {
    let file: &'static [u8] =
        Box::leak(safetensors_bytes(&[Counting("lm_head.weight", &[2, 2], 3)]).into_boxed_slice());
    let folder = ModelFolder::embedded("built-in", vec![("model.safetensors", file), ("x.json", b"{\"a\": 1}")]);
    assert_eq!((folder.name(), folder.path_of("x.json")), ("built-in", None));
    assert_eq!(folder.json("x.json").unwrap().unwrap()["a"], 1);
    assert_eq!(folder.text("y.json").unwrap(), None);
    let weights = WeightSource::open(&folder).unwrap();
    assert_eq!(bits(&weights.get("lm_head.weight", &[2, 2]).unwrap()), [3, 4, 5, 6]);

    let tensor = |name: &str, bytes: Vec<u8>| HostTensor {
        name: name.to_owned(),
        dtype: DType::F32,
        shape: vec![2],
        bytes: Arc::new(bytes),
    };
    let one = tensor("visual.a", [1.0_f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect());
    let weights = WeightSource::in_memory("test", [one.clone()]).unwrap();
    let a = weights.get("model.visual.a", &[2]).unwrap();
    assert_eq!(a.view().as_slice::<f32>().unwrap(), [1.0, 2.0]);
    let error = WeightSource::in_memory("test", [tensor("short", vec![0; 7])]).unwrap_err();
    assert!(matches!(error, CheckpointError::Device { .. }), "{error}");
    let error = WeightSource::in_memory("test", [one.clone(), one]).unwrap_err();
    assert!(matches!(error, CheckpointError::DuplicateTensor { .. }), "{error}");
}

#[test]
fn progress_counts_each_tensor_once() {
    let dir = folder(&[("model.safetensors", &safetensors_bytes(&[Counting("a", &[4], 0), Counting("b", &[2], 0)]))]);
    let (done, total) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (seen_done, seen_total) = (done.clone(), total.clone());
    let weights = open_weights(dir.path()).unwrap().with_progress(move |done_bytes, total_bytes| {
        seen_done.store(done_bytes, Ordering::Relaxed);
        seen_total.store(total_bytes, Ordering::Relaxed);
    });
    for (name, shape, expected) in [("a", 4, 8), ("a", 4, 8), ("b", 2, 12)] {
        weights.get(name, &[shape]).unwrap();
        assert_eq!((done.load(Ordering::Relaxed), total.load(Ordering::Relaxed)), (expected, 12));
    }
}

#[test]
fn the_summary_adds_up() {
    let weights = open_weights(&fixtures_dir().join("tiny")).unwrap();
    let summary = weights.summary();
    assert_eq!(summary.keys().copied().collect::<Vec<_>>(), [Component::Vision, Component::Text, Component::Head]);
    assert_eq!(summary.values().map(|part| part.len_bytes).sum::<u64>(), weights.total_bytes());
    let head = &summary[&Component::Head];
    assert_eq!((head.num_tensors, head.num_parameters, head.len_bytes), (1, 1024 * 256, 2 * 1024 * 256));
    assert_eq!(head.dtypes.get("bf16"), Some(&head.len_bytes));
    // 4 layers, keys and values, 2 heads of 128, 2 bytes.
    let config = read_config(&fixtures_dir().join("tiny"));
    assert_eq!(config.text.kv_bytes_per_token(DType::BF16), 4 * 2 * 2 * 128 * 2);
}
