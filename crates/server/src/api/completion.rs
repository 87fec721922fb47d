//! `/v1/completions` as it is sent.

use std::collections::BTreeMap;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::sampling::SamplingFields;
use super::usage::Usage;

/// A text to be continued. Control tokens in it are meant as such: whoever sends it writes the whole prompt.
#[derive(Debug, ToSchema)]
#[schema(as = CompletionRequest)]
#[allow(dead_code, reason = "the two halves of a request, which share one JSON object, as one type of the document")]
pub(crate) struct CompletionRequest {
    #[serde(flatten)]
    completion: CompletionFields,
    #[serde(flatten)]
    sampling: SamplingFields,
}

/// What a completion has of its own.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct CompletionFields {
    /// The model's name as `/v1/models` has it; may be left out.
    pub(crate) model: Option<String>,
    /// A text, a list of texts, a list of tokens, or a list of lists of tokens.
    #[schema(value_type = Option<PromptForms>)]
    pub(crate) prompt: Option<Prompts>,
    /// How many of the best tokens are told for each with their log-probabilities, up to 20.
    pub(crate) logprobs: Option<usize>,
}

/// How prompts are written.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "of the document")]
pub(crate) enum PromptForms {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// The prompts of one request.
#[derive(Debug, PartialEq)]
pub(crate) struct Prompts(pub(crate) Vec<Prompt>);

/// One prompt.
#[derive(Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// One element of the list: a token, a text or a list of tokens.
enum Element {
    Token(u32),
    Prompt(Prompt),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Element;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a token or a list of tokens")
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Self::Value, E> {
                u32::try_from(id).map(Element::Token).map_err(|_| E::custom("no token has so large a number"))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Element::Prompt(Prompt::Text(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut tokens: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(token) = tokens.next_element()? {
                    all.push(token);
                }
                Ok(Element::Prompt(Prompt::Tokens(all)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Prompts;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a list of texts, a list of tokens, or a list of lists of tokens")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let (mut tokens, mut prompts) = (Vec::new(), Vec::new());
                while let Some(element) = elements.next_element()? {
                    match element {
                        Element::Token(id) => tokens.push(id),
                        Element::Prompt(prompt) => prompts.push(prompt),
                    }
                }
                match (tokens.is_empty(), prompts.is_empty()) {
                    (false, false) => Err(serde::de::Error::custom("tokens and prompts can't stand in one list")),
                    (false, true) => Ok(Prompts(vec![Prompt::Tokens(tokens)])),
                    _ => Ok(Prompts(prompts)),
                }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A whole answer, or one piece of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    pub(crate) id: String,
    /// `text_completion`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    pub(crate) system_fingerprint: &'static str,
}

/// One of the answers; in a stream, what is new of it. Answers to the first prompt come first.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length`, or null while the answer goes on.
    pub(crate) finish_reason: Option<&'static str>,
}

/// Log-probabilities of an answer's tokens, a list for each kind.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<f32>,
    pub(crate) top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token begins in the answer, in characters.
    pub(crate) text_offset: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_prompt_comes_in_four_forms() {
        let of = |json| serde_json::from_value::<Prompts>(json).map(|prompts| prompts.0).map_err(|e| e.to_string());
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(of(json!("a")).unwrap(), [text("a")]);
        assert_eq!(of(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(of(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(of(json!([[1, 2], [3]])).unwrap(), [Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])]);
        assert_eq!(of(json!([])).unwrap(), []);
        for wrong in
            [json!(1), json!({}), json!(["a", 1]), json!([-1]), json!([1.5]), json!([[["a"]]]), json!([1_u64 << 40])]
        {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
