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
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod buffer;
mod copy_lane;
mod counters;
mod cubin_cache;
mod cuda;
mod device;
mod dtype;
mod error;
mod f8;
mod fill;
mod kernel_source;
mod libraries;
mod matmul;
mod nvrtc;
mod probe;
mod readback;
mod shape;
mod step_block;
mod tensor;
#[cfg(test)]
mod testing;
mod view;

pub use buffer::{SharedBytes, allocated_bytes, allocation_count};
pub use copy_lane::CopyLane;
pub use counters::{Counters, MemoryHold, counters, hold_memory};
pub use cubin_cache::{CubinCache, Filled};
pub use cuda::{
    Args, CudaDevice, CudaGraph, CudaStream, Event, Launch, PinnedMemory, Swizzle, TensorMap, Times, Upload,
};
pub use device::{Device, DeviceKind, Stream};
pub use dtype::{DType, Element};
pub use error::DeviceError;
pub use f8::F8E4M3;
pub use fill::{UniformFill, fill_variants};
pub use kernel_source::{Header, KernelSource, KernelSpec};
pub use libraries::{CudaVersion, LibraryKind, LibraryStatus};
pub use matmul::{BlockScales, F8Product, MatmulInputs, MatmulShape};
pub use nvrtc::{Compiled, KernelResources, compile};
pub use probe::{CubinProbe, GpuProbe, Probe, Problem, probe};
pub use readback::{Readback, ReadbackBytes};
pub use shape::{MAX_RANK, Shape};
pub use step_block::{BlockLayout, BlockSlot, StepBlock};
pub use tensor::Tensor;
pub use view::{View, ViewMut};
