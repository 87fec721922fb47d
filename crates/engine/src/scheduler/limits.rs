//! What can ever fit.

use foveal_mrope::decode_position;
use foveal_types::{PreparedImage, PreparedRequest, RequestError};

use super::picture_span::{num_embeds, num_patches};

/// The sizes that bound every request, fixed when the engine is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of one page of the KV cache.
    pub page: usize,
    /// Pages of the KV cache.
    pub num_blocks: usize,
    /// The most tokens of one request, prompt and answer together.
    pub max_model_len: usize,
    /// The most tokens that one step computes, of all its sequences; longer prompts run in chunks.
    pub max_num_batched_tokens: usize,
    /// The most sequences that run side by side.
    pub max_num_seqs: usize,
    /// The most patches (before merging) that the vision tower's workspace holds: the encoder's budget of one step.
    pub max_patches: usize,
    /// The most embeddings (after merging) that are kept on the device, in use or for later.
    pub encoder_rows: usize,
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

    /// Whether sequences may ever have to make room for each other: not if the KV cache holds as many as can run, each as
    /// long as can be.
    pub(crate) fn may_preempt(&self) -> bool {
        let pages = self.max_seq_len().div_ceil(self.page.max(1));
        pages.saturating_mul(self.max_num_seqs) > self.num_blocks
    }

    /// Refuses a request that could never run, however long it waited.
    ///
    /// # Errors
    /// A [`RequestError`] with the numbers: `context_length_exceeded`, `image_too_large`, `invalid_image`,
    /// `invalid_prompt`, `invalid_value`, or what [`PreparedRequest::validate`] finds.
    pub fn check(&self, request: &PreparedRequest) -> Result<(), RequestError> {
        request.validate(self.merge_size)?;
        self.check_len(request.input_ids.len())?;
        self.check_positions(request)?;
        if let Some(id) = request.input_ids.iter().find(|id| id.0 as usize >= self.vocab_size) {
            let message = format!("token {} is outside of the model's vocabulary of {} tokens", id.0, self.vocab_size);
            return Err(RequestError::new("invalid_prompt", message));
        }
        if let Some(id) = request.sampling.stop_token_ids.iter().find(|id| id.0 as usize >= self.vocab_size) {
            let (id, vocab_size) = (id.0, self.vocab_size);
            let message = format!("token {id} can't be sampled: the model's vocabulary has {vocab_size} tokens");
            return Err(RequestError::new("invalid_value", message).at("stop_token_ids"));
        }
        let (min_tokens, room) =
            (request.sampling.min_tokens, self.max_answer_len(request.input_ids.len(), request.rope_delta));
        if min_tokens > room {
            let message = format!("`min_tokens` is {min_tokens}; the prompt leaves room for {room}");
            return Err(RequestError::new("invalid_value", message).at("min_tokens"));
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

    /// The rotary tables reach as far as `max_model_len`. Text never outruns its tokens, but a slow video whose positions
    /// count seconds does (Qwen2.5-VL).
    fn check_positions(&self, request: &PreparedRequest) -> Result<(), RequestError> {
        let (least, most) = request.positions.iter().fold((0, 0), |(least, most), &p| (p.min(least), p.max(most)));
        let first_generated = decode_position(request.input_ids.len(), request.rope_delta);
        let least = least.min(first_generated);
        if least < 0 {
            let message = format!("the prompt's positions, or those of its answer, begin at {least}, below 0");
            return Err(RequestError::new("invalid_prompt", message));
        }
        let end = usize::try_from(i64::from(most).saturating_add(1).max(first_generated.into())).unwrap_or(usize::MAX);
        if end >= self.max_model_len {
            let (prompt, max) = (request.input_ids.len(), self.max_model_len);
            let message = format!(
                "the prompt's {prompt} tokens take {end} positions, as its videos last longer than they have \
                 tokens, and leave no room for an answer in the maximum model length of {max}; use shorter videos, or \
                 raise the maximum model length"
            );
            return Err(RequestError::new("context_length_exceeded", message));
        }
        Ok(())
    }

    /// The most tokens that an answer to a prompt of `prompt` tokens can have: it ends with the model's length, counted
    /// in tokens or in positions, whichever comes first, or with the KV cache.
    pub(crate) fn max_answer_len(&self, prompt: usize, rope_delta: i32) -> usize {
        let first_position = usize::try_from(decode_position(prompt, rope_delta)).unwrap_or_default();
        let positions = self.max_model_len.saturating_sub(first_position);
        self.max_seq_len().saturating_sub(prompt).min(positions)
    }

    fn check_image(&self, index: usize, image: &PreparedImage) -> Result<(), RequestError> {
        let [t, h, w] = image.grid_thw;
        let bad = |code, message| Err(RequestError::new(code, message).at(format!("images[{index}]")));
        let patches = num_patches(image.grid_thw);
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
        let embeds = num_embeds(image.grid_thw, self.merge_size);
        if embeds > self.encoder_rows {
            let max = self.encoder_rows;
            let message = format!(
                "picture {} gives {embeds} embeddings ({t}x{h}x{w} patches); the encoder cache holds {max}: prepare it with \
                 fewer pixels or give the encoder cache more memory",
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
        let limits = Limits { encoder_rows: 3, ..limits };
        let (code, text) = message(&limits, &with_pictures(20, &[(4, picture([1, 4, 4], 1))]));
        assert_eq!(code, "image_too_large");
        assert!(text.contains("4 embeddings") && text.contains("holds 3"), "{text}");
    }

    #[test]
    fn nobody_makes_room_where_everybody_has_room() {
        let limits = Limits { max_model_len: 65, page: 32, max_num_seqs: 2, ..limits() };
        assert!(!Limits { num_blocks: 6, ..limits }.may_preempt());
        assert!(Limits { num_blocks: 5, ..limits }.may_preempt());
        assert!(
            !Limits { num_blocks: 2, max_num_seqs: 1, ..limits }.may_preempt(),
            "a sequence is as long as the cache"
        );
    }

    #[test]
    fn positions_stay_within_the_model() {
        let limits = Limits { max_model_len: 100, ..limits() };
        // What stands behind a slow video: the text goes on at `next`.
        let outrunning = |next: i32| {
            let mut slow = request(&[1; 10]);
            (0..3).for_each(|axis| slow.positions[10 * axis + 9] = next - 1);
            slow.rope_delta = next - 10;
            slow
        };
        limits.check(&outrunning(99)).unwrap();
        for next in [100, 101, i32::MAX] {
            let (code, text) = message(&limits, &outrunning(next));
            assert_eq!(code, "context_length_exceeded");
            assert!(text.contains(&format!("take {next} positions")) && text.contains("length of 100"), "{text}");
        }
        // One axis is enough, and so is the delta.
        let mut high = request(&[1; 10]);
        high.positions[15] = 100;
        assert_eq!(message(&limits, &high).0, "context_length_exceeded");
        let ahead = PreparedRequest { rope_delta: 90, ..request(&[1; 10]) };
        assert_eq!(message(&limits, &ahead).0, "context_length_exceeded");
        let mut low = request(&[1; 10]);
        low.positions[29] = -1;
        assert_eq!(message(&limits, &low).0, "invalid_prompt");
        let behind = PreparedRequest { rope_delta: -11, ..request(&[1; 10]) };
        assert_eq!(message(&limits, &behind).0, "invalid_prompt");
        for (delta, room) in [(-10, 90), (0, 90), (7, 83), (90, 0), (i32::MAX, 0)] {
            assert_eq!(limits.max_answer_len(10, delta), room);
        }
        assert_eq!(Limits { num_blocks: 1, ..limits }.max_answer_len(10, 7), 22);
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
