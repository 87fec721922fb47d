//! What Foveal's tests share: comparators, the reference answers, where the fixtures lie, and the GPU.
//!
//! It depends on no other crate of the workspace but `foveal-device`, for the element types, so that every crate above
//! that one can test with it.
//!
//! ```
//! use foveal_testkit::{Golden, assert_close};
//!
//! let golden = Golden::open("tiny");
//! let case = golden.case("text_hello");
//! let logits = golden.array("text_hello.logits");
//! assert_eq!(logits.shape, [1024]);
//! let best = case.top20_ids[0] as usize;
//! assert!(logits.values.iter().all(|&x| x <= logits.values[best]));
//! assert_close(&[1.0, 2.0], &[1.0, 2.001], 1e-2, 0.0);
//! ```
#![forbid(unsafe_code)]

mod compare;
mod fixtures;
pub mod fp8;
mod golden;
mod gpu;

pub use compare::{
    assert_bitwise_equal, assert_close, assert_close_at, calc_diff, max_abs_relative_to_max, ulp_distance, widen,
};
pub use fixtures::{fixtures_dir, lay_out_model_folder, test_assets};
pub use golden::{Golden, GoldenArray, GoldenCase, RopeCase};
pub use gpu::gpu;
