//! A step's work and what becomes of its sequences.

use foveal_llm::{LlmError, SampledToken};
use foveal_types::{Error, RequestError, TokenLogprobs, TokenOutput};

use crate::scheduler::{EncodeBatch, SequenceRows, StepResults, Work};

/// Work from which sequences can fail one by one, and the results of all that it began with.
pub(crate) struct Outcome {
    work: Work,
    /// For each sequence that is left, its place among those that the work began with.
    places: Vec<usize>,
    samples: Vec<bool>,
    results: Vec<Result<Option<TokenOutput>, Error>>,
}

impl Outcome {
    pub(crate) fn new(work: Work) -> Self {
        Self {
            places: (0..work.sequences.len()).collect(),
            samples: work.sequences.iter().map(|sequence| sequence.samples).collect(),
            results: work.sequences.iter().map(|_| Ok(None)).collect(),
            work,
        }
    }

    /// What is left to do.
    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    /// The pictures to encode, which is done once.
    pub(crate) fn take_encode(&mut self) -> Option<EncodeBatch> {
        self.work.encode.take()
    }

    /// The sequence `at` of those left gives `error` and takes no part any more.
    pub(crate) fn fail(&mut self, at: usize, error: Error) {
        if at >= self.places.len() {
            debug_assert!(false, "{error}: sequence {at} of {}", self.places.len());
            return;
        }
        let place = self.places.remove(at);
        self.work.remove_sequence(at);
        if let Some(result) = self.results.get_mut(place) {
            *result = Err(error);
        }
    }

    /// Fails the sequences that `check`, given each with the arena's rows that it takes, doesn't accept.
    pub(crate) fn fail_where(
        &mut self,
        mut check: impl FnMut(&SequenceRows, &[Option<usize>]) -> Result<(), RequestError>,
    ) {
        let mut at = 0;
        while let Some(sequence) = self.work.sequences.get(at) {
            let embeds = self.work.image_embeds.get(sequence.rows.clone()).unwrap_or_default();
            match check(sequence, embeds) {
                Ok(()) => at += 1,
                Err(error) => self.fail(at, error.into()),
            }
        }
    }

    /// The tokens of those left that sample, in order.
    pub(crate) fn take_tokens(&mut self, tokens: Vec<Result<SampledToken, LlmError>>) {
        let sampling = self.work.sequences.iter().zip(&self.places).filter(|(sequence, _)| sequence.samples);
        for ((sequence, &place), token) in sampling.zip(tokens) {
            let Some(result) = self.results.get_mut(place) else { continue };
            let logprobs = sequence.ask.sampling.logprobs;
            *result = match token {
                Err(error) => Err(RequestError::new("no_usable_logits", error.to_string()).into()),
                Ok(token) => Ok(Some(TokenOutput {
                    token_id: token.token_id,
                    logprob: logprobs.map(|_| token.logprob),
                    logprobs: logprobs.map(|_| TokenLogprobs { top: token.top }),
                })),
            };
        }
    }

    /// The sequences left that sample, in order.
    pub(crate) fn sampling(&self) -> impl Iterator<Item = &SequenceRows> {
        self.work.sequences.iter().filter(|sequence| sequence.samples)
    }

    /// For each sequence that was to sample, its place among those left that do; `None` for those that failed before.
    pub(crate) fn sampled_rows(&self) -> Vec<Option<usize>> {
        let sampling = self.places.iter().filter(|&&place| self.samples.get(place) == Some(&true));
        let left: Vec<usize> = sampling.copied().collect();
        let planned = self.samples.iter().enumerate().filter(|(_, samples)| **samples);
        planned.map(|(place, _)| left.iter().position(|&other| other == place)).collect()
    }

    pub(crate) fn into_results(self) -> StepResults {
        StepResults { step: self.work.step, sequences: self.results }
    }
}

#[cfg(test)]
mod tests {
    use foveal_types::TokenId;

    use super::*;
    use crate::scheduler::testing::{seq_ids, work_of};

    fn token(id: u32) -> Result<SampledToken, LlmError> {
        Ok(SampledToken { token_id: TokenId(id), logprob: 0.0, top: Vec::new() })
    }

    #[test]
    fn one_sequence_fails_and_the_others_keep_their_places() {
        // Rows of four sequences; the second does not sample.
        let mut outcome = Outcome::new(work_of(&[(1, true), (3, false), (2, true), (1, true)]));
        let error = || RequestError::new("invalid_prompt", "bad");
        outcome.fail(0, error().into());
        assert_eq!(seq_ids(outcome.work()), [1, 2, 3]);
        let work = outcome.work();
        // Rows are numbered through, so that what is left shows what went.
        assert_eq!(work.image_embeds, (1..7).map(Some).collect::<Vec<_>>());
        assert_eq!(work.positions, [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20]);
        assert_eq!(work.sequences.iter().map(|s| s.rows.clone()).collect::<Vec<_>>(), [0..3, 3..5, 5..6]);
        outcome.fail_where(|sequence, embeds| {
            assert_eq!(embeds.len(), sequence.rows.len());
            if embeds.contains(&Some(4)) { Err(error()) } else { Ok(()) }
        });
        assert_eq!(seq_ids(outcome.work()), [1, 3]);
        assert_eq!(outcome.sampled_rows(), [None, None, Some(0)]);
        outcome.take_tokens(vec![token(9)]);
        let results = outcome.into_results().sequences;
        assert!(matches!(&results[..], [Err(_), Ok(None), Err(_), Ok(Some(_))]), "{results:?}");
    }
}
