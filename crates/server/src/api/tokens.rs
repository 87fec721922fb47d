//! `/tokenize` and `/detokenize` as they are sent; vLLM's forms.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::chat::ChatMessage;

/// A text, or a chat without pictures, to be made tokens of.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
    /// The model's name; may be left out.
    pub(crate) model: Option<String>,
    /// A text. Control tokens in it are meant as such.
    pub(crate) prompt: Option<String>,
    /// A chat, to which the template is applied.
    #[serde(default, deserialize_with = "super::object::many")]
    pub(crate) messages: Option<Vec<ChatMessage>>,
    /// Whether the template opens the assistant's turn; by default it does.
    pub(crate) add_generation_prompt: Option<bool>,
    /// Further variables for the template.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Taken, and without effect: these models' tokenizers add none.
    #[allow(dead_code, reason = "clients send it")]
    pub(crate) add_special_tokens: Option<bool>,
    /// Whether each token's text is told, too.
    pub(crate) return_token_strs: Option<bool>,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tokens {
    pub(crate) count: usize,
    pub(crate) max_model_len: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) token_strs: Option<Vec<String>>,
}

/// Tokens to be made a text of.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    /// The model's name; may be left out.
    pub(crate) model: Option<String>,
    /// The tokens.
    pub(crate) tokens: Vec<u32>,
}

/// The text of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Text {
    pub(crate) prompt: String,
}
