//! The model that is part of the program.

use foveal_checkpoint::ModelFolder;

use crate::RuntimeError;

#[cfg(built_in_model)]
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        vec![$(($name, include_bytes!(concat!("../built_in/", $name)).as_slice())),*]
    };
}

/// A Qwen3-VL of 7.7 million parameters that describes simple shapes, reads numbers and compares pictures: for trying
/// the program out, and for machines without a network.
///
/// # Errors
/// [`RuntimeError::NoBuiltInModel`] in a build from a registry's package, which is too small for weights.
#[cfg(built_in_model)]
pub fn built_in_model() -> Result<ModelFolder, RuntimeError> {
    let files = files![
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "model.safetensors",
    ];
    Ok(ModelFolder::embedded("built-in", files))
}

/// The model that is part of a build from the repository; this build has none.
///
/// # Errors
/// [`RuntimeError::NoBuiltInModel`], always.
#[cfg(not(built_in_model))]
pub fn built_in_model() -> Result<ModelFolder, RuntimeError> {
    Err(RuntimeError::NoBuiltInModel)
}
