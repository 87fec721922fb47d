//! How a model is loaded.

use foveal_device::DeviceKind;

/// How a model is loaded. The default is what `foveal run` does without options.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Where it runs.
    pub device: DeviceKind,
    /// Compute threads of the CPU; 0 takes one for each core.
    pub threads: usize,
    /// The most tokens of a conversation; `None` takes the model's length, at most
    /// [`foveal_engine::EngineBuilder::DEFAULT_MAX_MODEL_LEN`].
    pub max_model_len: Option<usize>,
    /// Pictures with fewer pixels are enlarged; `None` takes the model's setting.
    pub min_pixels: Option<u64>,
    /// Pictures with more pixels are reduced; `None` takes the model's setting.
    pub max_pixels: Option<u64>,
}
