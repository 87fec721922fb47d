//! What `foveal inspect` says of FP8 checkpoints.

mod common;

use std::fs;
use std::path::Path;

use common::{foveal, tiny};
use foveal_testkit::fp8::{Quantizer, Scheme};
use serde_json::{Value, json};

fn quantised(quantizer: &Quantizer<'_>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    quantizer.folder(&tiny(), dir.path());
    dir
}

fn inspect(dir: &Path) -> common::Outcome {
    foveal(["inspect", dir.to_str().unwrap()])
}

fn inspect_json(dir: &Path) -> Value {
    foveal(["inspect", "--json", dir.to_str().unwrap()]).json()
}

/// The line of one kind of matrix, its words one space apart.
fn line(page: &str, module: &str) -> String {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let found = page.lines().map(words).find(|words| words.iter().any(|word| word == module));
    found.unwrap_or_else(|| panic!("{module} in {page}")).join(" ")
}

/// The decoder has 4 layers of 7 projections, each with its scales; two ModelOpt scales per attention layer beside.
#[test]
fn kinds_of_layers_have_a_line_each_with_their_scales() {
    for (scheme, method, weight, input, num_scales) in [
        (Scheme::TensorStatic, "fp8", "per tensor", "static per tensor", 4 * 7 * 2),
        (Scheme::TensorDynamic, "fp8", "per tensor", "dynamic per token", 4 * 7),
        (Scheme::ChannelDynamic, "compressed-tensors", "per channel", "dynamic per token", 4 * 7),
        (Scheme::Block, "fp8", "128x128 blocks", "dynamic per 128", 4 * 7),
        (Scheme::ModelOpt, "modelopt", "per tensor", "static per tensor", 4 * 7 * 2),
    ] {
        let dir = quantised(&Quantizer::new(scheme));
        let outcome = inspect(dir.path());
        let page = outcome.answer();
        assert!(page.contains(&format!("quantised by {method}, {num_scales} tensors of scales")), "{scheme:?}: {page}");
        assert!(page.contains("runs on this version"), "{scheme:?}: {page}");
        for projection in ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"] {
            let expected = format!("decoder layers.*.{projection} 4 f8_e4m3 weight {weight}, input {input}");
            assert_eq!(line(page, &format!("layers.*.{projection}")), expected, "{scheme:?}");
        }
        assert_eq!(line(page, "embed_tokens"), "decoder embed_tokens 1 bf16", "{scheme:?}");
        assert_eq!(line(page, "blocks.*.attn.qkv"), "vision tower blocks.*.attn.qkv 6 bf16", "{scheme:?}");

        let report = inspect_json(dir.path());
        assert_eq!((&report["scales"], &report["kv_scales"]), (&json!(num_scales), &json!(0)));
        assert_eq!(report["fp8_kv_cache"], false);
        let modules = report["modules"].as_array().unwrap();
        let find = |name: &str| modules.iter().find(|kind| kind["module"] == name).unwrap();
        let expected = json!({
            "component": "decoder", "module": "layers.*.mlp.up_proj", "count": 4, "dtype": "f8_e4m3",
            "weight_scales": weight, "input_scales": input
        });
        assert_eq!(*find("layers.*.mlp.up_proj"), expected, "{scheme:?}");
        assert_eq!(find("lm_head")["weight_scales"], Value::Null);
        // Bytes are those of the file, header apart.
        let file_bytes = fs::metadata(dir.path().join("model.safetensors")).unwrap().len();
        let weights = report["memory"]["weights_bytes"].as_u64().unwrap();
        assert!(weights < file_bytes && file_bytes - weights < 100_000, "{scheme:?}: {weights} {file_bytes}");
    }
}

#[test]
fn scales_of_keys_and_values_are_counted() {
    for scheme in [Scheme::ChannelDynamic, Scheme::ModelOpt] {
        let dir = quantised(&Quantizer::new(scheme).kv_scales([0.5, 0.5]));
        let inspected = inspect(dir.path());
        let page = inspected.answer();
        assert!(page.contains("scales of keys and values in 4 layers"), "{scheme:?}");
        assert!(page.contains("made for an FP8 KV cache"), "{scheme:?}");
        let report = inspect_json(dir.path());
        assert_eq!((&report["kv_scales"], &report["fp8_kv_cache"]), (&json!(4), &json!(true)), "{scheme:?}");
    }
}

#[test]
fn layers_that_are_not_what_the_config_says_are_refused() {
    let dir = quantised(&Quantizer::new(Scheme::TensorDynamic));
    let config = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let change = |from: &str, to: &str| {
        assert!(config.contains(from));
        fs::write(dir.path().join("config.json"), config.replacen(from, to, 1)).unwrap();
    };
    change("\"dynamic\"", "\"static\"");
    let outcome = inspect(dir.path());
    assert!(outcome.refusal().contains("layers.0.self_attn.q_proj.input_scale"), "{outcome:?}");
    change("\"fp8\"", "\"awq\"");
    let outcome = inspect(dir.path());
    assert!(outcome.answer().contains("quantisation by `awq` is not supported"), "{outcome:?}");
    // Tensors that nobody will load are described all the same.
    assert!(line(outcome.answer(), "layers.*.mlp.up_proj").contains("f8_e4m3"), "{outcome:?}");
}
