//! What an answer is made of.

use crate::TokenId;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop token or a stop text.
    Stop,
    /// `max_tokens` or the model's length.
    Length,
    /// The caller went away.
    Cancelled,
}

impl FinishReason {
    /// OpenAI's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The best tokens of one step with their log-probabilities.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// The best tokens, best first, before penalties and temperature.
    pub top: Vec<(TokenId, f32)>,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOutput {
    /// The token.
    pub token_id: TokenId,
    /// Its log-probability, before penalties and temperature; present if `logprobs` was asked for.
    pub logprob: Option<f32>,
    /// The step's best tokens, if asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Counts of one request, final with the last delta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, placeholders included.
    pub prompt_tokens: usize,
    /// Those that are placeholders of pictures.
    pub image_tokens: usize,
    /// Tokens of the prompt that were found in the cache.
    pub cached_tokens: usize,
    /// Generated tokens.
    pub completion_tokens: usize,
}

/// One step's news of one request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Delta {
    /// `done` of `total` prompt tokens have been computed.
    Prefill {
        /// Prompt tokens computed or found in the cache so far.
        done: usize,
        /// All prompt tokens.
        total: usize,
    },
    /// A token was chosen. A stop token is reported too; it has no text.
    Token(TokenOutput),
    /// The answer is complete; nothing follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// The final counts.
        usage: Usage,
    },
}
