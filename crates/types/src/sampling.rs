//! How the next token is chosen.

use crate::{RequestError, TokenId};

/// How tokens are chosen and when to stop. The default is greedy decoding until a stop token or the model's length.
///
/// The order of operations is that of HF transformers 5.17 (`generation/logits_process.py`): penalties, temperature,
/// top-k, top-p, min-p, then one draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// The most tokens to generate; `None` until the context is full.
    pub max_tokens: Option<usize>,
    /// Stop tokens can't be chosen before this many tokens.
    pub min_tokens: usize,
    /// 0 chooses the best token (greedy); else logits are divided by it. At least 0.
    pub temperature: f32,
    /// Only the `top_k` best tokens stay; 0 keeps all.
    pub top_k: usize,
    /// Only the smallest set of best tokens whose probabilities reach `top_p` stays. In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Tokens less probable than `min_p` times the best one's probability are dropped. In [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that stand in the prompt or the answer. Above 0; 1 is
    /// off. (CTRL, arXiv:1909.05858.)
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that the answer holds. In [-2, 2]; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted, times their count in the answer. In [-2, 2]; 0 is off.
    pub frequency_penalty: f32,
    /// The seed of this request's own random stream; `None` draws a fresh one.
    pub seed: Option<u64>,
    /// The answer ends before any of these texts. The detokeniser looks for them, not the engine.
    pub stop: Vec<String>,
    /// The answer ends with any of these tokens, in addition to the model's own stop tokens.
    pub stop_token_ids: Vec<TokenId>,
    /// The model's own stop tokens don't end the answer.
    pub ignore_eos: bool,
    /// How many of the best tokens' log-probabilities to report for each token, before penalties and temperature;
    /// `None` reports none. At most [`SamplingParams::MAX_LOGPROBS`].
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: None,
            min_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// The most log-probabilities that one token can be asked for (OpenAI's `top_logprobs` limit).
    pub const MAX_LOGPROBS: usize = 20;
    /// The most stop texts of one request.
    pub const MAX_STOP: usize = 16;

    /// Whether choosing a token takes the answer so far: penalties count its tokens.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Checks every range.
    ///
    /// # Errors
    /// A [`RequestError`] with code `invalid_value` that names the first field out of its range.
    pub fn validate(&self) -> Result<(), RequestError> {
        let bad = |param: &str, message: String| Err(RequestError::new("invalid_value", message).at(param));
        let range = |param: &str, value: f32, ok: bool, want: &str| {
            if ok && value.is_finite() {
                Ok(())
            } else {
                bad(param, format!("`{param}` is {value}; it must be {want}"))
            }
        };
        if self.max_tokens == Some(0) {
            return bad("max_tokens", "`max_tokens` is 0; it must be at least 1".into());
        }
        if let Some(max) = self.max_tokens
            && self.min_tokens > max
        {
            return bad("min_tokens", format!("`min_tokens` is {}, above `max_tokens` {max}", self.min_tokens));
        }
        range("temperature", self.temperature, self.temperature >= 0.0, "0 or above")?;
        range("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        range("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1")?;
        range("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "above 0")?;
        let signed = |x: f32| (-2.0..=2.0).contains(&x);
        range("presence_penalty", self.presence_penalty, signed(self.presence_penalty), "between -2 and 2")?;
        range("frequency_penalty", self.frequency_penalty, signed(self.frequency_penalty), "between -2 and 2")?;
        if self.stop.len() > Self::MAX_STOP {
            let message = format!("{} stop texts; at most {} are taken", self.stop.len(), Self::MAX_STOP);
            return bad("stop", message);
        }
        if self.stop.iter().any(String::is_empty) {
            return bad("stop", "an empty stop text would end every answer before it begins".into());
        }
        if let Some(k) = self.logprobs
            && k > Self::MAX_LOGPROBS
        {
            let message = format!("`logprobs` is {k}; at most {} are reported", Self::MAX_LOGPROBS);
            return bad("logprobs", message);
        }
        Ok(())
    }

    /// Whether the best token is always chosen.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::SamplingParams;

    #[test]
    fn every_range_is_checked_by_name() {
        let base = SamplingParams::default;
        let cases: [(&str, SamplingParams); 9] = [
            ("max_tokens", SamplingParams { max_tokens: Some(0), ..base() }),
            ("min_tokens", SamplingParams { min_tokens: 3, max_tokens: Some(2), ..base() }),
            ("temperature", SamplingParams { temperature: f32::NAN, ..base() }),
            ("top_p", SamplingParams { top_p: 0.0, ..base() }),
            ("min_p", SamplingParams { min_p: -0.1, ..base() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base() }),
            ("presence_penalty", SamplingParams { presence_penalty: 2.5, ..base() }),
            ("stop", SamplingParams { stop: vec![String::new()], ..base() }),
            ("logprobs", SamplingParams { logprobs: Some(21), ..base() }),
        ];
        for (param, params) in cases {
            let error = params.validate().expect_err(param);
            assert_eq!(error.param.as_deref(), Some(param));
        }
        assert!(base().validate().is_ok());
    }
}
