//! The parameters that both kinds of completion share.

use foveal_types::{RequestError, SamplingParams, TokenId};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::answer::StreamUsage;

/// How tokens are chosen, when an answer ends and how it is sent. Names are OpenAI's, and vLLM's where OpenAI has none.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct SamplingFields {
    /// The most tokens of the answer; by default as many as the model's length leaves.
    pub(crate) max_tokens: Option<usize>,
    /// The same, in OpenAI's newer spelling.
    pub(crate) max_completion_tokens: Option<usize>,
    /// Stop tokens can't be chosen before this many tokens.
    pub(crate) min_tokens: Option<usize>,
    /// 0 takes the best token. The default is the model's own (generation_config.json), else 0.
    pub(crate) temperature: Option<f32>,
    /// Only the smallest set of tokens whose probabilities reach this stays.
    pub(crate) top_p: Option<f32>,
    /// Only this many best tokens stay; 0 and -1 keep all.
    pub(crate) top_k: Option<i64>,
    /// Tokens less probable than this times the best one's probability are dropped.
    pub(crate) min_p: Option<f32>,
    /// Makes tokens of prompt and answer less likely, above 1.
    pub(crate) repetition_penalty: Option<f32>,
    /// Makes tokens of the answer less likely, above 0.
    pub(crate) presence_penalty: Option<f32>,
    /// The same, times their count.
    pub(crate) frequency_penalty: Option<f32>,
    /// The same seed and request give the same answer, whatever runs beside it. Answers of one request count up from it.
    pub(crate) seed: Option<i64>,
    /// Up to sixteen texts before which the answer ends.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schema(value_type = Option<OneOrMany>)]
    pub(crate) stop: Option<Vec<String>>,
    /// Tokens that end the answer, in addition to the model's own.
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    /// The model's own stop tokens don't end the answer.
    pub(crate) ignore_eos: Option<bool>,
    /// How many answers.
    pub(crate) n: Option<usize>,
    /// Whether the answer comes as server-sent events.
    pub(crate) stream: Option<bool>,
    /// What a stream holds besides.
    #[serde(default, deserialize_with = "super::object::one")]
    pub(crate) stream_options: Option<StreamOptions>,
}

/// A text or a list of texts.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "of the document")]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What a stream holds besides text.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// A last chunk with the counts.
    pub(crate) include_usage: Option<bool>,
    /// The counts so far in every chunk.
    pub(crate) continuous_usage_stats: Option<bool>,
    /// OpenAI pads chunks against eavesdroppers who measure them; taken, and without effect.
    #[allow(dead_code, reason = "clients send it")]
    include_obfuscation: Option<bool>,
}

impl SamplingFields {
    /// `base` with what the request sets written over it. Ranges are checked by [`SamplingParams::validate`].
    pub(crate) fn apply(&self, base: &SamplingParams) -> Result<SamplingParams, RequestError> {
        let bad = |param: &str, message: String| RequestError::new("invalid_value", message).at(param);
        let max_tokens = match (self.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                let message = format!("`max_tokens` is {old} and `max_completion_tokens` {new}; send one of them");
                return Err(bad("max_completion_tokens", message));
            }
            (old, new) => new.or(old).or(base.max_tokens),
        };
        let top_k = match self.top_k {
            None => base.top_k,
            Some(-1) => 0,
            Some(k) => usize::try_from(k)
                .map_err(|_| bad("top_k", format!("`top_k` is {k}; it must be -1 or 0 for all tokens, or above")))?,
        };
        let stop_token_ids = self.stop_token_ids.as_ref().map(|ids| ids.iter().copied().map(TokenId).collect());
        let sampling = SamplingParams {
            max_tokens,
            min_tokens: self.min_tokens.unwrap_or(base.min_tokens),
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k,
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            // Negative seeds are numbers like others.
            seed: self.seed.map(|seed| seed as u64).or(base.seed),
            stop: self.stop.clone().unwrap_or_else(|| base.stop.clone()),
            stop_token_ids: stop_token_ids.unwrap_or_else(|| base.stop_token_ids.clone()),
            ignore_eos: self.ignore_eos.unwrap_or(base.ignore_eos),
            logprobs: None,
        };
        sampling.validate()?;
        Ok(sampling)
    }

    /// How many answers, within the server's limit.
    pub(crate) fn num_choices(&self, max: usize) -> Result<usize, RequestError> {
        match self.n.unwrap_or(1) {
            n if (1..=max).contains(&n) => Ok(n),
            n => {
                Err(RequestError::new("invalid_value", format!("`n` is {n}; this server gives 1 to {max} answers"))
                    .at("n"))
            }
        }
    }

    /// What a stream holds besides the answers; none where the answer comes whole.
    pub(crate) fn stream_usage(&self) -> Result<Option<StreamUsage>, RequestError> {
        match (self.stream.unwrap_or(false), self.stream_options) {
            (true, options) => {
                let options = options.unwrap_or_default();
                let at_end = options.include_usage.unwrap_or(false);
                Ok(Some(StreamUsage { at_end, in_every_chunk: options.continuous_usage_stats.unwrap_or(false) }))
            }
            (false, None) => Ok(None),
            (false, Some(_)) => {
                let message = "`stream_options` goes with `stream: true` only";
                Err(RequestError::new("invalid_value", message).at("stream_options"))
            }
        }
    }
}

/// A text or a list of texts.
pub(crate) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    struct Texts;
    impl<'de> serde::de::Visitor<'de> for Texts {
        type Value = Option<Vec<String>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a text or a list of texts")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(vec![text.to_owned()]))
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut texts: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(text) = texts.next_element()? {
                all.push(text);
            }
            Ok(Some(all))
        }
    }
    deserializer.deserialize_any(Texts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(json: serde_json::Value) -> SamplingFields {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_is_set_is_written_over_the_models_own() {
        let base = SamplingParams { temperature: 0.7, top_k: 20, ..SamplingParams::default() };
        let all = fields(json!({
            "max_completion_tokens": 5, "min_tokens": 2, "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1,
            "repetition_penalty": 1.1, "presence_penalty": -1, "frequency_penalty": 2, "seed": -1, "stop": "x",
            "stop_token_ids": [7], "ignore_eos": true
        }));
        let expected = SamplingParams {
            max_tokens: Some(5),
            min_tokens: 2,
            temperature: 0.0,
            top_k: 0,
            top_p: 0.5,
            min_p: 0.1,
            repetition_penalty: 1.1,
            presence_penalty: -1.0,
            frequency_penalty: 2.0,
            seed: Some(u64::MAX),
            stop: vec!["x".into()],
            stop_token_ids: vec![TokenId(7)],
            ignore_eos: true,
            logprobs: None,
        };
        assert_eq!(all.apply(&base).unwrap(), expected);
        assert_eq!(fields(json!({})).apply(&base).unwrap(), base);
        assert_eq!(fields(json!({"stop": ["a", "b"]})).apply(&base).unwrap().stop, ["a", "b"]);
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        let base = SamplingParams::default();
        for (json, param) in [
            (json!({"max_tokens": 5, "max_completion_tokens": 6}), "max_completion_tokens"),
            (json!({"top_k": -2}), "top_k"),
            (json!({"temperature": -1}), "temperature"),
            (json!({"max_tokens": 0}), "max_tokens"),
        ] {
            assert_eq!(fields(json).apply(&base).unwrap_err().param.as_deref(), Some(param));
        }
        assert!(fields(json!({"n": 0})).num_choices(4).is_err() && fields(json!({"n": 5})).num_choices(4).is_err());
        assert!(fields(json!({"stream_options": {}})).stream_usage().is_err());
    }
}
