//! The three lists: every parameter that a client may send is honoured, taken without effect, or refused by name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::api::sampling::SamplingFields;
use crate::error::ApiError;
use crate::json_body::typed;

/// What happens to a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// It does what it says.
    Honoured,
    /// It is taken and changes nothing that this server does.
    Harmless,
    /// It is refused, unless it has one of these values (as JSON), which ask for nothing.
    Refused(&'static [&'static str]),
}

use Treatment::{Harmless, Honoured, Refused};

/// A parameter's name and what happens to it.
pub(crate) type Parameter = (&'static str, Treatment);

/// Of both kinds of completion.
const SHARED: &[Parameter] = &[
    ("model", Honoured),
    ("max_tokens", Honoured),
    ("max_completion_tokens", Honoured),
    ("min_tokens", Honoured),
    ("temperature", Honoured),
    ("top_p", Honoured),
    ("top_k", Honoured),
    ("min_p", Honoured),
    ("repetition_penalty", Honoured),
    ("presence_penalty", Honoured),
    ("frequency_penalty", Honoured),
    ("seed", Honoured),
    ("stop", Honoured),
    ("stop_token_ids", Honoured),
    ("ignore_eos", Honoured),
    ("n", Honoured),
    ("stream", Honoured),
    ("stream_options", Honoured),
    ("logprobs", Honoured),
    ("user", Harmless),
    ("request_id", Harmless),
    ("metadata", Harmless),
    ("service_tier", Harmless),
    ("safety_identifier", Harmless),
    ("prompt_cache_key", Harmless),
    ("prompt_cache_retention", Harmless),
    ("store", Refused(&["false"])),
    ("cache_salt", Refused(&[])),
    ("best_of", Refused(&["1"])),
    ("echo", Refused(&["false"])),
    ("logit_bias", Refused(&["{}"])),
    ("use_beam_search", Refused(&["false"])),
    ("length_penalty", Refused(&["1", "1.0"])),
    ("include_stop_str_in_output", Refused(&["false"])),
    ("skip_special_tokens", Refused(&["true"])),
    ("spaces_between_special_tokens", Refused(&["true", "false"])),
    ("truncate_prompt_tokens", Refused(&[])),
    ("prompt_logprobs", Refused(&["false", "0"])),
    ("allowed_token_ids", Refused(&[])),
    ("bad_words", Refused(&["[]"])),
    ("add_special_tokens", Refused(&["true", "false"])),
    ("response_format", Refused(&[r#"{"type":"text"}"#])),
    ("structured_outputs", Refused(&[])),
    ("guided_json", Refused(&[])),
    ("guided_regex", Refused(&[])),
    ("guided_choice", Refused(&[])),
    ("guided_grammar", Refused(&[])),
    ("priority", Refused(&["0"])),
    ("return_tokens_as_token_ids", Refused(&["false"])),
    ("return_token_ids", Refused(&["false"])),
];

/// Of chats alone.
const CHAT: &[Parameter] = &[
    ("messages", Honoured),
    ("top_logprobs", Honoured),
    ("chat_template_kwargs", Honoured),
    ("mm_processor_kwargs", Honoured),
    ("add_generation_prompt", Honoured),
    ("parallel_tool_calls", Harmless),
    ("continue_final_message", Refused(&["false"])),
    ("chat_template", Refused(&[])),
    ("chat_template_content_format", Refused(&[r#""auto""#])),
    ("documents", Refused(&["[]"])),
    ("tools", Refused(&["[]"])),
    ("tool_choice", Refused(&[r#""none""#, r#""auto""#])),
    ("functions", Refused(&["[]"])),
    ("function_call", Refused(&[r#""none""#, r#""auto""#])),
    ("modalities", Refused(&[r#"["text"]"#])),
    ("audio", Refused(&[])),
    ("prediction", Refused(&[])),
    ("reasoning_effort", Refused(&[])),
    ("verbosity", Refused(&[r#""medium""#])),
    ("web_search_options", Refused(&[])),
];

/// Of texts alone.
const COMPLETION: &[Parameter] =
    &[("prompt", Honoured), ("suffix", Refused(&[r#""""#])), ("prompt_embeds", Refused(&[]))];

/// The parameters of an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Endpoint {
    Chat,
    Completion,
}

impl Endpoint {
    /// A body's honoured parameters: those of the endpoint's own, by their names, and those that both endpoints have.
    pub(crate) fn fields<T: DeserializeOwned>(
        self,
        mut body: Map<String, Value>,
        own: &[&str],
    ) -> Result<(T, SamplingFields), ApiError> {
        self.sift(&mut body)?;
        let (own, shared) = body.into_iter().partition(|(name, _)| own.contains(&name.as_str()));
        Ok((typed(own)?, typed(shared)?))
    }

    /// Every known parameter.
    pub(crate) fn parameters(self) -> impl Iterator<Item = Parameter> {
        let own = match self {
            Self::Chat => CHAT,
            Self::Completion => COMPLETION,
        };
        SHARED.iter().chain(own).copied()
    }

    /// Leaves what is honoured, and refuses what can't be. A null is a parameter that wasn't sent.
    pub(crate) fn sift(self, body: &mut Map<String, Value>) -> Result<(), ApiError> {
        let mut wrong = None;
        body.retain(|name, value| {
            let known = self.parameters().find(|(known, _)| known == name);
            match known {
                _ if value.is_null() => false,
                Some((_, Honoured)) => true,
                Some((_, Harmless)) => false,
                Some((_, Refused(unless))) => {
                    if !unless.iter().any(|json| serde_json::from_str::<Value>(json).is_ok_and(|asks| asks == *value)) {
                        let but = if unless.is_empty() {
                            String::new()
                        } else {
                            format!("; it may be {}", unless.join(" or "))
                        };
                        let message = format!("`{name}` isn't supported by this server{but}");
                        wrong.get_or_insert_with(|| {
                            ApiError::invalid("unsupported_parameter", message).at(name.as_str())
                        });
                    }
                    false
                }
                None => {
                    // The name is the client's; what is said of it stays short.
                    let shown: String = name.chars().take(64).collect();
                    let message = format!("`{shown}` is no parameter of this endpoint; /openapi.json lists them");
                    wrong.get_or_insert_with(|| ApiError::invalid("unknown_parameter", message).at(shown));
                    false
                }
            }
        });
        wrong.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn sift(endpoint: Endpoint, body: Value) -> Result<Vec<String>, ApiError> {
        let Value::Object(mut body) = body else { panic!("an object") };
        endpoint.sift(&mut body)?;
        Ok(body.keys().cloned().collect())
    }

    #[test]
    fn what_is_honoured_stays_and_what_asks_for_nothing_goes() {
        let body = json!({
            "messages": [], "temperature": 1, "user": "a", "metadata": {"a": "b"}, "store": false, "logit_bias": {},
            "tools": null, "tool_choice": "auto", "response_format": {"type": "text"}, "seed": null, "n": 1
        });
        assert_eq!(sift(Endpoint::Chat, body).unwrap(), ["messages", "temperature", "n"]);
    }

    #[test]
    fn the_rest_is_refused_by_name() {
        for (body, code, param) in [
            (json!({"logit_bias": {"1": 5}}), "unsupported_parameter", "logit_bias"),
            (json!({"response_format": {"type": "json_object"}}), "unsupported_parameter", "response_format"),
            (json!({"store": true}), "unsupported_parameter", "store"),
            (json!({"temprature": 1}), "unknown_parameter", "temprature"),
            (json!({"prompt": "of the other endpoint"}), "unknown_parameter", "prompt"),
        ] {
            let error = sift(Endpoint::Chat, body).unwrap_err();
            assert_eq!((error.detail.code, error.detail.param.as_deref()), (Some(code), Some(param)));
            assert!(error.detail.message.contains(param));
        }
    }

    #[test]
    fn no_parameter_is_on_two_lists_and_every_exception_is_json() {
        for endpoint in [Endpoint::Chat, Endpoint::Completion] {
            let names: Vec<&str> = endpoint.parameters().map(|(name, _)| name).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        }
        for (name, treatment) in Endpoint::Chat.parameters().chain(Endpoint::Completion.parameters()) {
            if let Refused(unless) = treatment {
                assert!(unless.iter().all(|json| serde_json::from_str::<Value>(json).is_ok()), "{name}");
            }
        }
    }
}
