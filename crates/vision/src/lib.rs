//! The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL as one tower over one set of operators.
//!
//! A [`VisionTower`] is loaded from a model folder, alone: an embedding service needs no decoder. It encodes pictures
//! and videos of mixed sizes in one batch ([`VisionTower::encode`]) and writes, for each token, the row that replaces
//! the placeholder's embedding and the deepstack rows that the decoder's first layers add. What differs between the
//! families (windows, position table, deepstack, norms, gated MLP) is a table of settings in
//! [`foveal_checkpoint::VisionConfig`].
#![forbid(unsafe_code)]

mod batch;
mod block;
mod error;
mod geometry;
mod input;
mod interpolation;
mod merger;
mod patch_embed;
#[cfg(doctest)]
mod readme;
mod tower;
mod weights;
mod window;
mod workspace;

pub use batch::BatchShape;
pub use error::VisionError;
pub use input::{Patches, VisionInput, VisionOutput};
pub use patch_embed::Normalisation;
pub use tower::VisionTower;
pub use workspace::Workspace;

// The crates whose types stand in the signatures above: one dependency is enough to use this one.
pub use foveal_checkpoint as checkpoint;
pub use foveal_device as device;
pub use foveal_mrope as mrope;
