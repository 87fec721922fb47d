//! A request as the engine takes it: nothing of templates, text or file formats is left.

use std::fmt;
use std::sync::Arc;

use crate::{Pixels, RequestError, SamplingParams, TokenId};

/// A full 256-bit hash of a picture's decoded pixels and of the processor's settings: two equal hashes mean equal
/// embeddings, whatever file or address the picture came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One picture, or one video, ready for the vision tower.
#[derive(Clone)]
pub struct PreparedImage {
    /// Patches along time, height and width, before merging (HF's `image_grid_thw` row).
    pub grid_thw: [u32; 3],
    /// uint8 pixels in patch order. A still picture holds one temporal copy: `[h * w, channels, patch, patch]`. A
    /// video holds all: `[t * h * w, channels, temporal_patch, patch, patch]`. Not normalised.
    pub pixels: Arc<dyn Pixels>,
    /// How many temporal slices of a patch `pixels` holds: 1 for a still picture, else `temporal_patch_size`.
    pub temporal_slices: u32,
    /// What the picture is known by in caches.
    pub hash: ContentHash,
    /// The first row of `input_ids` that holds one of this picture's placeholders. A still picture's placeholders
    /// are contiguous; a video's may be cut into frames.
    pub placeholder_start: usize,
}

impl fmt::Debug for PreparedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedImage")
            .field("grid_thw", &self.grid_thw)
            .field("pixels_bytes", &self.pixels.bytes().len())
            .field("temporal_slices", &self.temporal_slices)
            .field("hash", &self.hash)
            .field("placeholder_start", &self.placeholder_start)
            .finish()
    }
}

impl PreparedImage {
    /// Whether this is a still picture: its placeholders are then contiguous.
    fn is_still(&self) -> bool {
        self.temporal_slices == 1 && self.grid_thw.first() == Some(&1)
    }

    /// The embeddings that the tower gives: patches merged `merge_size x merge_size`.
    fn num_embeds(&self, merge_size: u32) -> Result<usize, RequestError> {
        let [t, h, w] = self.grid_thw;
        let bad = |message| RequestError::new("invalid_image", message);
        let merged = |x: u32| x.checked_div(merge_size).filter(|&cells| cells > 0 && cells * merge_size == x);
        let (Some(h_cells), Some(w_cells), 1..) = (merged(h), merged(w), t) else {
            return Err(bad(format!(
                "the patch grid {t}x{h}x{w} is empty, or its height and width aren't multiples of {merge_size}"
            )));
        };
        let embeds = [t, h_cells, w_cells].iter().try_fold(1_usize, |n, &x| n.checked_mul(usize::try_from(x).ok()?));
        embeds.ok_or_else(|| bad(format!("the patch grid {t}x{h}x{w} has more patches than can be counted")))
    }
}

/// A request as the engine takes it.
#[derive(Clone, Debug)]
pub struct PreparedRequest {
    /// The whole prompt, placeholders expanded. `[N]`
    pub input_ids: Vec<TokenId>,
    /// Which rows of `input_ids` are placeholders of pictures, in order and as half-open row ranges: one range for each
    /// still picture, one or more for each video. A picture's ranges hold as many rows as it has merged tokens, and two
    /// pictures that stand side by side have a range each. What a row is comes from the request's structure, never from
    /// its token id.
    pub image_token_ranges: Vec<std::ops::Range<usize>>,
    /// M-RoPE positions, row-major `[3, N]`: all of t, then all of h, then all of w.
    pub positions: Vec<i32>,
    /// What to add to a sequence index beyond the prompt to get its position on all three axes.
    pub rope_delta: i32,
    /// The pictures, in the order of their placeholders.
    pub images: Vec<PreparedImage>,
    /// How to choose tokens and when to stop.
    pub sampling: SamplingParams,
}

impl PreparedRequest {
    /// Checks that ids, positions, placeholder ranges and pictures fit each other, picture by picture. `merge_size` is
    /// the tower's `spatial_merge_size`.
    ///
    /// # Errors
    /// A [`RequestError`] that names the part which doesn't fit.
    pub fn validate(&self, merge_size: u32) -> Result<(), RequestError> {
        let bad = |message: String| Err(RequestError::new("invalid_prompt", message));
        let n = self.input_ids.len();
        if n == 0 {
            return bad("the prompt has no tokens".into());
        }
        if self.positions.len() != 3 * n {
            return bad(format!("{} positions for {n} tokens; [3, {n}] were expected", self.positions.len()));
        }
        let mut end = 0;
        for range in &self.image_token_ranges {
            if range.start < end || range.end > n || range.is_empty() {
                return bad(format!("the placeholder rows {range:?} overlap, are empty or lie outside of {n} tokens"));
            }
            end = range.end;
        }
        self.match_placeholders(merge_size)?;
        self.sampling.validate()
    }

    /// Gives the ranges to the pictures in turn: each must take whole ranges, the first where the picture says.
    fn match_placeholders(&self, merge_size: u32) -> Result<(), RequestError> {
        let mut ranges = self.image_token_ranges.iter();
        for (index, image) in self.images.iter().enumerate() {
            let param = format!("images[{index}]");
            let embeds = image.num_embeds(merge_size).map_err(|error| error.at(param.as_str()))?;
            let (name, start) = (index + 1, image.placeholder_start);
            let bad = |message| Err(RequestError::new("invalid_prompt", message).at(param.as_str()));
            let (mut rows, mut num_ranges) = (0, 0);
            while rows < embeds {
                let Some(range) = ranges.next() else {
                    return bad(format!("picture {name} gives {embeds} embeddings; {rows} placeholder rows are left"));
                };
                if rows == 0 && range.start != start {
                    let row = range.start;
                    return bad(format!("picture {name} begins at row {start}, its placeholders at row {row}"));
                }
                rows += range.len();
                num_ranges += 1;
            }
            if rows != embeds {
                return bad(format!(
                    "picture {name} gives {embeds} embeddings; its ranges hold {rows} placeholder rows"
                ));
            }
            if num_ranges > 1 && image.is_still() {
                return bad(format!("the placeholders of picture {name}, a still, are cut into {num_ranges} ranges"));
            }
        }
        match ranges.next() {
            None => Ok(()),
            Some(range) => {
                let message =
                    format!("the placeholder rows {range:?} belong to none of {} pictures", self.images.len());
                Err(RequestError::new("invalid_prompt", message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(grid_thw: [u32; 3], temporal_slices: u32, placeholder_start: usize) -> PreparedImage {
        let (pixels, hash) = (Arc::new(Vec::<u8>::new()), ContentHash([0; 32]));
        PreparedImage { grid_thw, pixels, temporal_slices, hash, placeholder_start }
    }

    /// Twenty tokens at positions 0, 1, 2, ... with these pictures and ranges.
    fn request(images: Vec<PreparedImage>, image_token_ranges: Vec<std::ops::Range<usize>>) -> PreparedRequest {
        PreparedRequest {
            input_ids: vec![TokenId(1); 20],
            image_token_ranges,
            positions: (0..3).flat_map(|_| 0..20).collect(),
            rope_delta: 0,
            images,
            sampling: SamplingParams::default(),
        }
    }

    #[test]
    fn every_picture_has_its_own_placeholders() {
        let two = |first, second| vec![image([1, 4, 4], 1, first), image([1, 4, 6], 1, second)];
        let check = |images, ranges| request(images, ranges).validate(2);
        // Side by side or apart, a range each.
        check(two(2, 6), vec![2..6, 6..12]).unwrap();
        check(two(2, 8), vec![2..6, 8..14]).unwrap();
        let refused = [
            (two(2, 8), vec![2..8, 8..12], "picture 1 gives 4 embeddings; its ranges hold 6"),
            (two(2, 6), Vec::from_iter(Some(2..12)), "picture 1 gives 4 embeddings; its ranges hold 10"),
            (two(2, 6), vec![2..6, 7..13], "picture 2 begins at row 6, its placeholders at row 7"),
            (two(2, 6), Vec::from_iter(Some(2..6)), "picture 2 gives 6 embeddings; 0 placeholder rows"),
            (two(2, 6), vec![2..4, 4..6, 6..12], "a still, are cut into 2"),
            (two(2, 6), vec![2..6, 6..12, 12..13], "12..13 belong to none of 2 pictures"),
            (Vec::new(), Vec::from_iter(Some(3..4)), "belong to none of 0 pictures"),
        ];
        for (images, ranges, expected) in refused {
            let error = check(images, ranges).unwrap_err();
            assert!(error.code == "invalid_prompt" && error.message.contains(expected), "{expected}: {error}");
        }
        assert_eq!(check(two(2, 6), vec![2..6, 7..13]).unwrap_err().param.as_deref(), Some("images[1]"));
    }

    #[test]
    fn a_video_may_be_cut_into_frames() {
        let video = || vec![image([3, 4, 4], 2, 1), image([1, 2, 2], 2, 18)];
        request(video(), vec![1..5, 7..11, 12..16, 18..19]).validate(2).unwrap();
        request(video(), vec![1..13, 18..19]).validate(2).unwrap();
        let error = request(video(), vec![1..5, 7..11, 12..17, 18..19]).validate(2).unwrap_err();
        assert!(error.message.contains("gives 12 embeddings; its ranges hold 13"), "{error}");
    }

    #[test]
    fn no_grid_overflows_or_divides_by_nothing() {
        let most = u32::MAX;
        let grids = [
            ([most, most - 1, most - 1], 2),
            ([most, most, most], 1),
            ([0, 4, 4], 2),
            ([1, 0, 4], 2),
            ([1, 4, 0], 2),
            ([1, 4, 5], 2),
            ([1, 4, 4], 0),
            ([1, 4, 4], most),
        ];
        for (grid_thw, merge_size) in grids {
            for temporal_slices in [1, 2] {
                let one = request(vec![image(grid_thw, temporal_slices, 0)], Vec::from_iter(Some(0..4)));
                let error = one.validate(merge_size).unwrap_err();
                assert_eq!((error.code, error.param.as_deref()), ("invalid_image", Some("images[0]")), "{grid_thw:?}");
            }
        }
    }
}
