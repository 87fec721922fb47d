//! An OpenAI-compatible HTTP server over the Foveal engine.
//!
//! A [`Server`] listens at once and says `503` until its [`ServerHandle`] is given a [`ServedModel`]. The network has its own
//! threads; pictures are fetched, decoded and cut on a bounded number of others; the engine has its one. A closed connection
//! ends its request in one step, wherever it is.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod answer;
mod api;
mod auth;
mod chat;
mod chat_request;
mod choices;
mod completions;
mod config;
mod connection;
mod error;
mod figures;
mod info;
mod json_body;
mod logprobs;
mod metrics;
mod openapi;
mod page;
mod parameters;
mod preparation;
mod record;
mod request_id;
mod router;
mod server;
mod state;

pub use config::{ServedModel, ServerConfig};
pub use server::{Server, ServerError, ServerHandle};

use state::FINGERPRINT;

#[doc(hidden)]
pub use chat::fuzz_chat_request;
