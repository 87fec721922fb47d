//! An answer as it comes.

use foveal_engine::BlockingDeltas;
use foveal_processor::{AnswerEvent, AnswerText};
use foveal_types::Error;

/// A running answer: a blocking iterator that ends after [`AnswerEvent::Finished`] or the first error. Dropping it
/// cancels.
#[derive(Debug)]
pub struct Answer {
    /// `None` once nothing follows.
    deltas: Option<BlockingDeltas>,
    text: AnswerText,
}

impl Answer {
    pub(crate) fn new(deltas: BlockingDeltas, text: AnswerText) -> Self {
        Self { deltas: Some(deltas), text }
    }
}

impl Iterator for Answer {
    type Item = Result<AnswerEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(last) = self.text.stopped()
            && self.deltas.take().is_some()
        {
            // Dropping the stream has cancelled the request.
            return Some(Ok(last));
        }
        loop {
            match self.deltas.as_mut()?.next()? {
                Err(error) => {
                    self.deltas = None;
                    return Some(Err(error));
                }
                Ok(delta) => {
                    if let Some(event) = self.text.push(delta) {
                        if matches!(event, AnswerEvent::Finished { .. }) {
                            self.deltas = None;
                        }
                        return Some(Ok(event));
                    }
                }
            }
        }
    }
}
