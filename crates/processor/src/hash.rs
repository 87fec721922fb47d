//! What a picture is known by: a full hash of its decoded pixels and of the settings that turn them into patches.

use foveal_types::ContentHash;

use crate::config::VisionConfig;
use crate::decode::RgbPicture;

/// Parts the hash from every other use of the same bytes; changes whenever the patches of equal pixels would.
const DOMAIN: &[u8] = b"foveal picture 1: bicubic a=-0.5, int16 weights, patch order\0";

/// The hash of a still picture, or of a video's frames in order.
///
/// `grid_thw` stands for the resize rule, whose outcome it is.
pub(crate) fn content_hash(
    frames: &[RgbPicture<'_>],
    grid_thw: [u32; 3],
    slices: u32,
    config: &VisionConfig,
) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    let mut number = |value: u32| {
        hasher.update(&value.to_le_bytes());
    };
    grid_thw.into_iter().for_each(&mut number);
    [slices, config.patch_size, config.merge_size, config.temporal_patch_size, frames.len() as u32]
        .into_iter()
        .for_each(&mut number);
    config.image_mean.iter().chain(&config.image_std).for_each(|value| number(value.to_bits()));
    number(config.rescale_factor.to_bits());
    for frame in frames {
        hasher.update(&frame.width.to_le_bytes());
        hasher.update(&frame.height.to_le_bytes());
        hasher.update(&frame.pixels);
    }
    ContentHash(*hasher.finalize().as_bytes())
}
