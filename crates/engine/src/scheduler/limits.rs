//! What can ever fit.

use foveal_types::{PreparedImage, PreparedRequest, RequestError};

use super::picture_span::num_patches;

/// The sizes that bound every request, fixed when the engine is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of one page of the KV cache.
    pub page: usize,
    /// Pages of the KV cache.
    pub num_blocks: usize,
    /// The most tokens of one request, prompt and answer together.
    pub max_model_len: usize,
    /// The most tokens that one step computes; longer prompts run in chunks of this size.
    pub max_num_batched_tokens: usize,
    /// The most patches (before merging) that the vision tower's workspace holds.
    pub max_patches: usize,
    /// The tower's `spatial_merge_size`.
    pub merge_size: u32,
    /// Bytes of one patch of one temporal slice: `channels * patch_size * patch_size`.
    pub patch_bytes: usize,
    /// The tower's `temporal_patch_size`.
    pub temporal_patch_size: u32,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
}

impl Limits {
    /// The most tokens that one request can come to: the model's length, or what the KV cache holds.
    #[must_use]
    pub fn max_seq_len(&self) -> usize {
        self.max_model_len.min(self.num_blocks.saturating_mul(self.page))
    }

    /// Refuses a request that could never run, however long it waited.
    ///
    /// # Errors
    /// A [`RequestError`] with the numbers: `context_length_exceeded`, `image_too_large`, `invalid_image`,
    /// `invalid_prompt`, or what [`PreparedRequest::validate`] finds.
    pub fn check(&self, request: &PreparedRequest) -> Result<(), RequestError> {
        request.validate(self.merge_size)?;
        self.check_len(request.input_ids.len())?;
        if let Some(id) = request.input_ids.iter().find(|id| id.0 as usize >= self.vocab_size) {
            let message = format!("token {} is outside of the model's vocabulary of {} tokens", id.0, self.vocab_size);
            return Err(RequestError::new("invalid_prompt", message));
        }
        request.images.iter().enumerate().try_for_each(|(i, image)| self.check_image(i, image))
    }

    fn check_len(&self, prompt: usize) -> Result<(), RequestError> {
        const CODE: &str = "context_length_exceeded";
        if prompt >= self.max_model_len {
            let max = self.max_model_len;
            let message = format!(
                "the prompt has {prompt} tokens, pictures included, and leaves no room for an answer in the maximum \
                 model length of {max}; shorten it, use smaller pictures, or raise the maximum model length"
            );
            return Err(RequestError::new(CODE, message));
        }
        if prompt >= self.max_seq_len() {
            let (held, blocks, page) = (self.max_seq_len(), self.num_blocks, self.page);
            let message = format!(
                "the prompt has {prompt} tokens, pictures included, but the KV cache holds {held} ({blocks} pages of \
                 {page}) and needs room for an answer too; shorten the prompt or give the KV cache more memory"
            );
            return Err(RequestError::new(CODE, message));
        }
        Ok(())
    }

    fn check_image(&self, index: usize, image: &PreparedImage) -> Result<(), RequestError> {
        let [t, h, w] = image.grid_thw;
        let bad = |code, message| Err(RequestError::new(code, message).at(format!("images[{index}]")));
        let patches = num_patches(image.grid_thw);
        if patches == 0 || !h.is_multiple_of(self.merge_size) || !w.is_multiple_of(self.merge_size) {
            let merge = self.merge_size;
            return bad(
                "invalid_image",
                format!(
                    "picture {} has the patch grid {t}x{h}x{w}; height and width must be multiples of {merge}",
                    index + 1
                ),
            );
        }
        let slices_fit = image.temporal_slices == self.temporal_patch_size || (image.temporal_slices == 1 && t == 1);
        let expected = patches.saturating_mul(image.temporal_slices as usize).saturating_mul(self.patch_bytes);
        let got = image.pixels.bytes().len();
        if !slices_fit || got != expected {
            let slices = image.temporal_slices;
            return bad(
                "invalid_image",
                format!(
                    "picture {} has {got} bytes in {slices} slices; the patch grid {t}x{h}x{w} takes {expected}",
                    index + 1
                ),
            );
        }
        if patches > self.max_patches {
            let max = self.max_patches;
            let message = format!(
                "picture {} has {patches} patches ({t}x{h}x{w}); the vision workspace holds {max}: prepare it with \
                 fewer pixels or build the engine with more patches",
                index + 1
            );
            return bad("image_too_large", message);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{limits, picture, request, with_pictures};
    use foveal_types::TokenId;

    fn message(limits: &Limits, request: &PreparedRequest) -> (&'static str, String) {
        let error = limits.check(request).unwrap_err();
        (error.code, error.message)
    }

    #[test]
    fn what_can_never_fit_is_refused_with_its_numbers() {
        let limits = Limits { max_model_len: 100, num_blocks: 2, page: 32, max_patches: 16, ..limits() };
        assert!(limits.check(&request(&[1; 63])).is_ok());
        let (code, text) = message(&limits, &request(&[1; 64]));
        assert_eq!(code, "context_length_exceeded");
        assert!(text.contains("64 tokens") && text.contains("2 pages of 32"), "{text}");
        let (code, text) = message(&limits, &request(&[1; 100]));
        assert_eq!(code, "context_length_exceeded");
        assert!(text.contains("100 tokens") && text.contains("length of 100"), "{text}");
        let (code, text) = message(&limits, &with_pictures(20, &[(4, picture([1, 4, 6], 1))]));
        assert_eq!(code, "image_too_large");
        assert!(text.contains("24 patches") && text.contains("holds 16"), "{text}");
    }

    #[test]
    fn malformed_requests_are_refused_by_name() {
        let limits = limits();
        assert_eq!(message(&limits, &request(&[])).0, "invalid_prompt");
        let mut outside = request(&[1, 2]);
        outside.input_ids[1] = TokenId(1 << 20);
        assert!(message(&limits, &outside).1.contains("token 1048576"));
        let mut odd = picture([1, 4, 4], 1);
        odd.grid_thw = [1, 2, 8];
        assert!(limits.check(&with_pictures(20, &[(4, odd)])).is_ok());
        let mut odd = picture([1, 4, 4], 1);
        odd.grid_thw = [1, 1, 16];
        assert_eq!(message(&limits, &with_pictures(20, &[(4, odd)])).0, "invalid_image");
        let mut short = picture([1, 4, 4], 1);
        short.grid_thw = [1, 4, 8];
        assert_eq!(message(&limits, &with_pictures(20, &[(4, short)])).0, "invalid_image");
        let mut slices = picture([2, 4, 4], 1);
        slices.temporal_slices = 1;
        assert_eq!(message(&limits, &with_pictures(20, &[(4, slices)])).0, "invalid_image");
    }
}
