//! Counts of a request.

use serde::Serialize;
use utoipa::ToSchema;

/// Counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
}

/// What the prompt's tokens are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Those that were found in the KV cache.
    pub(crate) cached_tokens: usize,
    /// Those that stand for pictures.
    pub(crate) image_tokens: usize,
}

impl Usage {
    /// The counts of several answers to one prompt, which counts once. What the first answer found in the cache is what the
    /// prompt found there: the others find what the first has computed.
    pub(crate) fn of(choices: &[foveal_types::Usage]) -> Self {
        let Some(first) = choices.first() else { return Self::default() };
        let completion_tokens = choices.iter().map(|usage| usage.completion_tokens).sum();
        Self {
            prompt_tokens: first.prompt_tokens,
            completion_tokens,
            total_tokens: first.prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: choices.iter().map(|usage| usage.cached_tokens).min().unwrap_or_default(),
                image_tokens: first.image_tokens,
            },
        }
    }
}
