//! The decoder against plain loops, over settings that the reference checkpoints don't have: other GQA ratios, pictures
//! with deepstack up to the last layer, partial answers.

mod support;

use foveal_checkpoint::{ModelConfig, WeightSource};
use foveal_testkit::assert_close;
use support::reference::Reference;
use support::{Chunk, Model, OwnedBatch, Pictures, Prompt, Sizes};

/// float32 sums against float64 ones over logits of a few units.
const TOLERANCE: f32 = 2e-5;

struct Style {
    model_type: &'static str,
    num_heads: usize,
    num_kv_heads: usize,
    is_tied: bool,
    num_levels: usize,
}

fn config_of(style: &Style) -> ModelConfig {
    let is_qwen3 = style.model_type == "qwen3_vl";
    let head_dim = 32;
    // Qwen2 divides the hidden size by the heads.
    let hidden = if is_qwen3 { 64 } else { style.num_heads * head_dim };
    let vision = match is_qwen3 {
        true => serde_json::json!({"depth": 4, "hidden_size": 64, "num_heads": 2, "intermediate_size": 64,
            "out_hidden_size": hidden, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1, 2]}),
        false => serde_json::json!({"depth": 2, "embed_dim": 64, "hidden_size": hidden, "num_heads": 2}),
    };
    let json = serde_json::json!({
        "model_type": style.model_type,
        "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93,
        "tie_word_embeddings": style.is_tied,
        "text_config": {
            "vocab_size": 100, "hidden_size": hidden, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": style.num_heads, "num_key_value_heads": style.num_kv_heads, "head_dim": head_dim,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5],
                "mrope_interleaved": is_qwen3},
        },
        "vision_config": vision,
    });
    ModelConfig::from_json(json.to_string().as_bytes(), "config.json").unwrap()
}

/// Text, a picture of 2 x 3 rows, text.
fn prompt() -> Prompt {
    let mut prompt = Prompt::text(vec![5, 17, 99, 3]);
    for row in 0..6 {
        prompt.input_ids.push(90);
        prompt.positions.push([4, 4 + row / 3, 4 + row % 3]);
        // Not in order: a step uses any rows of any pictures.
        prompt.image_index.push(7 - row);
    }
    for (i, id) in [42, 7, 0, 64].into_iter().enumerate() {
        prompt.push(id, 7 + i as i64);
    }
    prompt
}

fn check(style: &Style) {
    let config = config_of(style);
    let weights = WeightSource::dummy(&config, 3).unwrap();
    let mut model = Model::new(config, weights, Sizes::default());
    let prompt = prompt();
    let pictures = Pictures::new(9, model.config.text.hidden_size, style.num_levels);
    let reference = Reference { config: &model.config, weights: &model.weights };
    let expected = reference.logits(&prompt, Some(&pictures));

    let mut batch = OwnedBatch::new(&[Chunk { prompt: &prompt, rows: 0..prompt.len(), blocks: &[2] }]);
    // In any order, and some twice.
    batch.logit_rows = vec![13, 4, 9, 0, 4];
    let got = pictures.views(|embeds, levels| model.logits(&batch.with_images(embeds, levels)).unwrap());
    let expected: Vec<f32> =
        batch.logit_rows.iter().flat_map(|&row| &expected[row as usize]).map(|&x| x as f32).collect();
    assert_close(&got, &expected, TOLERANCE, TOLERANCE);
}

#[test]
fn qwen3_style_with_every_gqa_ratio_and_deepstack_level() {
    for (num_kv_heads, num_levels, is_tied) in [(1, 3, true), (2, 1, false), (3, 2, true), (6, 0, false)] {
        check(&Style { model_type: "qwen3_vl", num_heads: 6, num_kv_heads, is_tied, num_levels });
    }
}

#[test]
fn qwen2_style_with_every_gqa_ratio() {
    for (num_heads, num_kv_heads, is_tied) in [(2, 1, true), (3, 3, false), (4, 2, false)] {
        check(&Style { model_type: "qwen2_vl", num_heads, num_kv_heads, is_tied, num_levels: 0 });
    }
}
