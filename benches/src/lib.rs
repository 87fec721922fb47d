//! Benchmarks of whole models and of operators on a GPU, and of how much a smaller form of a model loses; the programs
//! stand in `src/bin`, and `cargo xtask bench` runs those that any machine can.
#![forbid(unsafe_code)]

pub mod accuracy;
pub mod gpu;
