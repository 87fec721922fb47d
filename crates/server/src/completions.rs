//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use foveal_processor::{AnswerEvent, Processor, Tokenizer};
use foveal_types::{FinishReason, PreparedRequest, SamplingParams, TokenId};

use crate::FINGERPRINT;
use crate::answer::{Begun, Format, respond};
use crate::api::completion::{
    Completion, CompletionChoice, CompletionFields, CompletionLogprobs, CompletionRequest, Prompt, Prompts,
};
use crate::api::usage::Usage;
use crate::choices::Choices;
use crate::config::ServedModel;
use crate::error::{ApiError, ErrorBody};
use crate::json_body::JsonBody;
use crate::parameters::Endpoint;
use crate::record::Record;
use crate::request_id::RequestId;
use crate::state::{AppState, unix_seconds};

/// Continues a text.
#[utoipa::path(
    post, path = "/v1/completions", tag = "completions", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuation; with `stream` as server-sent events, each a chunk of the same form",
            content((Completion = "application/json"), (String = "text/event-stream"))),
        (status = "4XX", description = "The request is wrong, too large, or comes at a time without room", body = ErrorBody),
        (status = "5XX", description = "The server can't answer now", body = ErrorBody),
    )
)]
pub(crate) async fn completions(
    State(state): State<AppState>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut record = Record::new(id.clone(), "/v1/completions", state.metrics.clone());
    let begun = begin(&state, &id, &headers, body, &mut record).await;
    respond(begun, record).await
}

/// What a completion's request has of its own.
const OWN: &[&str] = &["model", "prompt", "logprobs"];

async fn begin(
    state: &AppState,
    id: &RequestId,
    headers: &HeaderMap,
    body: Body,
    record: &mut Record,
) -> Result<Begun<CompletionFormat>, ApiError> {
    let admission = state.admit()?;
    let JsonBody { object, memory: _memory } = state.read_object(headers, body).await?;
    let model = state.ready()?;
    let (fields, sampling): (CompletionFields, _) = Endpoint::Completion.fields(object, OWN)?;
    model.check_name(fields.model.as_deref())?;
    let copies = sampling.num_choices(state.config.max_choices)?;
    let stream = sampling.stream_usage()?;
    let mut params = sampling.apply(&model.default_sampling)?;
    params.logprobs = fields.logprobs;
    // OpenAI's default for this endpoint, as old as it is: whoever wants more says so.
    params.max_tokens = params.max_tokens.or(Some(DEFAULT_MAX_TOKENS));
    params.validate()?;
    let Prompts(prompts) = fields.prompt.unwrap_or(Prompts(Vec::new()));
    let num_choices = prompts.len().saturating_mul(copies);
    if !(1..=MAX_PROMPTS).contains(&prompts.len()) {
        let message = format!("`prompt` holds {} prompts; 1 to {MAX_PROMPTS} are taken", prompts.len());
        return Err(ApiError::invalid("invalid_value", message).at("prompt"));
    }

    let processor = Arc::clone(&model.processor);
    let prepare = move |prompt| prepare(&processor, prompt, &params).map_err(|error| error.at("prompt"));
    let requests = state.text.run(move |_| prompts.into_iter().map(prepare).collect::<Result<Vec<_>, _>>()).await?;
    record.prepared(num_choices);
    let has_logprobs = fields.logprobs.is_some();
    let choices = Choices::start(model, requests, copies)?;
    let format = CompletionFormat::new(id, model, num_choices, has_logprobs);
    Ok(Begun { choices, format, admission, stream })
}

const DEFAULT_MAX_TOKENS: usize = 16;
/// The most prompts of one request.
const MAX_PROMPTS: usize = 128;

fn prepare(processor: &Processor, prompt: Prompt, params: &SamplingParams) -> Result<PreparedRequest, ApiError> {
    let ids = match prompt {
        Prompt::Text(text) => processor.encode_prompt(&text)?,
        Prompt::Tokens(ids) => ids.into_iter().map(TokenId).collect(),
    };
    Ok(processor.prepare_tokens(ids, params.clone())?)
}

/// Writes answers as OpenAI's texts.
struct CompletionFormat {
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
    text: String,
    /// Characters of the text so far.
    num_chars: usize,
    logprobs: CompletionLogprobs,
    finish_reason: Option<FinishReason>,
}

impl CompletionFormat {
    fn new(id: &RequestId, model: &ServedModel, num_choices: usize, has_logprobs: bool) -> Self {
        Self {
            id: format!("cmpl-{}", id.0),
            created: unix_seconds(),
            model: model.name().to_owned(),
            tokenizer: Arc::clone(model.processor.tokenizer()),
            has_logprobs,
            answers: (0..num_choices).map(|_| Answer::default()).collect(),
        }
    }

    fn body(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
        let (id, created, model) = (self.id.clone(), self.created, self.model.clone());
        let object = "text_completion";
        Completion { id, object, created, model, choices, usage, system_fingerprint: FINGERPRINT }
    }
}

impl Format for CompletionFormat {
    type Body = Completion;

    fn chunk(&mut self, index: usize, event: AnswerEvent) -> Option<Completion> {
        let answer = self.answers.get_mut(index)?;
        let mut logprobs = CompletionLogprobs::default();
        let (text, finish_reason) = match event {
            AnswerEvent::Token { token, text } => {
                if self.has_logprobs {
                    logprobs.push(&self.tokenizer, &token, answer.num_chars);
                }
                (text, None)
            }
            AnswerEvent::Finished { text, reason, .. } => (text, Some(reason.as_str())),
            _ => return None,
        };
        answer.num_chars += text.chars().count();
        if text.is_empty() && finish_reason.is_none() && logprobs.tokens.is_empty() {
            return None;
        }
        let logprobs = (!logprobs.tokens.is_empty()).then_some(logprobs);
        Some(self.body(Vec::from_iter(Some(CompletionChoice { index, text, logprobs, finish_reason })), None))
    }

    fn usage(&self, usage: Usage) -> Completion {
        self.body(Vec::new(), Some(usage))
    }

    fn with_usage(body: Completion, usage: Usage) -> Completion {
        Completion { usage: Some(usage), ..body }
    }

    fn collect(&mut self, index: usize, event: AnswerEvent) {
        let Some(answer) = self.answers.get_mut(index) else { return };
        match event {
            AnswerEvent::Token { token, text } => {
                if self.has_logprobs {
                    answer.logprobs.push(&self.tokenizer, &token, answer.num_chars);
                }
                answer.num_chars += text.chars().count();
                answer.text.push_str(&text);
            }
            AnswerEvent::Finished { text, reason, .. } => {
                answer.text.push_str(&text);
                answer.finish_reason = Some(reason);
            }
            _ => {}
        }
    }

    fn whole(mut self, usage: Usage) -> Completion {
        let answers = std::mem::take(&mut self.answers);
        let choices = answers.into_iter().enumerate().map(|(index, answer)| CompletionChoice {
            index,
            text: answer.text,
            logprobs: self.has_logprobs.then_some(answer.logprobs),
            finish_reason: answer.finish_reason.map(FinishReason::as_str),
        });
        self.body(choices.collect(), Some(usage))
    }
}
