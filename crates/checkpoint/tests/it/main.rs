//! Model folders, whole and broken.

mod broken_configs;
mod broken_weights;
mod config;
mod made;
mod never_panics;
mod published;
mod source;
mod support;
