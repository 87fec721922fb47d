//! The text cases of the reference answers, for each way in which the families' decoders differ. The cases with pictures
//! need a vision tower and are checked where the crates meet.

mod support;

use foveal_testkit::Golden;
use support::golden::{check_case, model_of};

fn check_text_cases(family: &str) {
    let golden = Golden::open(family);
    let mut model = model_of(&golden, family);
    for name in ["text_hello", "text_count", "text_unicode", "text_long"] {
        check_case(&mut model, &golden, golden.case(name), None);
    }
}

/// Qwen3 style with a head of its own, trained.
#[test]
fn tiny() {
    check_text_cases("tiny");
}

/// Qwen3 style with a tied head.
#[test]
fn qwen3_vl_tied() {
    check_text_cases("qwen3_vl_tied");
}

/// Qwen2 style with a head of its own and blocked sections.
#[test]
fn qwen2_5_vl() {
    check_text_cases("qwen2_5_vl");
}

/// Qwen2 style with a tied head and heads of 64.
#[test]
fn qwen2_vl() {
    check_text_cases("qwen2_vl");
}
