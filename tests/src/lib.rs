//! Whole-program tests; they stand in `tests/tests`, what they read in `tests/fixtures`.
//!
//! The README's Rust code is compiled and run as documentation of this crate, the library guide's compiled.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}

#[cfg(doctest)]
#[doc = include_str!("../../docs/library.md")]
mod library_guide {}
