//! What crosses the crates of the Foveal engine and weighs nothing: the prepared request, sampling parameters, deltas,
//! finish reasons and the three error classes.
//!
//! The types hold no behaviour beyond their own validation, so that a crate which only prepares requests and a crate
//! which only answers them agree without knowing each other.
//!
//! ```
//! use foveal_types::SamplingParams;
//!
//! let params = SamplingParams { temperature: 0.7, top_p: 0.9, ..SamplingParams::default() };
//! assert!(params.validate().is_ok());
//! assert!(SamplingParams { top_p: 1.5, ..params }.validate().is_err());
//! ```
#![forbid(unsafe_code)]

mod delta;
mod error;
mod id;
mod pixels;
mod request;
mod sampling;

pub use delta::{Delta, FinishReason, TokenLogprobs, TokenOutput, Usage};
pub use error::{DeviceFailure, Error, Exhausted, RequestError};
pub use id::{BlockId, LayerIdx, SeqId, SlotId, TokenId};
pub use pixels::{HeapPixels, PixelBlock, PixelLender, Pixels};
pub use request::{ContentHash, PreparedImage, PreparedRequest};
pub use sampling::SamplingParams;
