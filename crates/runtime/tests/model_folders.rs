//! Model folders that are not what they should be: status 2, nothing on stdout, and an error that names the file.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{ask, foveal, tiny, tiny_copy};
use foveal_checkpoint::{HostTensor, ModelFolder, WeightSource};

/// Rewrites the weights of a folder, tensor by tensor.
fn rewrite(dir: &Path, change: impl Fn(HostTensor) -> Option<HostTensor>, more: Vec<HostTensor>) {
    let source = WeightSource::open(&ModelFolder::open(dir).unwrap()).unwrap();
    let read = |info: foveal_checkpoint::TensorInfo<'_>| {
        let tensor = source.get(info.name, info.shape).unwrap();
        let bytes: Vec<u8> =
            tensor.view().as_slice::<half::bf16>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
        let (name, shape) = (info.written_name.to_owned(), info.shape.to_vec());
        HostTensor { name, dtype: tensor.dtype(), shape, bytes: Arc::new(bytes) }
    };
    let tensors: Vec<HostTensor> = source.tensors().map(read).filter_map(change).chain(more).collect();
    let changed = WeightSource::in_memory("changed", tensors).unwrap();
    // Another file first: the old one is still mapped.
    let new = dir.join("new.safetensors");
    changed.write_safetensors(&new).unwrap();
    fs::rename(new, dir.join("model.safetensors")).unwrap();
}

fn edit(dir: &Path, file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(dir.join(file)).unwrap();
    assert!(text.contains(from));
    fs::write(dir.join(file), text.replacen(from, to, 1)).unwrap();
}

#[track_caller]
fn refused(dir: &Path, names: &[&str]) {
    let outcome = ask(dir);
    let error = outcome.refusal();
    for name in names {
        assert!(error.contains(name), "{name} in: {error}");
    }
}

#[test]
fn a_folder_that_is_rewritten_unchanged_still_answers() {
    let dir = tiny_copy();
    rewrite(dir.path(), Some, vec![]);
    assert_eq!(ask(dir.path()).answer(), ask(&tiny()).answer());
}

#[test]
fn tensors_that_are_missing_misshapen_or_surplus_are_named() {
    const NORM: &str = "model.language_model.layers.2.mlp.down_proj.weight";
    let dir = tiny_copy();
    rewrite(dir.path(), |tensor| (tensor.name != NORM).then_some(tensor), vec![]);
    refused(dir.path(), &[NORM, "[256, 640]", "model.safetensors"]);

    let dir = tiny_copy();
    let turn = |tensor: HostTensor| {
        let shape = if tensor.name == NORM { vec![640, 256] } else { tensor.shape.clone() };
        Some(HostTensor { shape, ..tensor })
    };
    rewrite(dir.path(), turn, vec![]);
    refused(dir.path(), &[NORM, "[640, 256]", "[256, 640]", "model.safetensors"]);

    let dir = tiny_copy();
    let dtype = foveal_device::DType::BF16;
    let extra = |name: &str| HostTensor { name: name.into(), dtype, shape: vec![2], bytes: Arc::new(vec![0_u8; 4]) };
    rewrite(dir.path(), Some, vec![extra("model.visual.blocks.9.norm1.weight"), extra("what.is.this")]);
    refused(dir.path(), &["model.visual.blocks.9.norm1.weight", "what.is.this", "2 tensor(s)"]);
}

#[test]
fn shards_that_are_cut_short_or_damaged_are_named() {
    let dir = tiny_copy();
    let weights = dir.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let (half, whole) = ((bytes.len() / 2).to_string(), bytes.len().to_string());
    refused(dir.path(), &["model.safetensors", &half, &whole]);
    fs::write(&weights, &bytes[..4]).unwrap();
    refused(dir.path(), &["model.safetensors", "4 bytes"]);
    let mut damaged = bytes;
    damaged[9] = b'!';
    fs::write(&weights, &damaged).unwrap();
    refused(dir.path(), &["model.safetensors"]);
    fs::remove_file(&weights).unwrap();
    refused(dir.path(), &["model.safetensors", "does not exist"]);
}

#[test]
fn architectures_that_are_unknown_or_not_supported_are_named() {
    let dir = tiny_copy();
    edit(dir.path(), "config.json", "\"qwen3_vl\"", "\"llama4\"");
    refused(dir.path(), &["config.json", "llama4", "qwen3_vl"]);
    let dir = tiny_copy();
    edit(dir.path(), "config.json", "\"hidden_size\": 256", "\"hidden_size\": -1");
    refused(dir.path(), &["config.json", "hidden_size", "-1"]);
    let dir = tiny_copy();
    fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    refused(dir.path(), &["config.json", "JSON"]);
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    // The tokenizer's config may hold a template, too.
    for files in [&["config.json"][..], &["tokenizer.json"], &["chat_template.jinja", "tokenizer_config.json"]] {
        let dir = tiny_copy();
        for file in files {
            fs::remove_file(dir.path().join(file)).unwrap();
        }
        refused(dir.path(), &files[..1]);
    }
    for file in ["tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"] {
        let dir = tiny_copy();
        fs::write(dir.path().join(file), "{% if").unwrap();
        refused(dir.path(), &[file]);
    }
    let dir = tiny_copy();
    edit(dir.path(), "preprocessor_config.json", "\"patch_size\": 16", "\"patch_size\": 14");
    refused(dir.path(), &["preprocessor_config.json", "14", "16"]);
}

#[test]
fn a_folder_without_picture_settings_takes_text_only() {
    let dir = tiny_copy();
    fs::remove_file(dir.path().join("preprocessor_config.json")).unwrap();
    assert_eq!(ask(dir.path()).answer(), ask(&tiny()).answer());
    let shapes = common::shapes();
    let args = ["run", "--model", dir.path().to_str().unwrap(), "--image", shapes.to_str().unwrap(), "Hello"];
    assert!(foveal(args).refusal().contains("preprocessor_config.json"));
}

#[test]
fn folders_that_are_none_are_named() {
    refused(Path::new("no/such/folder"), &["no/such/folder", "does not exist"]);
    refused(&tiny().join("config.json"), &["config.json", "it is a file"]);
}

#[test]
fn inspect_shows_what_run_would_take() {
    let dir = tiny();
    let inspect = |args: &[&str]| foveal([&["inspect", dir.to_str().unwrap()], args].concat());
    let page = inspect(&[]);
    for text in ["Qwen3-VL", "vision tower", "decoder", "output head", "bf16", "KV cache for 8192 tokens"] {
        assert!(page.answer().contains(text), "{text}");
    }
    assert!(inspect(&["--tensors"]).answer().contains("lm_head.weight"));
    let json = inspect(&["--json", "--tensors", "--max-model-len", "1000"]).json();
    let file_bytes = fs::metadata(dir.join("model.safetensors")).unwrap().len();
    let weights = json["memory"]["weights_bytes"].as_u64().unwrap();
    assert!(weights < file_bytes && file_bytes - weights < 100_000, "all but the header: {weights} {file_bytes}");
    // 4 layers, keys and values, 2 heads of 128 float32.
    assert_eq!(json["memory"]["kv_bytes_per_token"], 4 * 2 * 2 * 128 * 4);
    assert_eq!(json["memory"]["kv_cache_bytes"], 1000 * 4 * 2 * 2 * 128 * 4);
    let counted: u64 = json["components"].as_array().unwrap().iter().map(|c| c["tensors"].as_u64().unwrap()).sum();
    assert_eq!(json["tensors"].as_array().unwrap().len() as u64, counted);
    assert_eq!(json["unsupported"], serde_json::Value::Null);
}

#[test]
fn inspect_refuses_what_run_refuses() {
    #[track_caller]
    fn both_refuse(dir: &Path, args: &[&str], names: &[&str]) {
        let dir = dir.to_str().unwrap();
        for command in [&["inspect", dir][..], &["run", "Hello", "--model", dir]] {
            let outcome = foveal([command, args].concat());
            let error = outcome.refusal();
            names.iter().for_each(|name| assert!(error.contains(name), "{command:?}: {name} in {error}"));
        }
    }
    const HEAD: &str = "lm_head.weight";
    let dir = tiny_copy();
    rewrite(dir.path(), |tensor| (tensor.name != HEAD).then_some(tensor), vec![]);
    both_refuse(dir.path(), &[], &[HEAD, "missing"]);

    let dir = tiny_copy();
    let dtype = foveal_device::DType::BF16;
    let extra = HostTensor { name: "what.is.this".into(), dtype, shape: vec![2], bytes: Arc::new(vec![0_u8; 4]) };
    rewrite(dir.path(), Some, vec![extra]);
    both_refuse(dir.path(), &[], &["what.is.this", "1 tensor(s)"]);

    let dir = tiny_copy();
    let as_integers = |tensor: HostTensor| {
        if tensor.name != HEAD {
            return Some(tensor);
        }
        let bytes = vec![0_u8; tensor.shape.iter().product::<usize>() * 4];
        Some(HostTensor { dtype: foveal_device::DType::I32, bytes: Arc::new(bytes), ..tensor })
    };
    rewrite(dir.path(), as_integers, vec![]);
    both_refuse(dir.path(), &[], &[HEAD, "I32", "bf16"]);

    both_refuse(&tiny(), &["--max-model-len", "100000"], &["--max-model-len is 100000", "8192"]);
    both_refuse(Path::new("no/such/folder"), &[], &["no/such/folder"]);
}

#[test]
fn pixels_that_the_tower_can_not_be_given_are_refused() {
    let dir = tiny_copy();
    let stills = fs::read_to_string(dir.path().join("preprocessor_config.json")).unwrap();
    fs::write(dir.path().join("video_preprocessor_config.json"), &stills).unwrap();
    ask(dir.path()).answer();
    edit(dir.path(), "video_preprocessor_config.json", "0.5", "0.25");
    refused(dir.path(), &["video_preprocessor_config.json", "normalisation", "0.25"]);
    let dir = tiny_copy();
    edit(dir.path(), "preprocessor_config.json", "\"patch_size\"", "\"rescale_factor\": 0, \"patch_size\"");
    refused(dir.path(), &["preprocessor_config.json", "rescale_factor"]);
}
