//! A Qwen-VL model folder as data: the config in all its published forms, the weights mapped and checked, and weights
//! made by a formula for tests and benchmarks.
//!
//! [`ModelFolder`] is a directory as the hub has it, or files held in memory. [`ModelConfig`] reads its `config.json`
//! into one table of settings that one decoder and one vision tower serve; what this version can't run is refused by
//! name in [`ModelConfig::ensure_supported`]. [`WeightSource`] maps the safetensors files without copying them, brings
//! the tensor names of every generation to one spelling, and checks each tensor against the shape that its user
//! expects; [`WeightSource::finish`] then names what nobody asked for. [`WeightScope::linear_format`] tells whether a
//! linear layer is in FP8, and gives its scales.
//!
//! ```
//! use foveal_checkpoint::{ModelConfig, ModelFolder, WeightSource, prefix};
//!
//! # fn main() -> Result<(), foveal_checkpoint::CheckpointError> {
//! let folder = ModelFolder::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny"))?;
//! let config = ModelConfig::load(&folder)?;
//! config.ensure_supported()?;
//! let weights = WeightSource::open(&folder)?;
//! let text = &config.text;
//! let embed_tokens =
//!     weights.at(prefix::TEXT).get("embed_tokens.weight", &[text.vocab_size, text.hidden_size])?;
//! assert_eq!(embed_tokens.shape(), &[1024, 256]);
//! # Ok(())
//! # }
//! ```
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod config;
mod error;
mod folder;
mod formula;
mod fp8;
mod weights;

pub use config::{
    Activation, Family, Fp8Config, GenerationConfig, LayerQuantization, LayerType, ModelConfig, MoeConfig, NormKind,
    QuantizationConfig, TensorSpec, TextConfig, VisionConfig, VisionTensorNames, WindowConfig,
};
pub use error::CheckpointError;
pub use folder::ModelFolder;
pub use formula::Formula;
pub use fp8::{
    FP8_BLOCK, Fp8Format, Fp8Scheme, InputScale, InputScaleKind, LinearFormat, WeightScaleKind, WeightScales,
};
pub use weights::{Component, ComponentSummary, HostTensor, Part, TensorInfo, WeightScope, WeightSource, prefix};
