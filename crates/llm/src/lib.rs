//! The decoder of the Foveal engine: one model code for the Qwen vision-language family, chosen by configuration.
//!
//! [`Decoder`] runs a flat batch of rows - prefill chunks and decode rows of several sequences, one after the other, no
//! padding - over a paged [`KvCache`] and gives the logits of the rows that are asked for. [`Sampler`] chooses tokens
//! from them, one [`SamplerState`] per sequence; [`StopCriteria`] says when an answer ends.
//!
//! A row's result depends on its own sequence alone, bitwise on the CPU: neither the other sequences of the batch, nor
//! how its prompt was cut into chunks, nor which pages of the cache it was given change a bit of it.
//!
//! The crate knows nothing of templates, tokenizers, pictures or HTTP: picture embeddings arrive as rows
//! ([`ImageRows`]), text as token ids.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod attention;
mod attention_work;
mod batch;
mod decoder;
mod defaults;
mod error;
mod inputs;
mod kv_cache;
mod kv_dtype;
mod layer;
mod mlp;
mod projection;
mod projection_input;
mod quantization;
mod rope;
mod sampler;
mod settings;
mod stop;
mod tuning;
mod weights;
mod workspace;

pub use batch::{Batch, ImageRows};
pub use decoder::Decoder;
pub use defaults::GenerationDefaults;
pub use error::LlmError;
pub use inputs::{ImageTables, StepShape};
pub use kv_cache::KvCache;
pub use kv_dtype::parse_kv_cache_dtype;
pub use quantization::Quantization;
pub use sampler::{PendingTokens, SampledToken, Sampler, SamplerState};
pub use settings::DecoderSettings;
pub use stop::StopCriteria;
pub use workspace::{BatchLimits, Workspace};

// The crates whose types stand in the signatures above: one dependency is enough to use this one.
pub use foveal_checkpoint as checkpoint;
pub use foveal_device as device;
pub use foveal_kernels::KvLayout;
pub use foveal_types as types;
