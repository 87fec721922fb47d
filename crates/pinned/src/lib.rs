//! A pool of page-locked memory and asynchronous copies from it to a GPU, made so that they can't be misused.
//!
//! A GPU copies from page-locked memory by itself, which is quick and lets the host go on; but locking pages is slow, and
//! memory that is changed or freed while a copy reads it makes silent nonsense. So a [`PinnedPool`] locks pages once and
//! uses them again, and its types follow a block's life:
//!
//! ```text
//! idle ── acquire ──▶ PinnedBlock ── freeze ──▶ FrozenBlock ── last clone dropped ──▶ idle
//!                     one owner,                 many owners,   and every copy ended
//!                     who writes                 who read
//!                        └── copy_to ──▶ in flight ── copy ended ──▶ idle
//! ```
//!
//! A copy is an owner of its block until an event of the pool's own, recorded behind it, has been reached. [`install`] has
//! all of a device's uploads go through a pool.
//!
//! ```
//! use foveal_device::{DType, Device, Tensor};
//!
//! let device = Device::cpu(1)?;
//! let pool = foveal_pinned::install(&device, 64 << 20);
//!
//! let mut block = pool.acquire(6)?;
//! block.copy_from_slice(b"pixels");
//! let pixels = block.freeze();
//!
//! let mut tensor = Tensor::zeros(&device, DType::U8, &[6])?;
//! pixels.copy_to(device.stream(), 0..6, tensor.view_mut()?)?;
//! assert_eq!(tensor.to_vec::<u8>()?, *pixels);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod block;
mod error;
mod lane;
mod ledger;
mod lifecycle;
mod memory;
mod pool;
#[cfg(test)]
mod simulated;
mod size_class;
mod sync;
#[cfg(test)]
mod tests;
mod transfer;
mod uploader;

pub use block::{FrozenBlock, PinnedBlock};
pub use error::PinnedError;
pub use pool::{PinnedPool, PinnedStats};
pub use uploader::{PinnedUploader, install};
