//! Devices, tensors and borrowed views for the Foveal engine.
//!
//! A [`Device`] is chosen once, at start. Its [`Stream`] is where operators run: on the CPU they run at once, in the
//! stream's own thread pool. A [`Tensor`] owns (or shares) memory of one device; operators take [`View`]s and
//! [`ViewMut`]s of it, which carry dtype and shape and cost nothing to make, so that a step over fewer rows than the
//! buffers hold borrows their first rows and allocates nothing.
//!
//! ```
//! use foveal_device::{DType, Device, Tensor};
//!
//! let device = Device::cpu(2)?;
//! let mut x = Tensor::zeros(&device, DType::F32, &[4, 8])?;
//! x.view_mut()?.as_mut_slice::<f32>()?[0] = 1.0;
//! let first_row = x.rows(0..1)?;
//! assert_eq!(first_row.shape(), &[1, 8]);
//! assert_eq!(first_row.as_slice::<f32>()?[0], 1.0);
//! # Ok::<(), foveal_device::DeviceError>(())
//! ```
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod buffer;
mod device;
mod dtype;
mod error;
mod shape;
mod tensor;
mod view;

pub use buffer::{SharedBytes, allocated_bytes, allocation_count};
pub use device::{Device, DeviceKind, Stream};
pub use dtype::{DType, Element};
pub use error::DeviceError;
pub use shape::{MAX_RANK, Shape};
pub use tensor::Tensor;
pub use view::{View, ViewMut};
