//! Recorded work, by size.
//!
//! A GPU step of a few hundred launches costs the host more than it costs the GPU. Recorded as a graph it costs one call; but a
//! graph has its addresses and its sizes baked in. So sizes are padded to [`Buckets`], and [`Graphs`] keeps a graph for each
//! bucket together with the memory that they all read.
//!
#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod buckets;
mod graphs;
mod report;

pub use buckets::Buckets;
pub use graphs::{Graphs, Record};
pub use report::{CaptureReport, GraphStats};
