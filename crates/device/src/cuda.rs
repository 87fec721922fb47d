//! NVIDIA GPUs: contexts, streams, memory, modules and launches over the driver API.
//!
//! Nothing is linked: the driver, NVRTC and cuBLASLt are opened when a GPU is, so that one binary runs everywhere. A
//! [`CudaStream`] keeps the order of what is given to it; between streams, order comes from [`Event`]s alone. The
//! driver's primary context is used, and no binding's own event tracking: who frees, reuses or reads memory waits for
//! what it must.

mod context;
mod event;
mod graph;
mod kernel_args;
mod launch;
mod memory;
mod modules;
mod stream;
mod tensor_map;

pub use context::CudaDevice;

pub use event::Event;
pub(crate) use graph::without_captures;
pub use graph::{CudaGraph, Times};
pub use kernel_args::Args;
pub use launch::Launch;
pub(crate) use memory::DeviceMemory;
pub use memory::PinnedMemory;
pub use stream::{CudaStream, Upload};
pub use tensor_map::{Swizzle, TensorMap};
