//! An answer as it comes.

use foveal_engine::BlockingDeltas;
use foveal_processor::Detokenizer;
use foveal_types::{Delta, Error, FinishReason, PreparedRequest, TokenOutput, Usage};

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

/// A running answer: a blocking iterator that ends after [`AnswerEvent::Finished`] or the first error. Dropping it
/// cancels.
#[derive(Debug)]
pub struct Answer {
    /// `None` once nothing follows.
    deltas: Option<BlockingDeltas>,
    detokenizer: Detokenizer,
    usage: Usage,
    /// The first news has come, which says how much of the prompt was cached.
    has_started: bool,
    /// A stop text is complete: the next event is the last one.
    has_stopped: bool,
}

impl Answer {
    pub(crate) fn new(deltas: BlockingDeltas, detokenizer: Detokenizer, usage: Usage) -> Self {
        Self { deltas: Some(deltas), detokenizer, usage, has_started: false, has_stopped: false }
    }

    /// What is known of a request's counts before it runs.
    pub(crate) fn counts_before(request: &PreparedRequest) -> Usage {
        Usage {
            prompt_tokens: request.input_ids.len(),
            image_tokens: request.image_token_ranges.iter().map(ExactSizeIterator::len).sum(),
            ..Usage::default()
        }
    }

    fn event(&mut self, delta: Delta) -> Option<AnswerEvent> {
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
                self.deltas = None;
                let chunk = self.detokenizer.finish();
                let reason = if chunk.stopped { FinishReason::Stop } else { reason };
                Some(AnswerEvent::Finished { text: chunk.text, reason, usage })
            }
            _ => None,
        }
    }
}

impl Iterator for Answer {
    type Item = Result<AnswerEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_stopped && self.deltas.take().is_some() {
            // Dropping the stream has cancelled the request; the engine doesn't look for stop texts itself.
            return Some(Ok(AnswerEvent::Finished {
                text: String::new(),
                reason: FinishReason::Stop,
                usage: self.usage,
            }));
        }
        loop {
            match self.deltas.as_mut()?.next()? {
                Err(error) => {
                    self.deltas = None;
                    return Some(Err(error));
                }
                Ok(delta) => {
                    if let Some(event) = self.event(delta) {
                        return Some(Ok(event));
                    }
                }
            }
        }
    }
}
