//! Configs in their old and new forms.

use std::fs;

use foveal_checkpoint::{Activation, Family, GenerationConfig, ModelFolder, NormKind};
use foveal_device::DType;
use foveal_testkit::fixtures_dir;
use serde_json::{Value, json};

use crate::support::{config_json, folder, golden_dir, parse, read_config};

/// The form of transformers 4: text fields outside, `rope_scaling` with `rope_theta` beside it, `torch_dtype`.
fn old_form(mut config: Value) -> Value {
    let text = config["text_config"].take();
    let root = config.as_object_mut().unwrap();
    root.remove("text_config");
    for (key, value) in text.as_object().unwrap() {
        match key.as_str() {
            "model_type" | "layer_types" | "rope_parameters" => {}
            _ => {
                root.insert(key.clone(), value.clone());
            }
        }
    }
    let rope = &text["rope_parameters"];
    root.insert("rope_theta".to_owned(), rope["rope_theta"].clone());
    root.insert("rope_scaling".to_owned(), json!({"type": "mrope", "mrope_section": rope["mrope_section"]}));
    let dtype = root.remove("dtype").unwrap();
    root.insert("torch_dtype".to_owned(), dtype);
    root["vision_config"].as_object_mut().unwrap().remove("rope_parameters");
    config
}

#[test]
fn old_and_new_forms_say_the_same() {
    for family in ["qwen2_vl", "qwen2_5_vl"] {
        let new = config_json(family);
        assert_eq!(parse(&old_form(new.clone())).unwrap(), parse(&new).unwrap());
    }
    // Qwen3-VL always nested its text fields, and moved `rope_theta` into the rope's section.
    let new = config_json("tiny");
    let mut old = new.clone();
    let text = old["text_config"].as_object_mut().unwrap();
    let mut rope = text.remove("rope_parameters").unwrap();
    let theta = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
    text.insert("rope_scaling".to_owned(), rope);
    text.insert("rope_theta".to_owned(), theta);
    assert_eq!(parse(&old).unwrap(), parse(&new).unwrap());
}

#[test]
fn families_become_settings() {
    let qwen2 = read_config(&golden_dir("qwen2_vl"));
    assert_eq!(qwen2.family, Family::Qwen2Vl);
    assert!(qwen2.tie_word_embeddings);
    assert_eq!((qwen2.text.head_dim, qwen2.text.mrope_section), (64, [8, 12, 12]));
    assert!(qwen2.text.qkv_bias && !qwen2.text.qk_norm && !qwen2.text.mrope_interleaved);
    let vision = &qwen2.vision;
    assert_eq!((vision.hidden_size, vision.out_hidden_size, vision.intermediate_size), (160, 256, 320));
    assert_eq!((vision.hidden_act, vision.norm), (Activation::QuickGelu, NormKind::Layer));
    assert!(!vision.gated_mlp && !vision.patch_bias && vision.window.is_none() && vision.position_table.is_none());
    assert_eq!((vision.patch_len(), vision.merged_size(), vision.head_dim()), (1176, 640, 80));

    let vision = read_config(&golden_dir("qwen2_5_vl")).vision;
    let window = vision.window.as_ref().unwrap();
    assert_eq!((window.window_size, window.fullatt_block_indexes.as_slice()), (112, &[1, 3][..]));
    assert_eq!((vision.hidden_act, vision.norm, vision.tokens_per_second), (Activation::Silu, NormKind::Rms, Some(4)));
    assert!(vision.gated_mlp && !vision.patch_bias);

    let tiny = read_config(&fixtures_dir().join("tiny"));
    assert!(!tiny.text.qkv_bias && tiny.text.qk_norm && tiny.text.mrope_interleaved && !tiny.tie_word_embeddings);
    assert_eq!((tiny.text.rope_theta, tiny.text.rotary_dim()), (5e6, 128));
    assert_eq!((tiny.vision.position_table, tiny.vision.patch_bias), (Some(2304), true));
    assert_eq!(tiny.vision.deepstack_visual_indexes, [1, 3, 4]);
    assert_eq!((tiny.vision.hidden_act, tiny.vision.merger_act), (Activation::GeluTanh, Activation::Gelu));
    assert_eq!(
        [tiny.image_token_id, tiny.video_token_id, tiny.vision_start_token_id, tiny.vision_end_token_id],
        [1010, 1011, 1007, 1008]
    );
    assert_eq!(tiny.dtype, DType::BF16);

    let moe = read_config(&golden_dir("qwen3_vl_moe"));
    assert_eq!(moe.text.moe.unwrap().num_experts, 8);
    // Only the outer field counts here; the text section of this file says true.
    assert!(!moe.tie_word_embeddings);

    let recurrent = read_config(&golden_dir("qwen3_5")).text;
    assert_eq!((recurrent.partial_rotary_factor, recurrent.rotary_dim()), (0.25, 64));
    // One layer of four keeps keys and values.
    assert_eq!(recurrent.kv_bytes_per_token(DType::BF16), 2 * 256 * 2);
}

#[test]
fn a_tied_head_may_be_said_beside_the_text_fields_by_the_qwen2_generation_only() {
    for (family, expected) in [("qwen2_5_vl", true), ("tiny", false)] {
        let mut config = config_json(family);
        config["tie_word_embeddings"] = json!(false);
        config["text_config"]["tie_word_embeddings"] = json!(true);
        assert_eq!(parse(&config).unwrap().tie_word_embeddings, expected);
    }
}

#[test]
fn vision_fields_that_were_never_written_have_their_defaults() {
    let mut config = config_json("qwen2_vl");
    config["vision_config"] = json!({"hidden_size": 256, "in_chans": 3, "model_type": "qwen2_vl"});
    let vision = parse(&config).unwrap().vision;
    assert_eq!((vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads), (32, 1280, 5120, 16));
    assert_eq!((vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size), (14, 2, 2));
}

#[test]
fn generation_settings_fall_back_to_the_models_stop_token() {
    let text = read_config(&fixtures_dir().join("tiny")).text;
    let load = |files: &[(&str, &[u8])]| {
        let dir = folder(files);
        GenerationConfig::load(&ModelFolder::open(dir.path()).unwrap(), &text).unwrap()
    };
    let none = load(&[]);
    assert_eq!(none, GenerationConfig { eos_token_id: vec![1000], ..GenerationConfig::default() });
    assert_eq!(load(&[("generation_config.json", b"{\"temperature\": 0.5}")]).eos_token_id, [1000]);
    let own = br#"{"eos_token_id": [5, 6], "do_sample": true, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}"#;
    let own = load(&[("generation_config.json", own)]);
    assert_eq!((own.eos_token_id.as_slice(), own.do_sample), (&[5, 6][..], true));
    assert_eq!(
        (own.temperature, own.top_k, own.top_p, own.repetition_penalty),
        (None, Some(20), Some(0.8), Some(1.05))
    );
    // As transformers writes it: one id, no sampling.
    let written = fs::read(fixtures_dir().join("tiny/generation_config.json")).unwrap();
    assert_eq!(load(&[("generation_config.json", &written)]), none);
}
