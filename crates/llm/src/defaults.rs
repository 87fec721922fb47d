//! How a model wants to be sampled where a request says nothing.

use foveal_checkpoint::GenerationConfig;
use foveal_types::{SamplingParams, TokenId};

use crate::LlmError;

/// A model's stop tokens and default sampling, from `generation_config.json`; the stop tokens fall back to the model's
/// config.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end an answer.
    pub stop_token_ids: Vec<TokenId>,
    /// The parameters of a request that sets none; what it does set, it writes over these. Greedy, unless the file says
    /// `do_sample`.
    pub sampling: SamplingParams,
}

impl GenerationDefaults {
    /// The defaults that a model folder asks for.
    ///
    /// As in HF transformers (5.17, `generation/configuration_utils.py`), `do_sample: false` or its absence means
    /// greedy decoding, and temperature, top-k and top-p are then left alone; a `do_sample` without a temperature has
    /// that of 1. Unlike there, an absent `top_k` keeps all tokens: what the file doesn't ask for isn't done.
    ///
    /// # Errors
    /// [`LlmError::GenerationConfig`] for a value out of its range, which would otherwise fail every request.
    pub fn new(config: &GenerationConfig) -> Result<Self, LlmError> {
        let off = SamplingParams::default();
        let mut sampling = SamplingParams {
            repetition_penalty: config.repetition_penalty.unwrap_or(off.repetition_penalty),
            ..off.clone()
        };
        if config.do_sample {
            sampling.temperature = config.temperature.unwrap_or(1.0);
            sampling.top_k = config.top_k.map_or(off.top_k, |k| k as usize);
            sampling.top_p = config.top_p.unwrap_or(off.top_p);
        }
        sampling.validate().map_err(LlmError::GenerationConfig)?;
        Ok(Self { stop_token_ids: config.eos_token_id.iter().copied().map(TokenId).collect(), sampling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> GenerationConfig {
        GenerationConfig {
            eos_token_id: vec![151_645, 151_643],
            do_sample: true,
            temperature: Some(0.7),
            top_k: Some(20),
            top_p: Some(0.8),
            repetition_penalty: Some(1.05),
        }
    }

    #[test]
    fn a_sampling_model_gives_its_values() {
        let defaults = GenerationDefaults::new(&published()).unwrap();
        let expected = SamplingParams {
            temperature: 0.7,
            top_k: 20,
            top_p: 0.8,
            repetition_penalty: 1.05,
            ..SamplingParams::default()
        };
        assert_eq!(defaults.sampling, expected);
        assert_eq!(defaults.stop_token_ids, [TokenId(151_645), TokenId(151_643)]);
        // A request's own values stand, the others stay the model's.
        let request = SamplingParams { temperature: 0.0, ..defaults.sampling.clone() };
        assert!(request.is_greedy() && request.top_k == 20);
    }

    #[test]
    fn without_do_sample_the_model_is_greedy() {
        let defaults = GenerationDefaults::new(&GenerationConfig { do_sample: false, ..published() }).unwrap();
        let expected = SamplingParams { repetition_penalty: 1.05, ..SamplingParams::default() };
        assert_eq!(defaults.sampling, expected);
        assert!(defaults.sampling.is_greedy());
    }

    #[test]
    fn what_the_file_leaves_out_is_off() {
        let config = GenerationConfig { do_sample: true, ..GenerationConfig::default() };
        let expected = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        assert_eq!(GenerationDefaults::new(&config).unwrap().sampling, expected);
    }

    #[test]
    fn a_value_out_of_range_is_the_files_fault() {
        let config = GenerationConfig { repetition_penalty: Some(0.0), ..published() };
        let message = GenerationDefaults::new(&config).unwrap_err().to_string();
        assert!(message.starts_with("generation_config.json: `repetition_penalty` is 0"), "{message}");
    }
}
