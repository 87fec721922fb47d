//! The model that is part of the program.

use foveal_checkpoint::ModelFolder;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        vec![$(($name, include_bytes!(concat!("../built_in/", $name)).as_slice())),*]
    };
}

/// A Qwen3-VL of 7.7 million parameters that describes simple shapes, reads numbers and compares pictures: for trying
/// the program out, and for machines without a network.
#[must_use]
pub fn built_in_model() -> ModelFolder {
    let files = files![
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "model.safetensors",
    ];
    ModelFolder::embedded("built-in", files)
}
