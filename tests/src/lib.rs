//! Whole-program tests; they stand in `tests/tests`, what they read in `tests/fixtures`.
//!
//! The README's Rust code is compiled and run as documentation of this crate.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
