//! The configs of the published checkpoints. Expected values were read off the files by hand.

use foveal_checkpoint::{
    CheckpointError, Family, Fp8Config, GenerationConfig, InputScaleKind, ModelFolder, WeightScaleKind,
};
use foveal_testkit::test_assets;

use crate::support::{assert_says, read_config};

/// hidden, intermediate, layers, heads, KV heads, head width; tied; tower depth, width, MLP; out of the tower.
type Row = (&'static str, Family, [usize; 6], bool, [usize; 4]);

const DENSE: &[Row] = &[
    ("Qwen2-VL-2B-Instruct", Family::Qwen2Vl, [1536, 8960, 28, 12, 2, 128], true, [32, 1280, 5120, 1536]),
    ("Qwen2-VL-7B-Instruct", Family::Qwen2Vl, [3584, 18944, 28, 28, 4, 128], false, [32, 1280, 5120, 3584]),
    ("Qwen2.5-VL-7B-Instruct", Family::Qwen2_5Vl, [3584, 18944, 28, 28, 4, 128], false, [32, 1280, 3420, 3584]),
    ("Qwen3-VL-2B-Instruct", Family::Qwen3Vl, [2048, 6144, 28, 16, 8, 128], true, [24, 1024, 4096, 2048]),
    ("Qwen3-VL-4B-Instruct", Family::Qwen3Vl, [2560, 9728, 36, 32, 8, 128], true, [24, 1024, 4096, 2560]),
    ("Qwen3-VL-8B-Instruct", Family::Qwen3Vl, [4096, 12288, 36, 32, 8, 128], false, [27, 1152, 4304, 4096]),
    ("Qwen3-VL-32B-Instruct", Family::Qwen3Vl, [5120, 25600, 64, 64, 8, 128], false, [27, 1152, 4304, 5120]),
];

#[test]
fn dense_models_parse_and_are_supported() {
    let Some(assets) = test_assets() else { return };
    for (model, family, dims, is_tied, tower) in DENSE {
        let config = read_config(&assets.join("models").join(model));
        let (text, vision) = (&config.text, &config.vision);
        assert_eq!((config.family, config.tie_word_embeddings), (*family, *is_tied), "{model}");
        let got = [
            text.hidden_size,
            text.intermediate_size,
            text.num_hidden_layers,
            text.num_attention_heads,
            text.num_key_value_heads,
            text.head_dim,
        ];
        assert_eq!(got, *dims, "{model}");
        let got = [vision.depth, vision.hidden_size, vision.intermediate_size, vision.out_hidden_size];
        assert_eq!(got, *tower, "{model}");
        assert_eq!((vision.num_heads, vision.in_channels, vision.spatial_merge_size), (16, 3, 2), "{model}");
        let ids = [config.image_token_id, config.video_token_id, config.vision_start_token_id];
        assert_eq!(ids, [151_655, 151_656, 151_652], "{model}");
        assert_eq!(config.vision_end_token_id, 151_653, "{model}");
        assert_eq!(text.rms_norm_eps, 1e-6, "{model}");
        config.ensure_supported().unwrap();
        assert!(!config.tensors().unwrap().is_empty());
    }
}

#[test]
fn dense_models_have_their_generations_rope_and_tower() {
    let Some(assets) = test_assets() else { return };
    let read = |model: &str| read_config(&assets.join("models").join(model));
    let qwen2 = read("Qwen2-VL-2B-Instruct");
    assert_eq!((qwen2.text.mrope_section, qwen2.text.mrope_interleaved), ([16, 24, 24], false));
    assert_eq!((qwen2.text.rope_theta, qwen2.text.max_position_embeddings), (1e6, 32_768));
    assert_eq!((qwen2.text.vocab_size, qwen2.vision.patch_size), (151_936, 14));

    let qwen2_5 = read("Qwen2.5-VL-7B-Instruct");
    let window = qwen2_5.vision.window.unwrap();
    assert_eq!((window.window_size, window.fullatt_block_indexes.as_slice()), (112, &[7, 15, 23, 31][..]));
    assert_eq!((qwen2_5.vision.tokens_per_second, qwen2_5.text.max_position_embeddings), (Some(2), 128_000));
    assert_eq!((qwen2_5.text.vocab_size, qwen2_5.text.rope_theta), (152_064, 1e6));

    for (model, deepstack) in [("Qwen3-VL-4B-Instruct", [5, 11, 17]), ("Qwen3-VL-8B-Instruct", [8, 16, 24])] {
        let qwen3 = read(model);
        assert_eq!((qwen3.text.mrope_section, qwen3.text.mrope_interleaved), ([24, 20, 20], true));
        assert_eq!((qwen3.text.rope_theta, qwen3.text.max_position_embeddings), (5e6, 262_144));
        assert_eq!((qwen3.vision.position_table, qwen3.vision.patch_size), (Some(2304), 16));
        assert_eq!(qwen3.vision.deepstack_visual_indexes, deepstack);
    }
}

#[test]
fn the_rest_parses_and_is_refused_by_name() {
    let Some(assets) = test_assets() else { return };
    // hidden, layers, experts (0: dense), what the refusal names.
    let rows = [
        ("Qwen3-VL-30B-A3B-Instruct", [2048, 48, 128], ["Qwen3-VL-MoE", "128 experts"]),
        ("Qwen3-VL-30B-A3B-Instruct-FP8", [2048, 48, 128], ["Qwen3-VL-MoE", "128 experts"]),
        ("Qwen3.5-0.8B", [1024, 24, 0], ["Qwen3.5", "linear-attention"]),
        ("Qwen3.5-9B", [4096, 32, 0], ["Qwen3.5", "linear-attention"]),
        ("Qwen3.5-27B", [5120, 64, 0], ["Qwen3.5", "linear-attention"]),
        ("Qwen3.5-35B-A3B", [2048, 40, 256], ["Qwen3.5-MoE", "256 experts"]),
        ("Qwen3.5-122B-A10B", [3072, 48, 256], ["Qwen3.5-MoE", "256 experts"]),
        ("Qwen3.5-397B-A17B", [4096, 60, 512], ["Qwen3.5-MoE", "512 experts"]),
    ];
    for (model, dims, parts) in rows {
        let config = read_config(&assets.join("models").join(model));
        let num_experts = config.text.moe.map_or(0, |moe| moe.num_experts);
        assert_eq!([config.text.hidden_size, config.text.num_hidden_layers, num_experts], dims, "{model}");
        let error = config.ensure_supported().unwrap_err();
        assert!(matches!(error, CheckpointError::Unsupported { .. }), "{model}");
        assert_says(&error, &parts);
    }
}

#[test]
fn fp8_models_say_which_scales_they_have() {
    let Some(assets) = test_assets() else { return };
    let expected = Fp8Config { weight: WeightScaleKind::Block, input: Some(InputScaleKind::Dynamic) };
    for (model, is_supported) in [("Qwen3-VL-8B-Instruct-FP8", true), ("Qwen3-VL-30B-A3B-Instruct-FP8", false)] {
        let config = read_config(&assets.join("models").join(model));
        assert_eq!(config.ensure_supported().is_ok(), is_supported, "{model}: only its experts are in the way");
        let quantization = config.quantization.unwrap();
        assert_eq!((quantization.quant_method.as_str(), quantization.fp8()), ("fp8", Some(expected)), "{model}");
        assert!(!quantization.has_fp8_kv_cache);
        for module in ["lm_head", "model.visual.merger.linear_fc1"] {
            assert!(quantization.ignored_modules.iter().any(|ignored| ignored == module), "{model}: {module}");
        }
    }
}

#[test]
fn sampling_defaults_are_read() {
    let Some(assets) = test_assets() else { return };
    let load = |model: &str| {
        let folder = ModelFolder::open(assets.join("models").join(model)).unwrap();
        let text = read_config(&assets.join("models").join(model)).text;
        GenerationConfig::load(&folder, &text).unwrap()
    };
    let qwen3 = load("Qwen3-VL-4B-Instruct");
    assert_eq!(qwen3.eos_token_id, [151_645, 151_643]);
    assert_eq!((qwen3.do_sample, qwen3.temperature, qwen3.top_k, qwen3.top_p), (true, Some(0.7), Some(20), Some(0.8)));
    let qwen2_5 = load("Qwen2.5-VL-7B-Instruct");
    assert_eq!((qwen2_5.temperature, qwen2_5.top_k, qwen2_5.repetition_penalty), (Some(1e-6), None, Some(1.05)));
    assert_eq!(load("Qwen3.5-0.8B").eos_token_id, [248_044], "no file: the config's own");
}
