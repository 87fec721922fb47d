//! Benchmarks that need an NVIDIA GPU: the program `gpu`.

mod measure;
mod model;
mod operators;

pub use measure::Bench;
pub use model::{decode, load, prefill};
pub use operators::operators;
