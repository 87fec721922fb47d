//! Weight files that can't be: every error names the file, the tensor and what was expected.

use std::fs;

use foveal_checkpoint::{CheckpointError, ModelFolder, WeightSource, prefix};

use crate::support::{Counting, assert_says, folder, index, open_weights, safetensors_bytes, with_header};

const NORM: Counting = Counting("model.visual.merger.norm.weight", &[4], 0);
const HEAD: Counting = Counting("lm_head.weight", &[2, 3], 100);

#[test]
fn a_folder_without_weights() {
    let dir = folder(&[]);
    let error = open_weights(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingFile { .. }));
    assert_says(&error, &["model.safetensors", "does not exist", "model.safetensors.index.json"]);
}

#[test]
fn a_directory_where_the_weights_should_be() {
    let dir = folder(&[]);
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert_says(&open_weights(dir.path()).unwrap_err(), &["model.safetensors", "can't be read", "is a directory"]);
}

#[test]
fn headers_that_can_not_be_understood() {
    let overlap =
        br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    let twice =
        br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    let shape = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#;
    let huge = br#"{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}"#;
    let dtype = br#"{"a":{"dtype":"Q4","shape":[2],"data_offsets":[0,1]}}"#;
    let cases: [(Vec<u8>, &str); 10] = [
        (vec![], "it has 0 bytes"),
        (vec![1, 2, 3], "it has 3 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "more than any"),
        (with_header(b"{\"a\"", 0), "no JSON table"),
        (with_header(&[b'"', 0xFF, b'"'], 0), "no UTF-8"),
        (with_header(overlap, 3), "the bytes of b don't follow"),
        (with_header(twice, 4), "or a name stands twice"),
        (with_header(shape, 4), "not those of its shape"),
        (with_header(huge, 4), "larger than any memory"),
        (with_header(dtype, 1), "known dtypes"),
    ];
    for (bytes, reason) in cases {
        let dir = folder(&[("model.safetensors", &bytes)]);
        let error = open_weights(dir.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::CorruptShard { .. }), "{reason}: {error}");
        assert_says(&error, &["model.safetensors", reason]);
    }
}

#[test]
fn files_cut_short_say_how_long_they_should_be() {
    let whole = safetensors_bytes(&[NORM, HEAD]);
    let full_len = whole.len().to_string();
    for len in [whole.len() - 1, whole.len() - 20] {
        let dir = folder(&[("model.safetensors", &whole[..len])]);
        let error = open_weights(dir.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::WrongShardLength { .. }));
        assert_says(&error, &["model.safetensors", &format!("has {len} bytes"), &full_len]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    let dir = folder(&[("model.safetensors", &longer)]);
    assert!(matches!(open_weights(dir.path()), Err(CheckpointError::WrongShardLength { .. })));

    // Cut inside the header: only the header's own length is known.
    let dir = folder(&[("model.safetensors", &whole[..40])]);
    let error = open_weights(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::WrongShardLength { got: 40, .. }), "{error}");
}

#[test]
fn a_truncated_shard_is_named() {
    let (a, b) = (safetensors_bytes(&[NORM]), safetensors_bytes(&[HEAD]));
    let index = index(&[(NORM.0, "a.safetensors"), (HEAD.0, "b.safetensors")]);
    let files: [(&str, &[u8]); 3] =
        [("a.safetensors", &a), ("b.safetensors", &b[..b.len() - 2]), ("model.safetensors.index.json", &index)];
    let dir = folder(&files);
    assert_says(&open_weights(dir.path()).unwrap_err(), &["b.safetensors", "cut short"]);
}

#[test]
fn a_shard_that_is_not_there() {
    let a = safetensors_bytes(&[NORM]);
    let index = index(&[(NORM.0, "a.safetensors"), (HEAD.0, "b.safetensors")]);
    let dir = folder(&[("a.safetensors", &a), ("model.safetensors.index.json", &index)]);
    let error = open_weights(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingShard { .. }));
    assert_says(&error, &["b.safetensors does not exist", "index.json", HEAD.0]);
}

#[test]
fn a_tensor_that_is_not_in_its_shard() {
    let a = safetensors_bytes(&[NORM]);
    let index = index(&[(NORM.0, "a.safetensors"), (HEAD.0, "a.safetensors")]);
    let dir = folder(&[("a.safetensors", &a), ("model.safetensors.index.json", &index)]);
    let error = open_weights(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::NotInShard { .. }));
    assert_says(&error, &["a.safetensors does not hold lm_head.weight", "index.json"]);
}

#[test]
fn a_tensor_that_is_there_twice() {
    // In two shards.
    let (a, b) = (safetensors_bytes(&[NORM]), safetensors_bytes(&[NORM, HEAD]));
    let index = index(&[(NORM.0, "a.safetensors"), (HEAD.0, "b.safetensors")]);
    let files: [(&str, &[u8]); 3] =
        [("a.safetensors", &a), ("b.safetensors", &b), ("model.safetensors.index.json", &index)];
    let error = open_weights(folder(&files).path()).unwrap_err();
    assert!(matches!(error, CheckpointError::DuplicateTensor { .. }));
    assert_says(&error, &[NORM.0, "a.safetensors", "b.safetensors", "twice"]);

    // In one file, once by its old name and once by its new one.
    let old = Counting("visual.merger.norm.weight", &[4], 0);
    let dir = folder(&[("model.safetensors", &safetensors_bytes(&[NORM, old]))]);
    let error = open_weights(dir.path()).unwrap_err();
    assert_says(&error, &["(visual.merger.norm.weight)", "(model.visual.merger.norm.weight)", "twice"]);
}

#[test]
fn indexes_that_can_not_be() {
    for (json, part) in [
        (&b"{\"weight_map\": "[..], "no valid JSON"),
        (b"{}", "`weight_map` should be an object"),
        (b"{\"weight_map\": {\"a\": 1}}", "`weight_map.a` should be a file name"),
        (b"{\"weight_map\": {\"a\": \"../secret\"}}", "a file in the same folder"),
        (b"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "a file in the same folder"),
        (b"{\"weight_map\": {\"a\": \"..\"}}", "a file in the same folder"),
    ] {
        let dir = folder(&[("model.safetensors.index.json", json)]);
        assert_says(&open_weights(dir.path()).unwrap_err(), &["model.safetensors.index.json", part]);
    }
}

#[test]
fn missing_misshapen_and_mistyped_tensors() {
    let fp8 = br#"{"visual.scale":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},"visual.ids":{"dtype":"I64","shape":[1],"data_offsets":[2,10]}}"#;
    let dir = folder(&[("model.safetensors", &with_header(fp8, 10))]);
    let weights = open_weights(dir.path()).unwrap();
    let tower = weights.at(prefix::VISION);

    let error = tower.get("blocks.0.norm1.weight", &[8]).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingTensor { .. }));
    assert_says(&error, &["model.visual.blocks.0.norm1.weight", "[8]", "missing", "model.safetensors"]);

    let error = tower.get("scale", &[2, 1]).unwrap_err();
    assert!(matches!(error, CheckpointError::WrongShape { .. }));
    assert_says(&error, &["model.safetensors", "visual.scale", "has shape [2]", "asks for [2, 1]"]);

    let error = tower.get("scale", &[2]).unwrap_err();
    assert!(matches!(error, CheckpointError::WrongDType { .. }));
    assert_says(&error, &["model.safetensors", "visual.scale", "F8_E4M3", "f32, bf16 or f16"]);
    assert_eq!(tower.get_bytes("scale", &[2]).unwrap().len_bytes(), 2);
    assert_says(&tower.get_bytes("ids", &[1]).unwrap_err(), &["visual.ids", "I64", "one byte"]);
}

#[test]
fn surplus_tensors_are_named_below_the_prefixes_that_were_loaded() {
    let tensors = [
        NORM,
        HEAD,
        Counting("visual.adapter.weight", &[2], 0),
        Counting("visual.rotary_pos_emb.inv_freq", &[2], 0),
        Counting("model.norm.weight", &[2], 0),
        Counting("mtp.fc.weight", &[2], 0),
    ];
    let dir = folder(&[("model.safetensors", &safetensors_bytes(&tensors))]);
    let surplus = |weights: &WeightSource, prefixes: &[&str]| match weights.finish(prefixes) {
        Ok(()) => Vec::new(),
        Err(CheckpointError::SurplusTensors { tensors, .. }) => {
            tensors.iter().map(|t| t.split(' ').next().unwrap().to_owned()).collect()
        }
        Err(other) => panic!("{other}"),
    };
    let weights = open_weights(dir.path()).unwrap();
    weights.get(NORM.0, NORM.1).unwrap();
    assert_eq!(surplus(&weights, &[prefix::VISION]), ["visual.adapter.weight"]);
    assert_eq!(surplus(&weights, &[prefix::TEXT]), ["model.norm.weight"]);
    assert_eq!(
        surplus(&weights, &[prefix::ALL]),
        [HEAD.0, "model.norm.weight", "visual.adapter.weight", "mtp.fc.weight"]
    );
    weights.skip("lm_head.weight");
    assert_eq!(surplus(&weights, &[prefix::HEAD, prefix::VISION]), ["visual.adapter.weight"]);
    assert_says(&weights.finish(&[prefix::VISION]).unwrap_err(), &["visual.adapter.weight", "model.safetensors", "1 "]);
}

#[test]
fn an_error_does_not_list_a_thousand_names() {
    let names: Vec<String> = (0..20).map(|i| format!("x{i:02}")).collect();
    let error = CheckpointError::SurplusTensors { location: "m".to_owned(), tensors: names };
    assert_says(&error, &["20 tensor(s)", "x07 and 12 more"]);
}

#[test]
fn embedded_folders_give_the_same_errors() {
    let folder = ModelFolder::embedded("seed", vec![("model.safetensors", b"123")]);
    assert_says(&WeightSource::open(&folder).unwrap_err(), &["seed/model.safetensors (embedded)", "3 bytes"]);
}
