//! The JSON of a request.

use serde_json::{Value, json};

use crate::client::Api;

/// What a request asks, without its pictures and its text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) api: Api,
    pub(crate) model: &'a str,
    pub(crate) output_len: usize,
}

impl Ask<'_> {
    /// The bytes of a request: greedy, streamed, and of exactly the length asked for. Pictures stand before the text.
    pub(crate) fn body(self, image_urls: &[String], text: &str) -> Vec<u8> {
        let (key, prompt, limit) = match self.api {
            Api::Completions => ("prompt", text.into(), "max_tokens"),
            Api::Chat => {
                let message = json!({ "role": "user", "content": content(image_urls, text) });
                ("messages", json!([message]), "max_completion_tokens")
            }
        };
        let body = json!({
            "model": self.model,
            (key): prompt,
            (limit): self.output_len,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        body.to_string().into_bytes()
    }
}

fn content(image_urls: &[String], text: &str) -> Value {
    if image_urls.is_empty() {
        return text.into();
    }
    let pictures = image_urls.iter().map(|url| json!({ "type": "image_url", "image_url": { "url": url } }));
    pictures.chain([json!({ "type": "text", "text": text })]).collect()
}
