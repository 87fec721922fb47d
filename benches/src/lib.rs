//! Benchmarks of whole models and of operators on a GPU; the programs stand in `src/bin`, and `cargo xtask bench` runs
//! those that any machine can.
#![forbid(unsafe_code)]

pub mod gpu;
