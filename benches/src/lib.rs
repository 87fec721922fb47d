//! Benchmarks of whole models and of operators on a GPU, of what each of the engine's ideas brings, and of how much a
//! smaller form of a model loses; the programs stand in `src/bin`, and `cargo xtask bench` runs those that any machine can.
#![forbid(unsafe_code)]

pub mod accuracy;
pub mod gpu;
pub mod ideas;
