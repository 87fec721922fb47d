//! Prompts for the small model of this repository, for tests inside and outside of the crate.

use std::sync::Arc;

use foveal_mrope::{PositionRule, Span, TemporalRule, position_ids};
use foveal_types::{ContentHash, PreparedImage, PreparedRequest, SamplingParams, TokenId};

const IMAGE_TOKEN: u32 = 1010;

/// A prompt from pieces of text and pictures; a picture's pixels and hash follow from its number.
pub(crate) enum Piece<'a> {
    Text(&'a [u32]),
    Picture([u32; 3], u8),
}

pub(crate) fn prompt(pieces: &[Piece<'_>]) -> PreparedRequest {
    let mut request = PreparedRequest {
        input_ids: Vec::new(),
        image_token_ranges: Vec::new(),
        positions: Vec::new(),
        rope_delta: 0,
        images: Vec::new(),
        sampling: SamplingParams { max_tokens: Some(12), logprobs: Some(3), ..SamplingParams::default() },
    };
    let mut spans = Vec::new();
    for piece in pieces {
        let start = request.input_ids.len();
        match *piece {
            Piece::Text(ids) => {
                request.input_ids.extend(ids.iter().copied().map(TokenId));
                spans.push(Span::Text { len: ids.len() });
            }
            Piece::Picture(grid_thw, number) => {
                let [t, h, w] = grid_thw;
                let rows = (t * h * w / 4) as usize;
                request.input_ids.extend(std::iter::repeat_n(TokenId(IMAGE_TOKEN), rows));
                request.image_token_ranges.push(start..start + rows);
                request.images.push(picture(grid_thw, number, start));
                spans.push(Span::Image { grid: grid_thw.into() });
            }
        }
    }
    let rule = PositionRule { spatial_merge_size: 2, temporal: TemporalRule::FramesBetweenTimestamps };
    let positions = position_ids(&spans, &rule).unwrap();
    request.positions = (0..3).flat_map(|axis| positions.axis(axis).to_vec()).collect();
    request.rope_delta = positions.delta();
    request
}

fn picture(grid_thw: [u32; 3], number: u8, placeholder_start: usize) -> PreparedImage {
    let bytes = grid_thw.iter().product::<u32>() as usize * 3 * 16 * 16;
    // Any pixels will do as long as they differ: a multiplicative walk through the bytes.
    let pixels: Vec<u8> = (0..bytes).map(|i| ((i + 7) * (2 * usize::from(number) + 3) % 251) as u8).collect();
    PreparedImage {
        grid_thw,
        pixels: Arc::new(pixels),
        temporal_slices: 1,
        hash: ContentHash([number; 32]),
        placeholder_start,
    }
}
