//! Benchmarks of whole models; the programs stand in `src/bin`, and `cargo xtask bench` runs them.
#![forbid(unsafe_code)]
