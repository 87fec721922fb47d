//! `/v1/chat/completions` as it is sent.

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::object::{self, Object};
use super::sampling::SamplingFields;
use super::usage::Usage;

/// A chat to be continued. Every parameter is honoured, taken without effect, or refused by name.
#[derive(Debug, ToSchema)]
#[schema(as = ChatCompletionRequest)]
#[allow(dead_code, reason = "the two halves of a request, which share one JSON object, as one type of the document")]
pub(crate) struct ChatCompletionRequest {
    #[serde(flatten)]
    chat: ChatFields,
    #[serde(flatten)]
    sampling: SamplingFields,
}

/// What a chat has of its own.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct ChatFields {
    /// The model's name as `/v1/models` has it; may be left out.
    pub(crate) model: Option<String>,
    /// The chat, oldest message first.
    #[serde(default, deserialize_with = "object::many")]
    pub(crate) messages: Option<Vec<ChatMessage>>,
    /// Whether each token's log-probability is told.
    pub(crate) logprobs: Option<bool>,
    /// How many of the best tokens are told for each, up to 20.
    pub(crate) top_logprobs: Option<usize>,
    /// Further variables for the chat template, as `{"enable_thinking": false}`.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Pixel limits for this request's pictures, inside of the server's.
    #[serde(default, deserialize_with = "object::one")]
    pub(crate) mm_processor_kwargs: Option<ProcessorKwargs>,
    /// Whether the template opens the assistant's turn; by default it does.
    pub(crate) add_generation_prompt: Option<bool>,
}

/// Pixel limits of one request, as HF's processors name them.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessorKwargs {
    /// Smaller pictures are enlarged to this many pixels.
    pub(crate) min_pixels: Option<u64>,
    /// Larger pictures are reduced to this many pixels.
    pub(crate) max_pixels: Option<u64>,
    /// The same two numbers in the newer form.
    #[serde(default, deserialize_with = "object::one")]
    pub(crate) size: Option<PixelSize>,
}

/// `min_pixels` and `max_pixels` by their newer names, which speak of edges and count pixels all the same.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PixelSize {
    /// `min_pixels`.
    pub(crate) shortest_edge: Option<u64>,
    /// `max_pixels`.
    pub(crate) longest_edge: Option<u64>,
}

/// One message.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatMessage {
    /// `system`, `developer` (the same), `user`, `assistant` or `tool`.
    pub(crate) role: String,
    /// A text or a list of parts.
    pub(crate) content: Option<MessageContent>,
    /// The speaker's name, where the template uses it.
    pub(crate) name: Option<String>,
    /// Calls of tools that the assistant made.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(crate) tool_calls: Option<Vec<Value>>,
    /// The call that a tool's message answers.
    pub(crate) tool_call_id: Option<String>,
    /// What the assistant thought, where the template uses it.
    pub(crate) reasoning_content: Option<String>,
    /// Taken from earlier answers as they were, without effect.
    #[schema(value_type = Option<Object>)]
    #[allow(dead_code, reason = "clients send earlier answers back as they came")]
    pub(crate) refusal: Option<Value>,
    /// As above.
    #[schema(value_type = Option<Object>)]
    #[allow(dead_code, reason = "as above")]
    pub(crate) annotations: Option<Value>,
    /// As above; only null.
    #[schema(value_type = Option<Object>)]
    pub(crate) audio: Option<Value>,
    /// As above; only null.
    #[schema(value_type = Option<Object>)]
    pub(crate) function_call: Option<Value>,
}

/// A text or a list of parts.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
pub(crate) enum MessageContent {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// One part of a message.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContentPart {
    /// `text` or `image_url`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The text.
    pub(crate) text: Option<String>,
    /// The picture: a data URL; where the operator allows it also an http(s) URL or a `file:///` URL.
    pub(crate) image_url: Option<ImageUrl>,
}

/// Where a picture is.
#[derive(Debug, ToSchema)]
pub(crate) struct ImageUrl {
    /// The address or the picture itself.
    pub(crate) url: String,
    /// `auto`, `low` or `high`: taken, and without effect; `mm_processor_kwargs` sets a picture's size.
    #[allow(dead_code, reason = "of the document")]
    pub(crate) detail: Option<String>,
}

impl<'de> Deserialize<'de> for MessageContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Content;
        impl<'de> Visitor<'de> for Content {
            type Value = MessageContent;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(MessageContent::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(MessageContent::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(Object(part)) = parts.next_element()? {
                    all.push(part);
                }
                Ok(MessageContent::Parts(all))
            }
        }
        deserializer.deserialize_any(Content)
    }
}

impl<'de> Deserialize<'de> for ImageUrl {
    /// An object with `url`, or the URL alone, which some clients send.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Object {
            url: String,
            detail: Option<String>,
        }
        struct Url;
        impl<'de> Visitor<'de> for Url {
            type Value = ImageUrl;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with `url`")
            }

            fn visit_str<E>(self, url: &str) -> Result<Self::Value, E> {
                Ok(ImageUrl { url: url.to_owned(), detail: None })
            }

            fn visit_string<E>(self, url: String) -> Result<Self::Value, E> {
                Ok(ImageUrl { url, detail: None })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let Object { url, detail } = Object::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(ImageUrl { url, detail })
            }
        }
        deserializer.deserialize_any(Url)
    }
}

/// A whole answer, or one piece of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    pub(crate) id: String,
    /// `chat.completion`, or `chat.completion.chunk` in a stream.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) choices: Vec<ChatChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    pub(crate) system_fingerprint: &'static str,
}

/// One of the answers.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    /// The answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<AssistantMessage>,
    /// In a stream: what is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delta: Option<AssistantMessage>,
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, or null while the answer goes on.
    pub(crate) finish_reason: Option<&'static str>,
}

/// What the assistant says.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct AssistantMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
}

/// Log-probabilities of an answer's tokens.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<ChatTokenLogprob>,
}

/// A token, its log-probability, and those of the best ones in its place.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatTokenLogprob {
    #[serde(flatten)]
    pub(crate) chosen: TokenLogprob,
    pub(crate) top_logprobs: Vec<TokenLogprob>,
}

/// A token with its log-probability.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    /// Its text; bytes that are no whole character alone stand as U+FFFD.
    pub(crate) token: String,
    pub(crate) logprob: f32,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}
