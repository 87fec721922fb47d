//! Requests and limits for this crate's tests.

use std::sync::Arc;

use foveal_types::{ContentHash, PreparedImage, PreparedRequest, SamplingParams, TokenId};

use super::Limits;

pub(crate) const PATCH_BYTES: usize = 3;

pub(crate) fn limits() -> Limits {
    Limits {
        page: 32,
        num_blocks: 8,
        max_model_len: 200,
        max_num_batched_tokens: 16,
        max_patches: 64,
        merge_size: 2,
        patch_bytes: PATCH_BYTES,
        temporal_patch_size: 2,
        vocab_size: 1024,
    }
}

/// A text request with positions 0, 1, 2, ...
pub(crate) fn request(ids: &[u32]) -> PreparedRequest {
    let n = i32::try_from(ids.len()).unwrap();
    PreparedRequest {
        input_ids: ids.iter().copied().map(TokenId).collect(),
        image_token_ranges: Vec::new(),
        positions: (0..3).flat_map(|_| 0..n).collect(),
        rope_delta: 0,
        images: Vec::new(),
        sampling: SamplingParams::default(),
    }
}

/// A still picture, or a video for `t > 1`, whose hash is `hash`.
pub(crate) fn picture(grid_thw: [u32; 3], hash: u8) -> PreparedImage {
    let temporal_slices = if grid_thw[0] > 1 { 2 } else { 1 };
    let bytes = grid_thw.iter().product::<u32>() as usize * temporal_slices as usize * PATCH_BYTES;
    PreparedImage {
        grid_thw,
        pixels: Arc::new(vec![hash; bytes]),
        temporal_slices,
        hash: ContentHash([hash; 32]),
        placeholder_start: 0,
    }
}

/// `len` tokens of text (7) with pictures (placeholders 9) from the given rows on; merge size 2.
pub(crate) fn with_pictures(len: usize, pictures: &[(usize, PreparedImage)]) -> PreparedRequest {
    let mut request = request(&vec![7; len]);
    for (start, image) in pictures {
        let rows = image.grid_thw.iter().product::<u32>() as usize / 4;
        request.input_ids[*start..*start + rows].fill(TokenId(9));
        request.image_token_ranges.push(*start..*start + rows);
        request.images.push(PreparedImage { placeholder_start: *start, ..image.clone() });
    }
    request
}
