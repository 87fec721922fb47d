//! The answers to one request, as they come side by side.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use foveal_engine::{DeltaStream, Engine};
use foveal_processor::{AnswerEvent, AnswerText, Processor};
use foveal_types::{Error, PreparedRequest, Usage};
use futures_util::stream::{SelectAll, Stream};
use futures_util::{FutureExt as _, StreamExt as _};

use crate::config::ServedModel;
use crate::error::ApiError;

/// One answer: the engine's deltas turned into text, on the task that sends it. Dropping it cancels the answer.
struct Choice {
    index: usize,
    /// `None` once nothing follows.
    deltas: Option<DeltaStream>,
    text: AnswerText,
    /// The first news, looked at when the answer was begun.
    first: Option<Result<AnswerEvent, Error>>,
}

/// News of one of the answers.
pub(crate) struct ChoiceEvent {
    /// Which answer.
    pub(crate) index: usize,
    /// What is new.
    pub(crate) event: Result<AnswerEvent, Error>,
}

/// The answers to one request. Ends when all have ended; dropping it cancels those that haven't.
pub(crate) struct Choices {
    streams: SelectAll<Choice>,
    /// The counts of each answer, final once it has ended. Answers to one prompt are side by side.
    usages: Vec<Usage>,
    /// Answers to each prompt.
    copies: usize,
}

impl Choices {
    /// Sends `copies` of each prepared request to the engine. Copies of one with a seed count up from it.
    ///
    /// # Errors
    /// What the engine refuses at once.
    pub(crate) fn start(model: &ServedModel, prompts: Vec<PreparedRequest>, copies: usize) -> Result<Self, ApiError> {
        let mut streams = SelectAll::new();
        let mut usages = Vec::new();
        for prompt in prompts {
            for copy in 0..copies {
                let mut request = prompt.clone();
                request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(copy as u64));
                let choice = Choice::start(&model.engine, &model.processor, request, usages.len())?;
                usages.push(choice.text.usage());
                streams.push(choice);
            }
        }
        Ok(Self { streams, usages, copies: copies.max(1) })
    }

    /// The next news of any answer.
    pub(crate) async fn next(&mut self) -> Option<ChoiceEvent> {
        let (index, event, usage) = self.streams.next().await?;
        if let Some(counts) = self.usages.get_mut(index) {
            *counts = usage;
        }
        Some(ChoiceEvent { index, event })
    }

    /// The counts so far of all answers. A prompt counts once.
    pub(crate) fn usage(&self) -> Usage {
        usage_of(&self.usages, self.copies)
    }
}

/// The counts of `copies` answers to each of several prompts. What the first answer found in the cache is what its prompt found
/// there: the others find what the first has computed.
fn usage_of(usages: &[Usage], copies: usize) -> Usage {
    let mut all = Usage::default();
    for answers in usages.chunks(copies) {
        let Some(first) = answers.first() else { continue };
        all.prompt_tokens += first.prompt_tokens;
        all.image_tokens += first.image_tokens;
        all.cached_tokens += answers.iter().map(|usage| usage.cached_tokens).min().unwrap_or_default();
        all.completion_tokens += answers.iter().map(|usage| usage.completion_tokens).sum::<usize>();
    }
    all
}

impl Choice {
    fn start(
        engine: &Engine,
        processor: &Arc<Processor>,
        request: PreparedRequest,
        index: usize,
    ) -> Result<Self, ApiError> {
        let text = AnswerText::new(&request, processor.detokenizer(&request.sampling.stop));
        let mut choice = Self { index, deltas: Some(engine.generate(request)), text, first: None };
        // What the engine refuses is there at once: then the status can say so, and no stream begins.
        match choice.next().now_or_never().flatten() {
            Some((_, Err(error), _)) => Err(error.into()),
            Some((_, event, _)) => Ok(Self { first: Some(event), ..choice }),
            None => Ok(choice),
        }
    }
}

impl Stream for Choice {
    type Item = (usize, Result<AnswerEvent, Error>, Usage);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let item = |event, text: &AnswerText| Poll::Ready(Some((this.index, event, text.usage())));
        if let Some(first) = this.first.take() {
            return item(first, &this.text);
        }
        if let Some(last) = this.text.stopped()
            && this.deltas.take().is_some()
        {
            // Dropping the stream has cancelled the answer.
            return item(Ok(last), &this.text);
        }
        loop {
            let Some(deltas) = &mut this.deltas else { return Poll::Ready(None) };
            match std::task::ready!(deltas.poll_next_unpin(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => {
                    this.deltas = None;
                    return item(Err(error), &this.text);
                }
                Some(Ok(delta)) => {
                    if let Some(event) = this.text.push(delta) {
                        if matches!(event, AnswerEvent::Finished { .. }) {
                            this.deltas = None;
                        }
                        return item(Ok(event), &this.text);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_counts_once_and_every_answer() {
        let answer = |prompt_tokens, cached_tokens, completion_tokens| Usage {
            prompt_tokens,
            image_tokens: 0,
            cached_tokens,
            completion_tokens,
        };
        let usage = usage_of(&[answer(3, 0, 5), answer(3, 2, 7), answer(9, 8, 1), answer(9, 8, 2)], 2);
        assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), (12, 8, 15));
        assert_eq!(usage_of(&[], 2), Usage::default());
    }
}
