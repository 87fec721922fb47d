//! Bodies of requests: within a size and a time, as JSON, and errors in our own words.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;
use crate::preparation::Preparation;

/// A body up to this size is a moment's work for the thread that reads it, and takes no part of what all bodies may hold.
const SMALL_BYTES: usize = 64 << 10;

/// Values of a body at most: each takes some eighty bytes of memory, whatever it takes in the body. The longest prompts that are given
/// as tokens have half as many.
const MAX_VALUES: usize = 1 << 19;

/// What bodies may be.
#[derive(Clone, Debug)]
pub(crate) struct BodyLimits {
    pub(crate) max_bytes: usize,
    pub(crate) timeout: Duration,
    /// Bytes that all large bodies hold together, a permit for each KiB.
    memory: Arc<Semaphore>,
}

/// A request's JSON. What it holds of the memory for bodies is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct JsonBody {
    pub(crate) object: Map<String, Value>,
    /// Held as long as what was read.
    pub(crate) memory: OwnedSemaphorePermit,
}

impl BodyLimits {
    /// Each body up to `max_bytes`, within a time; all of them together up to `max_total_bytes`, which is one body's at least.
    pub(crate) fn new(max_bytes: usize, max_total_bytes: usize, timeout: Duration) -> Self {
        let permits = max_total_bytes.max(max_bytes).div_ceil(1 << 10).min(Semaphore::MAX_PERMITS);
        Self { max_bytes, timeout, memory: Arc::new(Semaphore::new(permits)) }
    }

    /// A part of the memory for all bodies, if there is so much.
    fn hold(&self, kib: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let permits = u32::try_from(kib).unwrap_or(u32::MAX);
        Arc::clone(&self.memory).try_acquire_many_owned(permits).map_err(|_| {
            ApiError::overloaded(
                "requests with large bodies have all the memory that there is for them; try again later",
            )
        })
    }
}

/// Reads a body that is a JSON object; a large one is parsed on one of `threads`.
pub(crate) async fn read_object(
    headers: &HeaderMap,
    body: Body,
    limits: &BodyLimits,
    threads: &Preparation,
) -> Result<JsonBody, ApiError> {
    // A page elsewhere can have a browser send forms and plain text here, but not this type without asking first.
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "send the request as JSON, with the header `Content-Type: application/json`";
        return Err(ApiError::invalid("unsupported_media_type", message));
    }
    let (bytes, memory) = read(headers, body, limits).await?;
    let object = if bytes.len() <= SMALL_BYTES { parse(&bytes)? } else { threads.run(move |_| parse(&bytes)).await? };
    Ok(JsonBody { object, memory })
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if num_values(bytes) > MAX_VALUES {
        let message = format!("the body holds more than {MAX_VALUES} values");
        return Err(ApiError::invalid("request_too_large", message));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::invalid("invalid_json", "the body must be a JSON object")),
        Err(error) => Err(ApiError::invalid("invalid_json", syntax(&error))),
    }
}

/// As many values as a JSON text has, or more: one for each comma and each bracket that opens, outside of its strings.
fn num_values(json: &[u8]) -> usize {
    let (mut num_values, mut is_in_string) = (1, false);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match (byte, is_in_string) {
            (b'"', _) => is_in_string = !is_in_string,
            (b'\\', true) => _ = bytes.next(),
            (b',' | b'[' | b'{', false) => num_values += 1,
            _ => {}
        }
    }
    num_values
}

async fn read(headers: &HeaderMap, body: Body, limits: &BodyLimits) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let too_large = || {
        let message = format!("the body is larger than {} bytes; send fewer or smaller pictures", limits.max_bytes);
        ApiError::invalid("request_too_large", message)
    };
    let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|len| len > limits.max_bytes) {
        return Err(too_large());
    }
    let mut chunks = body.into_data_stream();
    let all = async {
        let mut bytes = BytesMut::with_capacity(declared.unwrap_or_default().min(SMALL_BYTES));
        let mut memory = limits.hold(0)?;
        while let Some(chunk) = chunks.next().await {
            let chunk =
                chunk.map_err(|_| ApiError::invalid("incomplete_body", "the body ended before it was complete"))?;
            if bytes.len() + chunk.len() > limits.max_bytes {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
            if bytes.len() > SMALL_BYTES {
                memory.merge(limits.hold(bytes.len().div_ceil(1 << 10) - memory.num_permits())?);
            }
        }
        Ok((bytes.freeze(), memory))
    };
    let late = || {
        let message = format!("the body wasn't complete within {} s", limits.timeout.as_secs());
        ApiError::invalid("request_timeout", message)
    };
    tokio::time::timeout(limits.timeout, all).await.unwrap_or_else(|_| Err(late()))
}

/// What is wrong with a text that isn't JSON.
fn syntax(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Eof => "the body ends before its JSON does".to_owned(),
        _ => format!("the body isn't JSON: something at line {line}, column {column} doesn't belong there"),
    }
}

/// Gives an object's fields their types.
///
/// # Errors
/// `invalid_value` or `missing_field`, at the path of what is wrong.
pub(crate) fn typed<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        // Names in it are the client's; what is said of them stays short.
        let shown: String = path.chars().take(MAX_PATH_CHARS).collect();
        mismatch(&shown, &error.inner().to_string())
    })
}

/// The longest path that an error names.
const MAX_PATH_CHARS: usize = 128;

/// The deserialiser's finding in words for a client: it knows the type and the path, but speaks of Rust's types.
fn mismatch(path: &str, found: &str) -> ApiError {
    let quoted = |text: &str| text.split('`').nth(1).unwrap_or_default().chars().take(64).collect::<String>();
    if found.starts_with("missing field") {
        let field = quoted(found);
        let whole = if path.is_empty() { field } else { format!("{path}.{field}") };
        return ApiError::invalid("missing_field", format!("`{whole}` is missing")).at(whole);
    }
    if found.starts_with("unknown field") {
        let field = quoted(found);
        return ApiError::invalid("unknown_parameter", format!("`{path}` isn't known here (`{field}`)")).at(path);
    }
    let expected = found.rsplit_once("expected ").map(|(_, expected)| in_words(expected.trim()));
    let is_type = found.starts_with("invalid type: ") || found.starts_with("invalid length ");
    let message = match (is_type.then_some(()), found.strip_prefix("invalid value: "), expected) {
        (Some(_), _, Some(expected)) => format!("`{path}` has the wrong type; it must be {expected}"),
        (_, Some(_), Some(expected)) => format!("`{path}` has a value that can't be; it must be {expected}"),
        // What our own types say of themselves.
        _ => format!("`{path}`: {found}"),
    };
    ApiError::invalid("invalid_value", message).at(path)
}

/// Rust's types as JSON calls them.
fn in_words(expected: &str) -> &str {
    match expected {
        "f32" | "f64" => "a number",
        "i64" | "i32" => "a whole number",
        "usize" | "u64" | "u32" => "a whole number of at least 0",
        "a string" => "a text",
        "a boolean" => "true or false",
        "a map" => "an object",
        "a sequence" => "a list",
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::chat::ChatFields;
    use crate::api::sampling::SamplingFields;

    fn object(json: Value) -> Map<String, Value> {
        let Value::Object(object) = json else { panic!("an object") };
        object
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (json, expected) in [
            (r#"{"a": 1, "b": [2, 3]}"#, 5),
            (r#"{"a": "x,[{\"", "b": ""}"#, 3),
            ("1", 1),
            (r#"["\\", 1]"#, 3),
            (r#"["\"#, 2),
        ] {
            assert_eq!(num_values(json.as_bytes()), expected, "{json}");
        }
        let many = format!("{{\"x\": [{}0]}}", "0,".repeat(MAX_VALUES));
        assert_eq!(parse(many.as_bytes()).unwrap_err().detail.code, Some("request_too_large"));
        assert!(parse(format!("{{\"x\": \"{}\"}}", ",".repeat(MAX_VALUES)).as_bytes()).is_ok());
    }

    #[tokio::test]
    async fn all_large_bodies_together_have_a_limit() {
        let limits = BodyLimits::new(200 << 10, 300 << 10, Duration::from_secs(5));
        let threads = Preparation::new(1, 4);
        let json = |len: usize| Body::from(format!("{{\"x\": \"{}\"}}", "a".repeat(len)));
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
        let first = read_object(&headers, json(150 << 10), &limits, &threads).await.unwrap();
        let error = read_object(&headers, json(160 << 10), &limits, &threads).await.unwrap_err();
        assert_eq!(error.status.as_u16(), 429);
        read_object(&headers, json(60 << 10), &limits, &threads).await.expect("small ones are always read");
        drop(first);
        let error = read_object(&headers, json(201 << 10), &limits, &threads).await.unwrap_err();
        assert_eq!(error.detail.code, Some("request_too_large"));
        read_object(&headers, json(160 << 10), &limits, &threads).await.expect("there is room again");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let chat = |json| typed::<ChatFields>(object(json)).unwrap_err().detail;
        let sampling = |json| typed::<SamplingFields>(object(json)).unwrap_err().detail;
        for (detail, param, words) in [
            (chat(json!({"messages": 1})), "messages", "a list"),
            (
                chat(json!({"messages": [{"role": "user", "content": 5}]})),
                "messages[0].content",
                "a text or a list of parts",
            ),
            (chat(json!({"messages": [{"rôle": "user"}]})), "messages[0].rôle", "isn't known"),
            (
                chat(json!({"messages": [{"content": [{"type": "image_url", "image_url": {"detail": "low"}}]}]})),
                "messages[0].content[0].image_url.url",
                "is missing",
            ),
            (sampling(json!({"temperature": "hot"})), "temperature", "a number"),
            (sampling(json!({"max_tokens": -1})), "max_tokens", "a whole number of at least 0"),
            (chat(json!({"messages": [["user", "x"]]})), "messages[0]", "an object"),
            (
                chat(json!({"messages": [{"role": "user", "content": [["text", "x", null]]}]})),
                "messages[0].content[0]",
                "an object",
            ),
            (chat(json!({"mm_processor_kwargs": []})), "mm_processor_kwargs", "an object"),
            (sampling(json!({"stream_options": [true]})), "stream_options", "an object"),
            (sampling(json!({"stop": [1]})), "stop[0]", "a text"),
            (sampling(json!({"stream_options": {"x": 1}})), "stream_options.x", "isn't known"),
        ] {
            assert_eq!(detail.param.as_deref(), Some(param), "{detail:?}");
            assert!(detail.message.contains(words), "{detail:?}");
        }
    }
}
