//! One event of a streamed answer, of either API.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// What an event of a stream says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Chunk {
    /// It belongs to the answer, as its tokens and its end do; usage alone doesn't.
    pub(crate) is_answer: bool,
    /// It stands for tokens.
    pub(crate) has_tokens: bool,
    /// Nothing of the answer follows.
    pub(crate) is_finished: bool,
    /// Tokens of the prompt and of the answer, as the server counts them.
    pub(crate) usage: Option<(usize, usize)>,
    /// The server gave up.
    pub(crate) error: Option<String>,
}

#[derive(Deserialize)]
struct RawChunk {
    choices: Option<Vec<RawChoice>>,
    usage: Option<RawUsage>,
    error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawChoice {
    /// Of a chat.
    delta: Option<RawDelta>,
    /// Of a completion.
    text: Option<String>,
    finish_reason: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
struct RawDelta {
    role: Option<IgnoredAny>,
    content: Option<String>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
struct RawUsage {
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
}

/// `{"error": {"message": ...}}`, and what others make of it.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum RawError {
    Object { message: String },
    Text(String),
    Other(IgnoredAny),
}

impl RawError {
    pub(crate) fn into_message(self) -> String {
        match self {
            Self::Object { message } | Self::Text(message) => message,
            Self::Other(_) => "an error without a message".to_owned(),
        }
    }
}

impl Chunk {
    /// Reads an event's data; `None` for what is no JSON object of these APIs.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let raw: RawChunk = serde_json::from_slice(data).ok()?;
        let choices = raw.choices.unwrap_or_default();
        Some(Self {
            is_answer: !choices.is_empty(),
            has_tokens: choices.iter().any(RawChoice::has_tokens),
            is_finished: choices.iter().any(|choice| choice.finish_reason.is_some()),
            usage: raw.usage.and_then(|usage| Some((usage.prompt_tokens?, usage.completion_tokens?))),
            error: raw.error.map(RawError::into_message),
        })
    }
}

impl RawChoice {
    /// Text is tokens. So is a chunk without any (half of a character, a special token), unless it only opens the message by
    /// its role or ends it: servers send the first before the prompt is computed, and the other beside the last token.
    fn has_tokens(&self) -> bool {
        let default = RawDelta::default();
        let delta = self.delta.as_ref().unwrap_or(&default);
        let texts = [&self.text, &delta.content, &delta.reasoning, &delta.reasoning_content];
        let has_text = texts.into_iter().flatten().any(|text| !text.is_empty());
        let has_calls = delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty());
        has_text || has_calls || (delta.role.is_none() && self.finish_reason.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::Chunk;

    fn flags(json: &str) -> [bool; 3] {
        let chunk = Chunk::parse(json.as_bytes()).unwrap();
        [chunk.is_answer, chunk.has_tokens, chunk.is_finished]
    }

    #[test]
    fn tokens_are_told_from_beginnings_and_ends() {
        let delta = |delta: &str, finish: &str| {
            flags(&format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}],"usage":null}}"#))
        };
        assert_eq!(delta(r#"{"role":"assistant","content":""}"#, "null"), [true, false, false]);
        assert_eq!(delta(r#"{"role":"assistant","content":"Hi"}"#, "null"), [true, true, false]);
        assert_eq!(delta(r#"{"content":""}"#, "null"), [true, true, false]);
        assert_eq!(delta(r#"{"reasoning_content":"hm","content":null}"#, "null"), [true, true, false]);
        assert_eq!(delta(r#"{"tool_calls":[{"index":0}]}"#, "null"), [true, true, false]);
        assert_eq!(delta("{}", r#""length""#), [true, false, true]);
        assert_eq!(delta(r#"{"content":"."}"#, r#""length""#), [true, true, true]);
        assert_eq!(flags(r#"{"choices":[{"text":"a"}]}"#), [true, true, false]);
        assert_eq!(flags(r#"{"choices":[]}"#), [false, false, false]);
    }

    #[test]
    fn usage_and_errors_are_read() {
        let usage = Chunk::parse(br#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total":8}}"#);
        assert_eq!(usage, Some(Chunk { usage: Some((3, 5)), ..Chunk::default() }));
        let error = |json: &str| Chunk::parse(json.as_bytes()).unwrap().error;
        assert_eq!(error(r#"{"error":{"message":"no room","code":503}}"#).as_deref(), Some("no room"));
        assert_eq!(error(r#"{"error":"no room"}"#).as_deref(), Some("no room"));
        assert!(error(r#"{"error":{"code":503}}"#).is_some() && error(r#"{"error":null}"#).is_none());
        assert_eq!(Chunk::parse(b"{\"choices\": 3}"), None);
        assert_eq!(Chunk::parse(b"oops"), None);
    }
}
