//! A chat as it was sent to a chat as the processor takes it, pictures fetched on the way.

use foveal_fetch::Fetcher;
use foveal_processor::{ChatRequest, Content, ContentPart, ImageInput, ImagePixels, Limits, Message, Role};
use serde_json::{Map, Value};

use crate::api::chat::{self, ChatFields, ChatMessage, MessageContent, ProcessorKwargs};
use crate::error::ApiError;

/// Whether a request holds pictures, and so takes more than a moment to prepare.
pub(crate) fn has_pictures(messages: &[ChatMessage]) -> bool {
    messages.iter().any(|message| {
        matches!(&message.content, Some(MessageContent::Parts(parts)) if parts.iter().any(|part| part.image_url.is_some()))
    })
}

/// The chat with its pictures' bytes. Blocks while they are fetched; `is_cancelled` ends that.
pub(crate) fn chat_request(
    fields: ChatFields,
    fetcher: &Fetcher,
    limits: &Limits,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<ChatRequest, ApiError> {
    let pixels = fields.mm_processor_kwargs.map_or(Ok(ImagePixels::default()), image_pixels)?;
    let mut pictures = Pictures { fetcher, limits, is_cancelled, num_pictures: 0 };
    let messages = messages(fields.messages.unwrap_or_default(), &mut |url, at| pictures.get(url, at))?;
    Ok(ChatRequest {
        add_generation_prompt: fields.add_generation_prompt.unwrap_or(true),
        template_kwargs: template_kwargs(fields.chat_template_kwargs)?,
        image_pixels: pixels,
        ..ChatRequest::new(messages)
    })
}

/// The messages of a chat without pictures; the first picture is refused.
pub(crate) fn text_messages(messages_sent: Vec<ChatMessage>) -> Result<Vec<Message>, ApiError> {
    let refused = |_: &str, _: &str| {
        let message = "pictures aren't tokenised here; a chat's usage counts their tokens";
        Err(ApiError::invalid("invalid_value", message).at("messages"))
    };
    messages(messages_sent, &mut { refused })
}

/// Where pictures' bytes come from.
struct Pictures<'a> {
    fetcher: &'a Fetcher,
    limits: &'a Limits,
    is_cancelled: &'a dyn Fn() -> bool,
    num_pictures: usize,
}

impl Pictures<'_> {
    fn get(&mut self, url: &str, at: &str) -> Result<ImageInput, ApiError> {
        self.num_pictures += 1;
        // Before any is fetched that can't be answered about.
        let max = self.limits.max_images_per_request;
        if self.num_pictures > max {
            let message = format!("more than {max} pictures in one request; send fewer");
            return Err(ApiError::invalid("too_many_images", message).at(at));
        }
        match self.fetcher.fetch(url, self.is_cancelled) {
            Ok(bytes) => Ok(ImageInput::Bytes(bytes.into())),
            Err(error) => {
                if let Some(source) = std::error::Error::source(&error) {
                    tracing::info!(source, "a picture wasn't fetched: {error}");
                }
                Err(ApiError::from(foveal_types::Error::from(error)).at(at))
            }
        }
    }
}

fn messages(
    messages: Vec<ChatMessage>,
    picture: &mut dyn FnMut(&str, &str) -> Result<ImageInput, ApiError>,
) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(
            ApiError::invalid("missing_field", "`messages` is empty or missing; at least one is needed").at("messages")
        );
    }
    messages.into_iter().enumerate().map(|(index, message)| one_message(index, message, picture)).collect()
}

fn one_message(
    index: usize,
    sent: ChatMessage,
    picture: &mut dyn FnMut(&str, &str) -> Result<ImageInput, ApiError>,
) -> Result<Message, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    for (field, value) in [("audio", &sent.audio), ("function_call", &sent.function_call)] {
        if value.is_some() {
            let at = at(field);
            return Err(
                ApiError::invalid("unsupported_parameter", format!("`{at}` isn't supported by this server")).at(at)
            );
        }
    }
    let role = match sent.role.as_str() {
        "developer" => Role::System,
        role => role.parse().map_err(|_| {
            let words = "must be `system`, `developer`, `user`, `assistant` or `tool`";
            ApiError::invalid("invalid_role", format!("`{}` {words}", at("role"))).at(at("role"))
        })?,
    };
    let content = match sent.content {
        Some(MessageContent::Text(text)) => Content::Text(text),
        Some(MessageContent::Parts(parts)) => {
            let parts = parts.into_iter().enumerate();
            let parts = parts.map(|(p, part)| content_part(part, &format!("messages[{index}].content[{p}]"), picture));
            Content::Parts(parts.collect::<Result<_, _>>()?)
        }
        // An assistant that only called tools said nothing.
        None if role == Role::Assistant => Content::Text(String::new()),
        None => {
            return Err(ApiError::invalid("missing_field", format!("`{}` is missing", at("content"))).at(at("content")));
        }
    };
    let optional = [
        ("name", sent.name.map(Value::String)),
        ("tool_calls", sent.tool_calls.map(Value::Array)),
        ("tool_call_id", sent.tool_call_id.map(Value::String)),
        ("reasoning_content", sent.reasoning_content.map(Value::String)),
    ];
    let fields: Map<String, Value> =
        optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Ok(Message { role, content, fields })
}

fn content_part(
    part: chat::ContentPart,
    at: &str,
    picture: &mut dyn FnMut(&str, &str) -> Result<ImageInput, ApiError>,
) -> Result<ContentPart, ApiError> {
    let wrong = |code, message: String| Err(ApiError::invalid(code, message).at(at));
    match (part.kind.as_str(), part.text, part.image_url) {
        ("text", Some(text), None) => Ok(ContentPart::Text(text)),
        ("image_url", None, Some(image)) => picture(&image.url, at).map(ContentPart::Image),
        ("text", None, _) => wrong("missing_field", format!("`{at}.text` is missing")),
        ("image_url", _, None) => wrong("missing_field", format!("`{at}.image_url` is missing")),
        ("text" | "image_url", ..) => wrong("invalid_value", format!("`{at}` must hold either a text or a picture")),
        ("", ..) => wrong("missing_field", format!("`{at}.type` is missing; it must be `text` or `image_url`")),
        _ => wrong(
            "unsupported_content",
            format!("`{at}.type` must be `text` or `image_url`: other media aren't supported"),
        ),
    }
}

/// A template's variables that a request doesn't set by `chat_template_kwargs`: they have places of their own, or none.
const OWN_VARIABLES: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Further variables for the chat template.
pub(crate) fn template_kwargs(kwargs: Option<Map<String, Value>>) -> Result<Map<String, Value>, ApiError> {
    let kwargs = kwargs.unwrap_or_default();
    match OWN_VARIABLES.iter().find(|name| kwargs.contains_key(**name)) {
        Some(name) => {
            let message =
                format!("`chat_template_kwargs` can't set `{name}`, which is a parameter of the request itself");
            Err(ApiError::invalid("invalid_value", message).at(format!("chat_template_kwargs.{name}")))
        }
        None => Ok(kwargs),
    }
}

/// Both spellings of the pixel limits.
fn image_pixels(kwargs: ProcessorKwargs) -> Result<ImagePixels, ApiError> {
    let size = kwargs.size.unwrap_or_default();
    let one = |name: &str, by_name: Option<u64>, by_size: Option<u64>| match (by_name, by_size) {
        (Some(a), Some(b)) if a != b => {
            let message = format!("`mm_processor_kwargs` has `{name}` twice, with different values");
            Err(ApiError::invalid("invalid_value", message).at("mm_processor_kwargs"))
        }
        (a, b) => Ok(a.or(b)),
    };
    Ok(ImagePixels {
        min: one("min_pixels", kwargs.min_pixels, size.shortest_edge)?,
        max: one("max_pixels", kwargs.max_pixels, size.longest_edge)?,
    })
}

#[cfg(test)]
mod tests {
    use foveal_fetch::Policy;
    use serde_json::json;

    use super::*;
    use crate::json_body::typed;

    fn convert(json: Value) -> Result<ChatRequest, ApiError> {
        let Value::Object(object) = json else { panic!("an object") };
        let fetcher = Fetcher::new(Policy::default()).unwrap();
        let limits = Limits { max_images_per_request: 2, ..Limits::default() };
        chat_request(typed(object)?, &fetcher, &limits, &|| false)
    }

    #[test]
    fn messages_keep_their_order_and_their_fields() {
        let chat = convert(json!({"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AQID", "detail": "low"}},
                {"type": "image_url", "image_url": "data:image/png;base64,BAUG"},
                {"type": "text", "text": "What is it?"}
            ]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "a"}], "refusal": null, "annotations": []},
            {"role": "tool", "content": "4", "tool_call_id": "a"}
        ], "mm_processor_kwargs": {"size": {"longest_edge": 65536}}, "chat_template_kwargs": {"enable_thinking": false}}))
        .unwrap();
        let [system, user, assistant, tool] = &chat.messages[..] else { panic!("{:?}", chat.messages) };
        assert_eq!(
            (system.role, user.role, assistant.role, tool.role),
            (Role::System, Role::User, Role::Assistant, Role::Tool)
        );
        let Content::Parts(parts) = &user.content else { panic!("{user:?}") };
        let bytes: Vec<&[u8]> = parts
            .iter()
            .filter_map(|part| match part {
                ContentPart::Image(ImageInput::Bytes(bytes)) => Some(&bytes[..]),
                _ => None,
            })
            .collect();
        assert_eq!(bytes, [&[1, 2, 3][..], &[4, 5, 6]]);
        assert_eq!(assistant.fields["tool_calls"][0]["id"], "a");
        assert_eq!(tool.fields["tool_call_id"], "a");
        assert_eq!(chat.image_pixels, ImagePixels { min: None, max: Some(65536) });
        assert_eq!(chat.template_kwargs["enable_thinking"], false);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let picture = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AQID"}});
        for (json, param) in [
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "root", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}), "messages[0].content[0]"),
            (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "messages[0].content[0]"),
            (json!({"messages": [{"role": "user", "content": [picture, picture, picture]}]}), "messages[0].content[2]"),
            (
                json!({"messages": [{"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "http://127.0.0.1/cat.png"}}]}]}),
                "messages[0].content[0]",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}],
                    "mm_processor_kwargs": {"max_pixels": 1, "size": {"longest_edge": 2}}}),
                "mm_processor_kwargs",
            ),
        ] {
            let error = convert(json).unwrap_err();
            assert_eq!(error.detail.param.as_deref(), Some(param), "{error:?}");
        }
    }
}
