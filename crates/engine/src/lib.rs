//! The Foveal inference engine: a handle that streams tokens, the step loop, KV blocks and prefix reuse.
//!
//! [`Engine::builder`] loads a model and starts one thread that owns the device. [`Engine::generate`] takes a
//! [`foveal_types::PreparedRequest`] and gives a [`DeltaStream`]: a [`futures_core::Stream`] for async programs,
//! [`DeltaStream::blocking`] for others. Dropping it cancels the request within one step.
//!
//! Requests run side by side, first come, first served: each step computes one flat batch of chunks of prompts and rows of
//! answers over a paged KV cache. Pages are shared by what they hold: the next turn of a chat computes only what is new, and
//! a picture that is asked about again is not encoded again. What runs when is decided by a pure state machine without
//! device, clock or channel.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod builder;
mod delta_stream;
mod error;
mod handle;
mod memory_plan;
mod model_executor;
mod pinned_pixels;
mod queue_gate;
mod scheduler;
mod stats;
mod worker;

pub use builder::EngineBuilder;
pub use delta_stream::{BlockingDeltas, DeltaStream};
pub use error::EngineError;
pub use handle::Engine;
pub use memory_plan::MemoryPlan;
pub use scheduler::Limits;
pub use stats::{EngineStats, ExecutorStats};
