//! The Foveal inference engine: a handle that streams tokens, the step loop, KV blocks and prefix reuse.
//!
//! [`Engine::builder`] loads a model and starts one thread that owns the device. [`Engine::generate`] takes a
//! [`foveal_types::PreparedRequest`] and gives a [`DeltaStream`]: a [`futures_core::Stream`] for async programs,
//! [`DeltaStream::blocking`] for others. Dropping it cancels the request within one step.
//!
//! Requests run first come, first served, one at a time; a long prompt runs in chunks over a paged KV cache. The pages
//! of the request that ended last are kept: the next turn of a chat computes only what is new, and its pictures are not
//! encoded again. What runs when is decided by a pure state machine without device, clock or channel.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod builder;
mod delta_stream;
mod error;
mod handle;
mod model_executor;
mod pinned_pixels;
mod queue_gate;
mod scheduler;
mod worker;

pub use builder::EngineBuilder;
pub use delta_stream::{BlockingDeltas, DeltaStream};
pub use error::EngineError;
pub use handle::Engine;
pub use scheduler::Limits;
