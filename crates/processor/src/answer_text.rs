//! A request's news as text.

use foveal_types::{Delta, FinishReason, PreparedRequest, TokenOutput, Usage};

use crate::detokenizer::Detokenizer;

/// One piece of news of an answer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AnswerEvent {
    /// `done` of `total` prompt tokens are computed.
    Prefill {
        /// Prompt tokens computed or found in the cache.
        done: usize,
        /// All prompt tokens.
        total: usize,
    },
    /// A token was chosen.
    Token {
        /// The token.
        token: TokenOutput,
        /// The text that is certain now. It can be empty, and can hold what earlier tokens began.
        text: String,
    },
    /// The answer is complete.
    Finished {
        /// What text was still held back.
        text: String,
        /// Why it ended.
        reason: FinishReason,
        /// The final counts.
        usage: Usage,
    },
}

/// Turns an engine's deltas of one request into text, and ends the answer at its stop texts, which the engine doesn't know.
///
/// Feed it every delta in order. When [`AnswerText::stopped`] gives the last event, drop the engine's stream: that cancels the
/// request.
#[derive(Clone, Debug)]
pub struct AnswerText {
    detokenizer: Detokenizer,
    usage: Usage,
    /// The first news has come, which says how much of the prompt was cached.
    has_started: bool,
    /// A stop text is complete.
    has_stopped: bool,
}

impl AnswerText {
    /// Before the first delta. The detokeniser is a fresh one with the request's stop texts.
    #[must_use]
    pub fn new(request: &PreparedRequest, detokenizer: Detokenizer) -> Self {
        let usage = Usage {
            prompt_tokens: request.input_ids.len(),
            image_tokens: request.image_token_ranges.iter().map(ExactSizeIterator::len).sum(),
            ..Usage::default()
        };
        Self { detokenizer, usage, has_started: false, has_stopped: false }
    }

    /// The counts as far as they are known.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// What a delta comes to; `None` for one that nobody waits for.
    pub fn push(&mut self, delta: Delta) -> Option<AnswerEvent> {
        match delta {
            Delta::Prefill { done, total } => {
                if !std::mem::replace(&mut self.has_started, true) {
                    self.usage.cached_tokens = done;
                }
                Some(AnswerEvent::Prefill { done, total })
            }
            Delta::Token(token) => {
                self.usage.completion_tokens += 1;
                let chunk = self.detokenizer.push(token.token_id);
                self.has_stopped = chunk.stopped;
                Some(AnswerEvent::Token { token, text: chunk.text })
            }
            Delta::Finished { reason, usage } => {
                self.usage = usage;
                let chunk = self.detokenizer.finish();
                let reason = if chunk.stopped { FinishReason::Stop } else { reason };
                Some(AnswerEvent::Finished { text: chunk.text, reason, usage })
            }
            _ => None,
        }
    }

    /// The last event, once a stop text has ended the answer before the engine does.
    #[must_use]
    pub fn stopped(&self) -> Option<AnswerEvent> {
        let (reason, usage) = (FinishReason::Stop, self.usage);
        self.has_stopped.then(|| AnswerEvent::Finished { text: String::new(), reason, usage })
    }
}
