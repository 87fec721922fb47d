//! Small model folders in temporary directories.

use std::fs;
use std::path::{Path, PathBuf};

use foveal_checkpoint::{CheckpointError, ModelConfig, ModelFolder, WeightSource};
use foveal_testkit::fixtures_dir;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A tensor of a test file: name, shape, and bf16 elements that count up from `first`.
pub(crate) struct Counting(pub(crate) &'static str, pub(crate) &'static [usize], pub(crate) u16);

impl Counting {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        (0..self.1.iter().product::<usize>() as u16).flat_map(|i| (self.2 + i).to_le_bytes()).collect()
    }
}

/// The bytes of a safetensors file.
pub(crate) fn safetensors_bytes(tensors: &[Counting]) -> Vec<u8> {
    let bytes: Vec<_> = tensors.iter().map(Counting::bytes).collect();
    let views = tensors.iter().zip(&bytes).map(|(t, b)| (t.0, TensorView::new(Dtype::BF16, t.1.to_vec(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A safetensors file with a header of one's own.
pub(crate) fn with_header(header: &[u8], tensor_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + tensor_bytes, 0);
    file
}

/// A directory with these files.
pub(crate) fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

pub(crate) fn open_weights(dir: &Path) -> Result<WeightSource, CheckpointError> {
    WeightSource::open(&ModelFolder::open(dir)?)
}

pub(crate) fn golden_dir(family: &str) -> PathBuf {
    fixtures_dir().join("goldens").join(family)
}

pub(crate) fn read_config(dir: &Path) -> ModelConfig {
    ModelConfig::load(&ModelFolder::open(dir).unwrap()).unwrap()
}

/// The JSON of a committed config.
pub(crate) fn config_json(family: &str) -> Value {
    let dir = if family == "tiny" { fixtures_dir().join("tiny") } else { golden_dir(family) };
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

pub(crate) fn parse(config: &Value) -> Result<ModelConfig, CheckpointError> {
    ModelConfig::from_json(&serde_json::to_vec(config).unwrap(), "config.json")
}

/// An index of two shards, `a.safetensors` and `b.safetensors`.
pub(crate) fn index(tensors: &[(&str, &str)]) -> Vec<u8> {
    let weight_map: serde_json::Map<_, _> = tensors.iter().map(|(t, f)| ((*t).to_owned(), json!(f))).collect();
    serde_json::to_vec(&json!({ "metadata": {}, "weight_map": weight_map })).unwrap()
}

/// Asserts that an error's sentence has all these parts.
#[track_caller]
pub(crate) fn assert_says(error: &CheckpointError, parts: &[&str]) {
    let sentence = error.to_string();
    for part in parts {
        assert!(sentence.contains(part), "`{sentence}` does not say `{part}`");
    }
}
