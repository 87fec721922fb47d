//! A chat as the caller has it.

use foveal_mrope::VideoMeta;
use serde_json::{Map, Value};

use crate::decode::ImageInput;

/// Who speaks. A closed set, so that a role can't carry text into the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Standing instructions; usually the first message.
    System,
    /// The person who asks.
    User,
    /// The model's earlier answers.
    Assistant,
    /// What a tool gave back.
    Tool,
}

impl Role {
    /// The templates' spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = foveal_types::RequestError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::System, Self::User, Self::Assistant, Self::Tool].into_iter().find(|r| r.as_str() == s).ok_or_else(|| {
            foveal_types::RequestError::new("invalid_role", "a role must be `system`, `user`, `assistant` or `tool`")
        })
    }
}

/// Frames of a video, already chosen and extracted.
#[derive(Clone, Debug)]
pub struct VideoFrames {
    /// The frames in order, all of one size.
    pub frames: Vec<ImageInput>,
    /// Where they lie in time; one index per frame.
    pub meta: VideoMeta,
}

/// One part of a message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ContentPart {
    /// Plain text; special tokens in it stay text.
    Text(String),
    /// A still picture.
    Image(ImageInput),
    /// A video.
    Video(VideoFrames),
}

/// What a message says. Templates treat the two forms alike, but not all of them, so both exist.
#[derive(Clone, Debug)]
pub enum Content {
    /// Text alone (`content is string` in templates).
    Text(String),
    /// A list of parts.
    Parts(Vec<ContentPart>),
}

/// One message of a chat.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
    /// Further fields that templates read: `tool_calls`, `reasoning_content`, `name`, `tool_call_id`.
    pub fields: Map<String, Value>,
}

impl Message {
    /// A message of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self { role, content: Content::Text(text.into()), fields: Map::new() }
    }

    /// A message of parts.
    #[must_use]
    pub fn parts(role: Role, parts: Vec<ContentPart>) -> Self {
        Self { role, content: Content::Parts(parts), fields: Map::new() }
    }

    /// Its parts, if it isn't text alone.
    pub(crate) fn content_parts(&self) -> &[ContentPart] {
        match &self.content {
            Content::Text(_) => &[],
            Content::Parts(parts) => parts,
        }
    }
}

/// A whole chat to be continued.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// Tool definitions, a list of JSON objects.
    pub tools: Option<Value>,
    /// Whether the template opens the assistant's turn at the end.
    pub add_generation_prompt: bool,
    /// Further variables for the template (`enable_thinking`, `add_vision_id`).
    pub template_kwargs: Map<String, Value>,
    /// Other pixel limits for this chat's still pictures than the model's.
    pub image_pixels: ImagePixels,
}

/// Pixel limits of one chat, inside of the model's own: `min_pixels` and `max_pixels` of HF's processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImagePixels {
    /// Smaller pictures are enlarged to this; `None` takes the model's.
    pub min: Option<u64>,
    /// Larger pictures are reduced to this; `None` takes the model's.
    pub max: Option<u64>,
}

impl ChatRequest {
    /// A chat to be answered, without tools.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            messages,
            tools: None,
            add_generation_prompt: true,
            template_kwargs: Map::new(),
            image_pixels: ImagePixels::default(),
        }
    }

    /// The pictures and videos in the order of the messages, each with the name of its field.
    pub(crate) fn pictures(&self) -> Vec<PictureRef<'_>> {
        let mut found = Vec::new();
        for (m, message) in self.messages.iter().enumerate() {
            for (p, part) in message.content_parts().iter().enumerate() {
                let source = match part {
                    ContentPart::Text(_) => continue,
                    ContentPart::Image(image) => PictureSource::Image(image),
                    ContentPart::Video(video) => PictureSource::Video(video),
                };
                found.push(PictureRef { source, message: m, part: p });
            }
        }
        found
    }
}

/// A picture or video of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PictureRef<'a> {
    pub(crate) source: PictureSource<'a>,
    message: usize,
    part: usize,
}

/// What it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PictureSource<'a> {
    Image(&'a ImageInput),
    Video(&'a VideoFrames),
}

impl PictureRef<'_> {
    /// The field as the caller spells it.
    pub(crate) fn param(&self) -> String {
        format!("messages[{}].content[{}]", self.message, self.part)
    }
}
