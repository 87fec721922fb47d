//! Sampling options.

use foveal_types::SamplingParams;

/// What the command line sets of the sampling parameters; the rest stays the model's own. Fields are those of
/// [`SamplingParams`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SamplingOverrides {
    pub(crate) max_tokens: Option<usize>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) seed: Option<u64>,
    pub(crate) ignore_eos: bool,
    pub(crate) stop: Vec<String>,
    pub(crate) logprobs: Option<usize>,
}

impl SamplingOverrides {
    /// `base` with what is set here written over it.
    pub(crate) fn apply(&self, base: SamplingParams) -> SamplingParams {
        SamplingParams {
            max_tokens: self.max_tokens.or(base.max_tokens),
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            seed: self.seed.or(base.seed),
            ignore_eos: self.ignore_eos || base.ignore_eos,
            stop: if self.stop.is_empty() { base.stop } else { self.stop.clone() },
            logprobs: self.logprobs.or(base.logprobs),
            ..base
        }
    }
}
