//! When an answer ends.

use foveal_types::{FinishReason, SamplingParams, TokenId};

use crate::GenerationDefaults;

/// When one answer ends: its stop tokens and how many tokens it may have. Stop texts are the detokeniser's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopCriteria {
    /// Sorted, without repetition.
    tokens: Vec<TokenId>,
    max_tokens: usize,
}

impl StopCriteria {
    /// The criteria of a request: the model's stop tokens (unless `ignore_eos`), the request's own, and `max_tokens`
    /// within what `max_model_len` leaves beyond a prompt of `prompt_len` tokens. Where positions run ahead of tokens
    /// (a positive M-RoPE delta), pass a `max_model_len` that is smaller by as much.
    #[must_use]
    pub fn new(
        params: &SamplingParams,
        defaults: &GenerationDefaults,
        prompt_len: usize,
        max_model_len: usize,
    ) -> Self {
        let mut tokens = params.stop_token_ids.clone();
        if !params.ignore_eos {
            tokens.extend_from_slice(&defaults.stop_token_ids);
        }
        tokens.sort_unstable();
        tokens.dedup();
        let room = max_model_len.saturating_sub(prompt_len);
        Self { tokens, max_tokens: params.max_tokens.map_or(room, |max| max.min(room)) }
    }

    /// The tokens that end the answer, ascending.
    #[must_use]
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The most tokens that the answer can have; 0 when the prompt leaves no room.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Whether the answer ends with `token`, its `num_generated`th token (counted from 1). A stop token at the limit is a
    /// stop.
    #[must_use]
    pub fn finish_reason(&self, token: TokenId, num_generated: usize) -> Option<FinishReason> {
        if self.tokens.binary_search(&token).is_ok() {
            Some(FinishReason::Stop)
        } else if num_generated >= self.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> GenerationDefaults {
        GenerationDefaults { stop_token_ids: vec![TokenId(9), TokenId(4)], ..GenerationDefaults::default() }
    }

    #[test]
    fn stop_tokens_are_the_models_and_the_requests() {
        let params = SamplingParams { stop_token_ids: vec![TokenId(7), TokenId(9)], ..SamplingParams::default() };
        let stop = StopCriteria::new(&params, &model(), 3, 10);
        assert_eq!(stop.tokens(), [TokenId(4), TokenId(7), TokenId(9)]);
        for (token, reason) in [(4, Some(FinishReason::Stop)), (5, None), (7, Some(FinishReason::Stop))] {
            assert_eq!(stop.finish_reason(TokenId(token), 1), reason);
        }
        let stop = StopCriteria::new(&SamplingParams { ignore_eos: true, ..params }, &model(), 3, 10);
        assert_eq!(stop.finish_reason(TokenId(4), 1), None);
        assert_eq!(stop.finish_reason(TokenId(9), 1), Some(FinishReason::Stop), "the request's own stop token stays");
    }

    #[test]
    fn length_is_the_smaller_of_both_limits() {
        let limit = |max_tokens, prompt_len| {
            let params = SamplingParams { max_tokens, ..SamplingParams::default() };
            StopCriteria::new(&params, &model(), prompt_len, 10).max_tokens()
        };
        assert_eq!(
            [limit(None, 3), limit(Some(2), 3), limit(Some(9), 3), limit(None, 10), limit(None, 12)],
            [7, 2, 7, 0, 0]
        );
        let stop = StopCriteria::new(&SamplingParams { max_tokens: Some(2), ..Default::default() }, &model(), 0, 10);
        assert_eq!(stop.finish_reason(TokenId(1), 1), None);
        assert_eq!(stop.finish_reason(TokenId(1), 2), Some(FinishReason::Length));
        assert_eq!(stop.finish_reason(TokenId(4), 2), Some(FinishReason::Stop), "a stop token at the limit is a stop");
    }
}
