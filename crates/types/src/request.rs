//! A request as the engine takes it: nothing of templates, text or file formats is left.

use std::fmt;
use std::sync::Arc;

use crate::{PixelBlock, RequestError, SamplingParams, TokenId};

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
    pub pixels: Arc<dyn PixelBlock>,
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

/// A request as the engine takes it.
#[derive(Clone, Debug)]
pub struct PreparedRequest {
    /// The whole prompt, placeholders expanded. `[N]`
    pub input_ids: Vec<TokenId>,
    /// Which rows of `input_ids` are placeholders of pictures, in order and as half-open row ranges; their lengths sum
    /// to the pictures' merged tokens. What a row is comes from the request's structure, never from its token id.
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
    /// Checks that ids, positions, placeholder ranges and pictures fit each other. `merge_size` is the tower's
    /// `spatial_merge_size`.
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
        let mut rows = 0;
        for range in &self.image_token_ranges {
            if range.start < end || range.end > n || range.is_empty() {
                return bad(format!("the placeholder rows {range:?} overlap, are empty or lie outside of {n} tokens"));
            }
            end = range.end;
            rows += range.len();
        }
        let unit = u64::from(merge_size) * u64::from(merge_size);
        let merged: u64 =
            self.images.iter().map(|i| i.grid_thw.iter().map(|&x| u64::from(x)).product::<u64>() / unit).sum();
        if merged != rows as u64 {
            let images = self.images.len();
            return bad(format!("{rows} placeholder tokens for {images} pictures that give {merged} embeddings"));
        }
        self.sampling.validate()
    }
}
