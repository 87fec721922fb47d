//! Where the pictures of a request lie among its tokens.

use std::ops::Range;

use foveal_types::{ContentHash, PreparedRequest};

/// Consecutive rows of the prompt that one picture fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PictureSpan {
    /// The picture's index in the request.
    pub(crate) image: usize,
    pub(crate) hash: ContentHash,
    /// Rows of the prompt.
    pub(crate) rows: Range<usize>,
    /// Which of the picture's embeddings the first of these rows takes.
    pub(crate) first_embed: usize,
}

impl PictureSpan {
    /// The picture's embeddings under `rows`, which are rows of this span.
    pub(crate) fn embeds_of(&self, rows: &Range<usize>) -> Range<usize> {
        let first = self.first_embed + rows.start.saturating_sub(self.rows.start);
        first..first + rows.len()
    }
}

/// Embeddings that a picture gives: its patches, merged `merge_size x merge_size`.
pub(crate) fn num_embeds(grid_thw: [u32; 3], merge_size: u32) -> usize {
    num_patches(grid_thw) / (merge_size as usize * merge_size as usize).max(1)
}

/// Patches of a picture before merging.
pub(crate) fn num_patches(grid_thw: [u32; 3]) -> usize {
    grid_thw.iter().fold(1_usize, |n, &x| n.saturating_mul(x as usize))
}

/// The spans of a request that [`PreparedRequest::validate`] accepts, in row order. A video that is cut into frames
/// has one span for each; two pictures that touch have one each.
pub(crate) fn picture_spans(request: &PreparedRequest, merge_size: u32) -> Vec<PictureSpan> {
    let mut spans = Vec::with_capacity(request.images.len());
    let mut ranges = request.image_token_ranges.iter().cloned();
    for (image, picture) in request.images.iter().enumerate() {
        let total = num_embeds(picture.grid_thw, merge_size);
        let mut first_embed = 0;
        while first_embed < total {
            let Some(rows) = ranges.next() else { return spans };
            let len = rows.len();
            spans.push(PictureSpan { image, hash: picture.hash, rows, first_embed });
            first_embed += len;
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{picture, request};

    fn layout(spans: &[PictureSpan]) -> Vec<(usize, Range<usize>, usize)> {
        spans.iter().map(|s| (s.image, s.rows.clone(), s.first_embed)).collect()
    }

    #[test]
    fn pictures_that_touch_and_videos_in_frames_are_told_apart() {
        let mut touching = request(&[1; 20]);
        touching.images = vec![picture([1, 2, 4], 1), picture([1, 4, 4], 2)];
        touching.image_token_ranges = vec![3..5, 5..9];
        assert_eq!(layout(&picture_spans(&touching, 2)), [(0, 3..5, 0), (1, 5..9, 0)]);

        let mut video = request(&[1; 20]);
        video.images = vec![picture([3, 4, 4], 1)];
        video.image_token_ranges = vec![1..5, 7..11, 12..16];
        assert_eq!(layout(&picture_spans(&video, 2)), [(0, 1..5, 0), (0, 7..11, 4), (0, 12..16, 8)]);
    }
}
