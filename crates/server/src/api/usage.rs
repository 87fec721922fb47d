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

impl From<foveal_types::Usage> for Usage {
    fn from(usage: foveal_types::Usage) -> Self {
        let foveal_types::Usage { prompt_tokens, image_tokens, cached_tokens, completion_tokens, .. } = usage;
        let total_tokens = prompt_tokens + completion_tokens;
        let prompt_tokens_details = PromptTokensDetails { cached_tokens, image_tokens };
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }
}
