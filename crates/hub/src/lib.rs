//! Models by hub id.
//!
//! [`Hub::snapshot`] makes a folder of a [`ModelId`]: it asks the hub which files a revision has, downloads those that an engine
//! needs and that are missing, several at once and large ones in parts, checks them, and puts them where the hub's own
//! libraries have them.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod cache;
mod download;
mod environment;
mod error;
mod http;
mod hub;
mod id;
mod names;
mod piece;
mod progress;
mod queue;
mod repo;
mod retry;
mod select;
mod sink;

pub use error::HubError;
pub use hub::{Hub, Snapshot};
pub use id::ModelId;
pub use progress::{FileProgress, Progress, TotalProgress};
pub use retry::RetryPolicy;
pub use select::Files;
