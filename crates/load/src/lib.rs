//! A load generator for servers that speak OpenAI's API: synthetic requests of exact size, sent at a given concurrency or rate,
//! and what came of them in the terms, the layout and the keys of `vllm bench serve`.
//!
//! - A [`LoadGenerator`] knows a server ([`Target`]), the model's name there, and how to make text of an exact number of tokens:
//!   with the model's `tokenizer.json`, or else by asking the server.
//! - [`LoadGenerator::run`] makes every request of a run before its clock starts, then sends them: a closed loop
//!   ([`LoadOptions::max_concurrency`]), an open loop ([`LoadOptions::request_rate`]), or both.
//! - A [`LoadReport`] is one run. It prints itself as `vllm bench serve` does, and gives the same JSON.
//! - A [`Sweep`] is several runs: a table as CSV and markdown, and charts, beside the figures of [`Peer`]s.
//!
//! No two requests have a run of tokens or a picture in common, within a run or between runs of different seeds, so that a server's
//! prefix and picture caches find nothing. Time stamps are taken when bytes come out of the socket, before they are parsed.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod answer;
mod arrivals;
mod body;
mod chart;
mod chunk;
mod client;
mod date;
mod error;
mod event_stream;
mod generator;
mod layout;
mod options;
mod peers;
mod picture;
mod prompt;
mod random;
mod report;
mod result_json;
mod schedule;
mod statistics;
mod sweep;
mod table;
mod workload;

pub use client::{Api, Target};
pub use error::LoadError;
pub use generator::{LoadGenerator, Stage};
pub use options::{ImageFormat, LoadOptions, RequestShape};
pub use peers::{Peer, PeerPoint};
pub use random::Random;
pub use report::LoadReport;
pub use statistics::Percentiles;
pub use sweep::Sweep;
