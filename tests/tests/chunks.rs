//! How the engine cuts a prompt, and in how many batches it encodes the pictures, changes no bit of an answer.

mod support;

use foveal_device::Device;
use proptest::prelude::*;
use support::{Reference, answer};

/// Patches of the largest picture of the cases below.
const LARGEST_PICTURE: usize = 256;

proptest! {
    // Each case loads a model.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn chunks_and_encoder_batches_change_no_bit(
        family in prop::sample::select(vec!["tiny", "qwen2_5_vl"]),
        name in prop::sample::select(vec!["two_images", "three_images", "text_long"]),
        chunk in 1_usize..120,
        more_patches in 0_usize..400,
    ) {
        let reference = Reference::open(family, Device::cpu(2).unwrap());
        let request = reference.prepare(reference.golden.case(name));
        let whole = reference.engine().max_num_batched_tokens(1024).build().unwrap();
        let expected = answer(&whole, request.clone());
        let max_patches = LARGEST_PICTURE + more_patches;
        let cut = reference.engine().max_num_batched_tokens(chunk).max_patches(max_patches).build().unwrap();
        // `PartialEq` of floats: equal log-probabilities, not close ones.
        prop_assert_eq!(answer(&cut, request), expected);
    }
}
