//! Foveal as a library of its parts put together: [`Model::load`] opens a model folder, [`Chat`] talks with it, an
//! [`Answer`] streams what it says. [`ModelReport`] looks at a folder without loading it.
//!
//! The `foveal` binary is a thin command line over this. Programs with other needs (several requests at once, an async
//! runtime) take [`Model::processor`] and [`Model::engine`], or the crates themselves.
//!
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod answer;
mod built_in;
mod chat;
mod error;
mod model;
mod model_report;
mod options;
mod parts;
mod picture;
mod reference;
mod throughput;
mod verify;

pub use answer::Answer;
pub use built_in::built_in_model;
pub use chat::Chat;
pub use error::RuntimeError;
pub use foveal_processor::AnswerEvent;
pub use model::Model;
pub use model_report::{ComponentReport, MemoryPlan, ModelReport, ModuleReport, TensorReport};
pub use options::{LoadFormat, ModelOptions};
pub use parts::{normalisation, processor_settings};
pub use picture::Picture;
pub use reference::{Reference, ReferenceCase};
pub use throughput::{Percentiles, ThroughputOptions, ThroughputReport, throughput};
pub use verify::{CaseReport, LogitError, MAX_CASE_NOISE_RATIO, MAX_NOISE_RATIO, VerifyReport, verify};
