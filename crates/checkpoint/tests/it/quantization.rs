//! The dialects in which checkpoints say how they are quantised, and what of them is refused.

use foveal_checkpoint::{
    Fp8Config, InputScaleKind, LayerQuantization, ModelConfig, ModelFolder, QuantizationConfig, WeightScaleKind,
};
use serde_json::{Value, json};

use crate::support::{assert_says, config_json, folder, parse};

const DYNAMIC: Option<InputScaleKind> = Some(InputScaleKind::Dynamic);
const STATIC: Option<InputScaleKind> = Some(InputScaleKind::Static);

fn with_section(section: &Value) -> Value {
    let mut config = config_json("tiny");
    config["quantization_config"] = section.clone();
    config
}

/// Parses a section that must be supported.
#[track_caller]
fn read(section: &Value) -> QuantizationConfig {
    let config = parse(&with_section(section)).unwrap();
    config.ensure_supported().unwrap();
    config.quantization.unwrap()
}

#[track_caller]
fn assert_fp8(section: &Value, weight: WeightScaleKind, input: Option<InputScaleKind>) {
    assert_eq!(read(section).layers, LayerQuantization::Fp8(Fp8Config { weight, input }), "{section}");
}

#[track_caller]
fn assert_float_with_fp8_kv_cache(section: &Value) {
    let config = read(section);
    assert_eq!((&config.layers, config.has_fp8_kv_cache), (&LayerQuantization::Float, true), "{section}");
    assert_eq!(config.fp8(), None);
}

fn assert_refused(section: &Value, feature: &str) {
    let error = parse(&with_section(section)).unwrap().ensure_supported().unwrap_err();
    assert_says(&error, &["Qwen3-VL", feature, "FP8 (e4m3) with scales per tensor", "bf16 checkpoint"]);
}

/// Sets a field by its JSON pointer.
fn changed(section: &Value, pointer: &str, value: Value) -> Value {
    let mut section = section.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    section.pointer_mut(parent).unwrap()[key] = value;
    section
}

/// As LLM Compressor writes it for its `FP8_DYNAMIC`.
fn compressed() -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": 1.46,
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "float", "symmetric": true, "strategy": "channel", "dynamic": false,
                "group_size": null, "block_structure": null, "actorder": null, "observer": "minmax",
                "observer_kwargs": {}
            },
            "input_activations": {
                "num_bits": 8, "type": "float", "symmetric": true, "strategy": "token", "dynamic": true,
                "group_size": null, "block_structure": null, "actorder": null, "observer": null, "observer_kwargs": {}
            },
            "output_activations": null
        }},
        "ignore": ["re:.*visual.*", "lm_head"],
        "kv_cache_scheme": null,
        "sparsity_config": {}
    })
}

const WEIGHTS: &str = "/config_groups/group_0/weights";
const INPUTS: &str = "/config_groups/group_0/input_activations";

fn block() -> Value {
    let section = changed(&compressed(), &format!("{WEIGHTS}/strategy"), json!("block"));
    let section = changed(&section, &format!("{WEIGHTS}/block_structure"), json!([128, 128]));
    let section = changed(&section, &format!("{INPUTS}/strategy"), json!("group"));
    changed(&section, &format!("{INPUTS}/group_size"), json!(128))
}

#[test]
fn the_dialect_of_qwens_own_checkpoints() {
    let section = json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.visual.merger.linear_fc1"]
    });
    let expected = QuantizationConfig {
        quant_method: "fp8".to_owned(),
        layers: LayerQuantization::Fp8(Fp8Config { weight: WeightScaleKind::Block, input: DYNAMIC }),
        has_fp8_kv_cache: false,
        ignored_modules: vec!["lm_head".to_owned(), "model.visual.merger.linear_fc1".to_owned()],
    };
    assert_eq!(read(&section), expected);
    // As vLLM and AutoFP8 have it: one scale for each weight.
    let section = json!({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["re:.*lm_head"]});
    assert_fp8(&section, WeightScaleKind::Tensor, STATIC);
    assert_eq!(read(&section).ignored_modules, ["re:.*lm_head"]);
    assert_fp8(&json!({"quant_method": "fp8", "weight_block_size": null}), WeightScaleKind::Tensor, DYNAMIC);

    for (key, value, feature) in [
        ("fmt", json!("e5m2"), "quantisation by `fp8` with FP8 weights of format `e5m2`"),
        ("weight_block_size", json!([128, 64]), "blocks of 128x64"),
        ("activation_scheme", json!("none"), "inputs scaled by the scheme `none`"),
    ] {
        assert_refused(&changed(&section, &format!("/{key}"), value), feature);
    }
    let both = changed(&section, "/weight_block_size", json!([128, 128]));
    assert_refused(&both, "static input scales and weight scales 128x128 blocks");
    for method in ["awq", "gptq", "bitsandbytes", "mxfp4", "fbgemm_fp8"] {
        // Whatever its fields hold.
        let section = json!({"quant_method": method, "bits": 4, "modules_to_not_convert": "lm_head"});
        assert_refused(&section, &format!("quantisation by `{method}` is not"));
    }
}

#[test]
fn the_dialect_of_compressed_tensors() {
    assert_fp8(&compressed(), WeightScaleKind::Channel, DYNAMIC);
    let read_one = read(&compressed());
    assert_eq!((read_one.quant_method.as_str(), read_one.has_fp8_kv_cache), ("compressed-tensors", false));
    assert_eq!(read_one.ignored_modules, ["re:.*visual.*", "lm_head"]);

    let tensor = changed(&compressed(), &format!("{WEIGHTS}/strategy"), json!("tensor"));
    assert_fp8(&tensor, WeightScaleKind::Tensor, DYNAMIC);
    let fixed = changed(&tensor, &format!("{INPUTS}/strategy"), json!("tensor"));
    assert_fp8(&fixed, WeightScaleKind::Tensor, DYNAMIC);
    assert_fp8(&changed(&fixed, &format!("{INPUTS}/dynamic"), json!(false)), WeightScaleKind::Tensor, STATIC);
    assert_fp8(&block(), WeightScaleKind::Block, DYNAMIC);
    let cache = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false, "symmetric": true});
    let cache_alone = changed(&changed(&compressed(), "/config_groups", json!({})), "/kv_cache_scheme", cache);
    assert_float_with_fp8_kv_cache(&cache_alone);
    assert_fp8(
        &changed(&block(), &format!("{WEIGHTS}/block_structure"), json!("128x128")),
        WeightScaleKind::Block,
        DYNAMIC,
    );

    let kv = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false, "symmetric": true});
    assert!(read(&changed(&compressed(), "/kv_cache_scheme", kv)).has_fp8_kv_cache);
    // Two groups that agree are one.
    let group = compressed()["config_groups"]["group_0"].clone();
    assert_fp8(&changed(&compressed(), "/config_groups/group_1", group), WeightScaleKind::Channel, DYNAMIC);
}

#[test]
fn what_of_compressed_tensors_is_refused() {
    let block_group = block()["config_groups"]["group_0"].clone();
    for (at, value, feature) in [
        (format!("{WEIGHTS}/num_bits"), json!(4), "`compressed-tensors` with weights of 4-bit float"),
        (format!("{WEIGHTS}/type"), json!("int"), "weights of 8-bit int"),
        (format!("{WEIGHTS}/symmetric"), json!(false), "weights with zero points (symmetric false)"),
        (format!("{WEIGHTS}/strategy"), json!("group"), "weights scaled by `group`"),
        (format!("{WEIGHTS}/strategy"), json!("tensor_group"), "weights scaled by `tensor_group`"),
        (format!("{WEIGHTS}/strategy"), json!(null), "weights scaled by `no strategy`"),
        (format!("{WEIGHTS}/dynamic"), json!(true), "weights whose scales are not in the checkpoint"),
        (INPUTS.to_owned(), json!(null), "FP8 weights and inputs that are not quantised"),
        (format!("{INPUTS}/type"), json!("int"), "inputs of 8-bit int"),
        (format!("{INPUTS}/symmetric"), json!(false), "inputs with zero points"),
        (format!("{INPUTS}/dynamic"), json!("local"), "inputs whose scales are `local`"),
        (format!("{INPUTS}/dynamic"), json!(false), "static input scales by `token` and weight scales per channel"),
        (format!("{INPUTS}/strategy"), json!("group"), "dynamic input scales by `group` and weight scales per channel"),
        ("/config_groups/group_0/output_activations".to_owned(), json!({"num_bits": 8}), "quantised outputs"),
        ("/config_groups/group_1".to_owned(), block_group, "layers of several formats"),
        ("/kv_cache_scheme".to_owned(), json!({"num_bits": 8, "type": "int"}), "a KV cache of 8-bit int"),
        (
            "/kv_cache_scheme".to_owned(),
            json!({"num_bits": 8, "type": "float", "strategy": "attn_head"}),
            "a KV cache with scales by `attn_head`",
        ),
        ("/sparsity_config".to_owned(), json!({"format": "sparse-24-bitmask"}), "sparse weights"),
    ] {
        assert_refused(&changed(&compressed(), &at, value), feature);
    }
    let at = format!("{WEIGHTS}/block_structure");
    assert_refused(&changed(&block(), &at, json!([64, 128])), "blocks of 64x128");
    let at = format!("{INPUTS}/group_size");
    assert_refused(
        &changed(&block(), &at, json!(64)),
        "input scales by `group` of 64 and weight scales 128x128 blocks",
    );
}

#[test]
fn the_dialect_of_modelopt() {
    // As ModelOpt 0.29 and later write it into config.json.
    let section = json!({
        "quant_method": "modelopt", "quant_algo": "FP8", "producer": {"name": "modelopt", "version": "0.33.0"},
        "config_groups": {"group_0": {"weights": {"dynamic": false, "num_bits": 8, "type": "float"}}},
        "ignore": ["lm_head", "model.visual*"],
        "kv_cache_scheme": {"dynamic": false, "num_bits": 8, "type": "float"}
    });
    assert_fp8(&section, WeightScaleKind::Tensor, None);
    assert!(read(&section).has_fp8_kv_cache);
    assert_eq!(read(&section).ignored_modules, ["lm_head", "model.visual*"]);
    for algorithm in ["NVFP4", "W4A16_AWQ", "FP8_PB_WO", "MIXED_PRECISION"] {
        let feature = format!("quantisation by `modelopt` with the algorithm `{algorithm}`");
        assert_refused(&changed(&section, "/quant_algo", json!(algorithm)), &feature);
    }

    // Weights as they were, and a KV cache that may be FP8.
    let section = json!({"quant_method": "modelopt", "quant_algo": null, "kv_cache_quant_algo": "FP8"});
    assert_float_with_fp8_kv_cache(&section);

    let inner = json!({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]});
    assert!(read(&json!({"quant_method": "modelopt", "quantization": inner})).has_fp8_kv_cache);
    let inner = changed(&inner, "/kv_cache_quant_algo", json!("NVFP4"));
    assert_refused(&json!({"quant_method": "modelopt", "quantization": inner}), "a KV cache of `NVFP4`");
}

#[test]
fn modelopts_own_file_counts_where_the_config_says_nothing() {
    let load = |config: &Value, file: &[u8]| {
        let config = serde_json::to_vec(config).unwrap();
        let dir = folder(&[("config.json", &config), ("hf_quant_config.json", file)]);
        ModelConfig::load(&ModelFolder::open(dir.path()).unwrap())
    };
    let file = br#"{"producer": {"name": "modelopt", "version": "0.33.0"}, "quantization": {
        "quant_algo": "FP8", "kv_cache_quant_algo": null, "exclude_modules": ["lm_head", "model.visual*"]}}"#;
    let quantization = load(&config_json("tiny"), file).unwrap().quantization.unwrap();
    let expected = QuantizationConfig {
        quant_method: "modelopt".to_owned(),
        layers: LayerQuantization::Fp8(Fp8Config { weight: WeightScaleKind::Tensor, input: None }),
        has_fp8_kv_cache: false,
        ignored_modules: vec!["lm_head".to_owned(), "model.visual*".to_owned()],
    };
    assert_eq!(quantization, expected);
    let own = load(&with_section(&compressed()), file).unwrap().quantization.unwrap();
    assert_eq!(own.quant_method, "compressed-tensors");

    for (file, part) in [
        (&b"{"[..], "no valid JSON"),
        (b"[]", "should be an object"),
        (b"{}", "`quantization` should be an object"),
        (br#"{"quantization": {}}"#, "`quantization.quant_algo` should be a string or null, and is missing"),
        (br#"{"quantization": {"quant_algo": "FP8", "exclude_modules": 3}}"#, "`quantization.exclude_modules`"),
    ] {
        assert_says(&load(&config_json("tiny"), file).unwrap_err(), &["hf_quant_config.json", part]);
    }
}

#[test]
fn sections_that_make_no_sense_are_named_by_field() {
    let fp8 = json!({"quant_method": "fp8"});
    for (section, field, expected) in [
        (json!({"bits": 4}), "quant_method", "a string, and is missing"),
        (changed(&fp8, "/weight_block_size", json!([128])), "weight_block_size", "two positive integers"),
        (changed(&fp8, "/weight_block_size", json!([0, 128])), "weight_block_size", "two positive integers"),
        (changed(&fp8, "/modules_to_not_convert", json!([1])), "modules_to_not_convert", "a list of names"),
        (changed(&compressed(), "/config_groups", json!({})), "config_groups", "at least one group"),
        (changed(&compressed(), "/config_groups", json!(null)), "config_groups", "an object, and is null"),
        (changed(&compressed(), "/config_groups/x", json!(1)), "config_groups.x", "an object, and is 1"),
        (changed(&compressed(), WEIGHTS, json!(null)), "config_groups.group_0.weights", "an object"),
        (
            changed(&block(), &format!("{WEIGHTS}/block_structure"), json!(null)),
            "config_groups.group_0.weights.block_structure",
            "two positive integers",
        ),
        (json!({"quant_method": "modelopt"}), "quant_algo", "a string or null, and is missing"),
    ] {
        let error = parse(&with_section(&section)).unwrap_err();
        assert_says(&error, &["config.json", &format!("`quantization_config.{field}`"), expected]);
    }
}
