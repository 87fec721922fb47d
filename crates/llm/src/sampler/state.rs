//! What sampling keeps of one sequence.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use foveal_kernels::sampling::RowSampling;
use foveal_types::{RequestError, SamplingParams, TokenId};

use crate::StopCriteria;

/// How one sequence's tokens are chosen, and what choosing the next one needs to know of those before. Survives the
/// sequence's cache: a sequence that is computed again goes on where it was.
#[derive(Clone, Debug)]
pub struct SamplerState {
    /// `draw` counts the tokens chosen so far.
    row: RowSampling,
    min_tokens: u64,
    /// Can't be chosen before `min_tokens`.
    stop_tokens: Vec<u32>,
    num_top: usize,
    /// `None` for a sequence without penalties, which needs no counting.
    seen: Option<SeenTokens>,
}

/// The tokens of one sequence, sparsely: its text is far shorter than the vocabulary.
#[derive(Clone, Debug)]
pub(super) struct SeenTokens {
    /// The prompt's, ascending, each once; none where no penalty looks at it.
    pub(super) prompt: Vec<u32>,
    /// How often each stands in the answer.
    pub(super) output: BTreeMap<u32, i32>,
}

impl SeenTokens {
    fn new(prompt: &[TokenId]) -> Self {
        let mut prompt: Vec<u32> = prompt.iter().map(|token| token.0).collect();
        prompt.sort_unstable();
        prompt.dedup();
        Self { prompt, output: BTreeMap::new() }
    }
}

impl SamplerState {
    /// The state of a sequence before its first token. A request without a seed gets a fresh one.
    ///
    /// # Errors
    /// A [`RequestError`] for parameters out of their range.
    pub fn new(params: &SamplingParams, prompt: &[TokenId], stop: &StopCriteria) -> Result<Self, RequestError> {
        params.validate()?;
        let row = RowSampling {
            temperature: params.temperature,
            // Above 2^32 tokens no vocabulary is cut.
            top_k: u32::try_from(params.top_k).unwrap_or(0),
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            // The standard library's own random keys: nothing here needs more than distinct streams.
            seed: params.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
            draw: 0,
        };
        Ok(Self {
            row,
            min_tokens: params.min_tokens as u64,
            stop_tokens: stop.tokens().iter().map(|token| token.0).collect(),
            num_top: params.logprobs.unwrap_or(0),
            seen: params.has_penalties().then(|| SeenTokens::new(if row.reads_prompt() { prompt } else { &[] })),
        })
    }

    /// Tokens chosen so far, those included that the device is choosing.
    #[must_use]
    pub fn num_generated(&self) -> u64 {
        self.row.draw
    }

    pub(super) fn row(&self) -> RowSampling {
        self.row
    }

    /// How many of the best tokens are reported.
    pub(super) fn num_top(&self) -> usize {
        self.num_top
    }

    /// Tokens that can't be chosen now.
    pub(super) fn banned(&self) -> &[u32] {
        if self.row.draw < self.min_tokens { &self.stop_tokens } else { &[] }
    }

    pub(super) fn has_penalties(&self) -> bool {
        self.seen.is_some()
    }

    pub(super) fn seen(&self) -> Option<&SeenTokens> {
        self.seen.as_ref()
    }

    /// Counts a token that is being chosen.
    pub(super) fn count_draw(&mut self) {
        self.row.draw += 1;
    }

    /// The token that was counted last was none.
    pub(super) fn take_back_draw(&mut self) {
        self.row.draw = self.row.draw.saturating_sub(1);
    }

    /// Writes down the token that [`super::Sampler::finish`] gave.
    pub fn record(&mut self, token: TokenId) {
        if let Some(seen) = &mut self.seen {
            *seen.output.entry(token.0).or_default() += 1;
        }
    }
}
