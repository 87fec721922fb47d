//! Multimodal rotary position embeddings (M-RoPE) of the Qwen vision-language family, without a device and without
//! unsafe code.
//!
//! A decoder with M-RoPE gives each token three positions: along time, height and width. Text tokens have the same
//! position on all three; the tokens of a picture or a video have those of their patch. This crate computes
//!
//! - the [`PositionIds`] `[3, N]` of a prompt and the delta for its decode steps ([`position_ids`]), by the rules of
//!   Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 ([`TemporalRule`]), with a [`PositionChunk`] for each part of a chunked
//!   prefill;
//! - which axis turns which frequency pair ([`MropeSections`]): blocked, interleaved and partial rotary layouts;
//! - cos/sin tables by position for text ([`TextRopeTable`]) and by patch row or column for vision
//!   ([`VisionRopeTable`]), the patches' order in a tower ([`patch_positions`]), and a [`TileCache`] for whatever a
//!   tower derives from a grid;
//! - the seconds of a video's frames ([`VideoMeta`]), for timestamps in the prompt and for the temporal step.
//!
//! ```
//! use foveal_mrope::{GridThw, PositionRule, Span, TemporalRule, decode_position, position_ids};
//!
//! // Three text tokens, a picture of 4 x 6 patches (2 x 3 tokens after merging), two text tokens.
//! let rule = PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FramesBetweenTimestamps };
//! let picture = GridThw { t: 1, h: 4, w: 6 };
//! let spans = [Span::Text { len: 3 }, Span::Image { grid: picture }, Span::Text { len: 2 }];
//! let positions = position_ids(&spans, &rule)?;
//!
//! assert_eq!(positions.axis(0), [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7]); // time
//! assert_eq!(positions.axis(1), [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7]); // height
//! assert_eq!(positions.axis(2), [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]); // width
//! assert_eq!(positions.delta(), -3);
//! assert_eq!(decode_position(positions.len(), positions.delta()), 8); // the first generated token
//! # Ok::<(), foveal_mrope::MropeError>(())
//! ```
//!
//! The semantics are those of HF transformers 5.17 (`models/{qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5}`).
#![forbid(unsafe_code)]

mod build;
mod error;
mod grid;
mod patches;
mod positions;
#[cfg(doctest)]
mod readme;
mod rope;
mod sections;
mod span;
mod tile_cache;
mod video;

pub use build::position_ids;
pub use error::MropeError;
pub use grid::GridThw;
pub use patches::patch_positions;
pub use positions::{PositionChunk, PositionIds, decode_position};
pub use rope::{RopeTile, TextRopeTable, VisionRopeTable};
pub use sections::{MropeSections, SectionLayout};
pub use span::{PositionRule, Span, TemporalRule, frame_spans};
pub use tile_cache::{TileCache, TileCacheStats};
pub use video::VideoMeta;
