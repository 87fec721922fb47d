//! Model folders, whole and broken.

mod broken_configs;
mod broken_weights;
mod config;
mod fp8;
mod made;
mod never_panics;
mod published;
mod quantization;
mod source;
mod support;
