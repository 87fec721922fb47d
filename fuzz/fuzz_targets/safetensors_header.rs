//! A weight file: its header, and every tensor that it declares.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;
use std::{env, fs, process};

use foveal_checkpoint::{ModelFolder, WeightSource, prefix};
use libfuzzer_sys::fuzz_target;

/// A folder of this process, for weights come from files.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = env::temp_dir().join(format!("foveal-fuzz-{}", process::id()));
    fs::create_dir_all(&folder).expect("a folder for the weight file");
    folder
});

fuzz_target!(|file: &[u8]| {
    fs::write(FOLDER.join("model.safetensors"), file).expect("the weight file is written");
    let folder = ModelFolder::open(&*FOLDER).expect("the folder is there");
    match WeightSource::open(&folder) {
        Ok(weights) => check(&weights, file.len()),
        Err(error) => drop(error.to_string()),
    }
});

/// Every tensor lies in the file and can be had in one of the ways that there are.
fn check(weights: &WeightSource, file_len: usize) {
    let tensors: Vec<_> = weights.tensors().collect();
    let len_bytes: usize = tensors.iter().map(|tensor| tensor.len_bytes).sum();
    assert_eq!(weights.total_bytes(), len_bytes as u64);
    assert!(len_bytes < file_len);
    let summary = weights.summary();
    assert_eq!(summary.values().map(|part| part.num_tensors).sum::<usize>(), tensors.len());

    for tensor in &tensors {
        let (name, shape) = (tensor.name, tensor.shape);
        let got = [weights.get(name, shape), weights.get_fp8(name, shape), weights.get_bytes(name, shape)];
        for tensor_got in got.into_iter().flatten() {
            assert_eq!(**tensor_got.shape(), *shape);
            let num_elements: usize = shape.iter().product();
            assert_eq!(num_elements * tensor_got.dtype().size_bytes(), tensor.len_bytes);
        }
    }
    if let Err(error) = weights.finish(&[prefix::ALL]) {
        drop(error.to_string());
    }
}
