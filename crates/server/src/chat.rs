//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use foveal_processor::{AnswerEvent, Tokenizer};
use foveal_types::{FinishReason, RequestError, SamplingParams};
use serde_json::Value;

use crate::answer::{Begun, Format, respond};
use crate::api::chat::{AssistantMessage, ChatChoice, ChatCompletion, ChatCompletionRequest, ChatFields, ChatLogprobs};
use crate::api::usage::Usage;
use crate::chat_request::{chat_request, has_pictures};
use crate::choices::Choices;
use crate::config::ServedModel;
use crate::error::{ApiError, ErrorBody};
use crate::json_body::JsonBody;
use crate::parameters::Endpoint;
use crate::record::Record;
use crate::request_id::RequestId;
use crate::state::{AppState, unix_seconds};
use crate::{FINGERPRINT, preparation::Cancelled};

/// Continues a chat.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "completions", request_body = ChatCompletionRequest,
    responses(
        (status = 200, description = "The answer; with `stream` as server-sent events, each a chunk of the same form",
            content((ChatCompletion = "application/json"), (String = "text/event-stream"))),
        (status = "4XX", description = "The request is wrong, too large, or comes at a time without room", body = ErrorBody),
        (status = "5XX", description = "The server can't answer now", body = ErrorBody),
    )
)]
pub(crate) async fn chat_completions(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut record = Record::new(id.clone(), "/v1/chat/completions", state.metrics.clone());
    let begun = begin(&state, &id, &headers, body, &mut record).await;
    respond(begun, record).await
}

/// What a chat's request has of its own.
const OWN: &[&str] = &[
    "model",
    "messages",
    "logprobs",
    "top_logprobs",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "add_generation_prompt",
];

async fn begin(
    state: &AppState,
    id: &RequestId,
    headers: &HeaderMap,
    body: Body,
    record: &mut Record,
) -> Result<Begun<ChatFormat>, ApiError> {
    let admission = state.admit()?;
    let JsonBody { object, memory: _memory } = state.read_object(headers, body).await?;
    let model = state.ready()?;
    let (fields, sampling): (ChatFields, _) = Endpoint::Chat.fields(object, OWN)?;
    model.check_name(fields.model.as_deref())?;
    let num_choices = sampling.num_choices(state.config.max_choices)?;
    let stream = sampling.stream_usage()?;
    let mut params = sampling.apply(&model.default_sampling)?;
    params.logprobs = logprobs(&fields)?;
    params.validate()?;

    let preparation =
        if has_pictures(fields.messages.as_deref().unwrap_or_default()) { &state.pictures } else { &state.text };
    let (served, shared) = (model.clone(), state.clone());
    let request = preparation
        .run(move |cancelled: &Cancelled| {
            let ServedModel { processor, engine, .. } = &served;
            let is_cancelled = || cancelled.is_set();
            let chat = chat_request(fields, &shared.fetcher, processor.limits(), &is_cancelled)?;
            let prepare = || processor.prepare_cancellable(&chat, params, engine.pixels(), &is_cancelled);
            Ok(shared.decoders.install(prepare)?)
        })
        .await?;
    record.prepared(num_choices);
    let has_logprobs = request.sampling.logprobs.is_some();
    let choices = Choices::start(model, Vec::from_iter(Some(request)), num_choices)?;
    let format = ChatFormat::new(id, model, num_choices, has_logprobs);
    Ok(Begun { choices, format, admission, stream })
}

/// Whether a body is a chat that can be asked about, as far as that is known before its pictures are fetched; for fuzzing.
#[doc(hidden)]
#[must_use]
pub fn fuzz_chat_request(body: &[u8]) -> bool {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return false };
    let Ok((own, sampling)) = Endpoint::Chat.fields::<ChatFields>(body, OWN) else { return false };
    let checks = [sampling.num_choices(16).is_ok(), sampling.stream_usage().is_ok(), logprobs(&own).is_ok()];
    let params = sampling.apply(&SamplingParams::default());
    let messages = crate::chat_request::text_messages(own.messages.unwrap_or_default());
    checks.iter().all(|ok| *ok) && params.is_ok() && messages.is_ok()
}

/// How many log-probabilities a token is told with.
fn logprobs(fields: &ChatFields) -> Result<Option<usize>, RequestError> {
    match (fields.logprobs.unwrap_or(false), fields.top_logprobs) {
        (_, Some(top)) if top > SamplingParams::MAX_LOGPROBS => {
            let message = format!("`top_logprobs` is {top}; at most {} are told", SamplingParams::MAX_LOGPROBS);
            Err(RequestError::new("invalid_value", message).at("top_logprobs"))
        }
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let message = "`top_logprobs` goes with `logprobs: true` only";
            Err(RequestError::new("invalid_value", message).at("top_logprobs"))
        }
    }
}

/// Writes answers as OpenAI's chats.
struct ChatFormat {
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    has_logprobs: bool,
    answers: Vec<Answer>,
}

/// One answer as far as it is known.
#[derive(Default)]
struct Answer {
    has_begun: bool,
    text: String,
    logprobs: ChatLogprobs,
    finish_reason: Option<FinishReason>,
}

const ASSISTANT: &str = "assistant";

impl ChatFormat {
    fn new(id: &RequestId, model: &ServedModel, num_choices: usize, has_logprobs: bool) -> Self {
        Self {
            id: format!("chatcmpl-{}", id.0),
            created: unix_seconds(),
            model: model.name().to_owned(),
            tokenizer: Arc::clone(model.processor.tokenizer()),
            has_logprobs,
            answers: (0..num_choices).map(|_| Answer::default()).collect(),
        }
    }

    fn body(&self, object: &'static str, choices: Vec<ChatChoice>, usage: Option<Usage>) -> ChatCompletion {
        let (id, created, model) = (self.id.clone(), self.created, self.model.clone());
        ChatCompletion { id, object, created, model, choices, usage, system_fingerprint: FINGERPRINT }
    }
}

const CHUNK: &str = "chat.completion.chunk";

impl Format for ChatFormat {
    type Body = ChatCompletion;

    fn chunk(&mut self, index: usize, event: AnswerEvent) -> Option<ChatCompletion> {
        let answer = self.answers.get_mut(index)?;
        let mut logprobs = ChatLogprobs::default();
        let (text, finish_reason) = match event {
            AnswerEvent::Token { token, text } => {
                if self.has_logprobs {
                    logprobs.push(&self.tokenizer, &token);
                }
                (text, None)
            }
            AnswerEvent::Finished { text, reason, .. } => (text, Some(reason.as_str())),
            _ => return None,
        };
        // A token may add nothing yet: a part of a character, or what may become a stop text.
        let is_first = !std::mem::replace(&mut answer.has_begun, true);
        if text.is_empty() && finish_reason.is_none() && logprobs.content.is_empty() && !is_first {
            return None;
        }
        let role = is_first.then_some(ASSISTANT);
        let content = (is_first || !text.is_empty() || finish_reason.is_none()).then_some(text);
        let logprobs = (!logprobs.content.is_empty()).then_some(logprobs);
        let delta = Some(AssistantMessage { role, content });
        let choice = ChatChoice { index, delta, logprobs, finish_reason, ..ChatChoice::default() };
        Some(self.body(CHUNK, Vec::from_iter(Some(choice)), None))
    }

    fn usage(&self, usage: Usage) -> ChatCompletion {
        self.body(CHUNK, Vec::new(), Some(usage))
    }

    fn with_usage(body: ChatCompletion, usage: Usage) -> ChatCompletion {
        ChatCompletion { usage: Some(usage), ..body }
    }

    fn collect(&mut self, index: usize, event: AnswerEvent) {
        let Some(answer) = self.answers.get_mut(index) else { return };
        match event {
            AnswerEvent::Token { token, text } => {
                answer.text.push_str(&text);
                if self.has_logprobs {
                    answer.logprobs.push(&self.tokenizer, &token);
                }
            }
            AnswerEvent::Finished { text, reason, .. } => {
                answer.text.push_str(&text);
                answer.finish_reason = Some(reason);
            }
            _ => {}
        }
    }

    fn whole(mut self, usage: Usage) -> ChatCompletion {
        let answers = std::mem::take(&mut self.answers);
        let choices = answers.into_iter().enumerate().map(|(index, answer)| ChatChoice {
            index,
            message: Some(AssistantMessage { role: Some(ASSISTANT), content: Some(answer.text) }),
            logprobs: self.has_logprobs.then_some(answer.logprobs),
            finish_reason: answer.finish_reason.map(FinishReason::as_str),
            ..ChatChoice::default()
        });
        self.body("chat.completion", choices.collect(), Some(usage))
    }
}
