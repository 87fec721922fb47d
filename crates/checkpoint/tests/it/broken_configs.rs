//! Configs that can't be: every error names the file, the field and what was expected.

use foveal_checkpoint::{CheckpointError, GenerationConfig, ModelConfig, ModelFolder};
use serde_json::{Value, json};

use crate::support::{assert_says, config_json, folder, parse, read_config};

#[test]
fn a_path_that_is_no_folder() {
    let dir = folder(&[("file", b"")]);
    let error = ModelFolder::open(dir.path().join("absent")).unwrap_err();
    assert_says(&error, &["absent", "does not exist", "config.json"]);
    let error = ModelFolder::open(dir.path().join("file")).unwrap_err();
    assert_says(&error, &["file", "it is a file"]);
}

#[test]
fn a_folder_without_config() {
    let dir = folder(&[]);
    let error = ModelConfig::load(&ModelFolder::open(dir.path()).unwrap()).unwrap_err();
    assert!(matches!(error, CheckpointError::MissingFile { .. }));
    assert_says(&error, &["config.json", "does not exist", "architecture"]);
}

#[test]
fn a_config_that_is_no_json() {
    let dir = folder(&[("config.json", b"{\n  \"model_type\": qwen3_vl\n}")]);
    let error = ModelConfig::load(&ModelFolder::open(dir.path()).unwrap()).unwrap_err();
    assert_says(&error, &["config.json", "no valid JSON", "line 2, column 17"]);
    let error = ModelConfig::from_json(b"{\"model_type\":", "c.json").unwrap_err();
    assert_says(&error, &["c.json", "ends too early"]);
    let error = ModelConfig::from_json(b"[]", "c.json").unwrap_err();
    assert_says(&error, &["c.json", "should be an object", "a list of 0 items"]);
}

#[test]
fn an_architecture_that_is_not_known() {
    for (model_type, got) in [(json!("llama"), "`llama`"), (json!(null), "(none given)")] {
        let mut config = config_json("tiny");
        config["model_type"] = model_type;
        let error = parse(&config).unwrap_err();
        assert!(matches!(error, CheckpointError::UnknownArchitecture { .. }));
        assert_says(&error, &["config.json", got, "qwen2_vl, qwen2_5_vl, qwen3_vl"]);
    }
}

/// Sets a field by its path; a null removes it.
fn set(config: &mut Value, path: &str, value: Value) {
    let mut at = config;
    for part in path.split('.') {
        at = &mut at[part];
    }
    *at = value;
}

#[test]
fn fields_that_are_missing_or_can_not_be() {
    let cases: &[(&str, &str, Value, &str)] = &[
        ("tiny", "text_config.hidden_size", json!(null), "a positive integer, and is null"),
        ("tiny", "text_config.vocab_size", json!("many"), "an integer from 1 to 16777216, and is `many`"),
        ("tiny", "text_config.num_hidden_layers", json!(0), "an integer from 1 to 16777216, and is 0"),
        ("tiny", "text_config.num_hidden_layers", json!(5000), "an integer from 1 to 1024, and is 5000"),
        ("tiny", "text_config.num_key_value_heads", json!(3), "a divisor of 4 heads, and is 3"),
        ("tiny", "text_config.head_dim", json!(127), "even, and is 127"),
        ("tiny", "text_config.hidden_act", json!("relu"), "one of silu"),
        ("tiny", "text_config.rms_norm_eps", json!(-1.0), "a number of at least 0, and is -1.0"),
        ("tiny", "text_config.rope_parameters.mrope_section", json!([24, 20, 19]), "sum to 64, half of the rotary"),
        ("tiny", "text_config.rope_parameters.mrope_section", json!([32, 32]), "three integers"),
        ("tiny", "text_config.eos_token_id", json!("x"), "a token id or a list"),
        ("tiny", "vision_config", json!(null), "an object, and is null"),
        ("tiny", "vision_config.num_position_embeddings", json!(2300), "a square number, and is 2300"),
        ("tiny", "vision_config.deepstack_visual_indexes", json!([1, 6]), "blocks below depth (6)"),
        ("tiny", "vision_config.out_hidden_size", json!(512), "the decoder's hidden_size (256), and is 512"),
        ("tiny", "vision_config.num_heads", json!(5), "a multiple of 4 times num_heads (5), and is 144"),
        ("tiny", "image_token_id", json!(1024), "below vocab_size (1024), and is 1024"),
        ("tiny", "tie_word_embeddings", json!("yes"), "true or false, and is `yes`"),
        ("tiny", "dtype", json!("float8"), "one of bfloat16, float16, float32, and is `float8`"),
        ("qwen2_vl", "text_config.num_attention_heads", json!(6), "a multiple of 6 heads"),
        ("qwen2_vl", "text_config.layer_types", json!(["full_attention"]), "3 of full_attention"),
        ("qwen2_5_vl", "vision_config.fullatt_block_indexes", json!([4]), "blocks below depth (4)"),
        ("qwen2_5_vl", "vision_config.window_size", json!(100), "a multiple of 28 pixels, and is 100"),
        ("qwen3_vl_moe", "text_config.num_local_experts", json!(null), "a positive integer"),
    ];
    for (family, path, value, expected) in cases {
        let mut config = config_json(family);
        set(&mut config, path, value.clone());
        let error = parse(&config).unwrap_err();
        assert!(matches!(error, CheckpointError::BadField { .. }), "{path}: {error}");
        let field = match *path {
            // The field that is at fault stands beside the one that was changed.
            "vision_config.num_heads" => "vision_config.hidden_size",
            "text_config.num_attention_heads" => "text_config.hidden_size",
            other => other,
        };
        assert_says(&error, &["config.json", &format!("`{field}`"), expected]);
    }
}

#[test]
fn a_generation_config_that_can_not_be() {
    let text = read_config(&foveal_testkit::fixtures_dir().join("tiny")).text;
    for (json, part) in [
        (&b"{\"top_p\": 1.5}"[..], "`top_p` should be a number from 0 to 1, and is 1.5"),
        (b"{\"temperature\": \"hot\"}", "`temperature` should be a number"),
        (b"{\"eos_token_id\": [-1]}", "`eos_token_id` should be a token id"),
        (b"{", "no valid JSON"),
    ] {
        let dir = folder(&[("generation_config.json", json)]);
        let error = GenerationConfig::load(&ModelFolder::open(dir.path()).unwrap(), &text).unwrap_err();
        assert_says(&error, &["generation_config.json", part]);
    }
}

#[test]
fn what_this_version_can_not_run_is_refused_by_name() {
    let refusal = |config: &Value| parse(config).unwrap().ensure_supported().unwrap_err();
    for (family, model, feature) in [
        ("qwen3_vl_moe", "Qwen3-VL-MoE", "8 experts"),
        ("qwen3_5_moe", "Qwen3.5-MoE", "8 experts"),
        ("qwen3_5", "Qwen3.5", "linear-attention"),
    ] {
        assert_says(&refusal(&config_json(family)), &[model, feature, "a dense Qwen3-VL"]);
    }
    let changed = |family: &str, path: &str, value: Value| {
        let mut config = config_json(family);
        set(&mut config, path, value);
        refusal(&config)
    };
    let awq = json!({"quant_method": "awq", "bits": 4, "zero_point": true});
    assert_says(&changed("tiny", "quantization_config", awq), &["quantisation by `awq`", "bf16 checkpoint"]);
    let error = changed("tiny", "text_config.rope_parameters.rope_type", json!("yarn"));
    assert_says(&error, &["RoPE scaling of type `yarn`"]);
    let error = changed("tiny", "text_config.attention_bias", json!(true));
    assert_says(&error, &["bias on the attention's output"]);
    assert_says(&changed("tiny", "text_config.hidden_act", json!("gelu")), &["Gelu in the decoder"]);
    let sliding = json!(["full_attention", "sliding_attention", "full_attention"]);
    assert_says(&changed("qwen2_vl", "text_config.layer_types", sliding), &["sliding-window attention"]);
}
