//! What the server says of itself and of its model: models, version, health, metrics, tokens.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use foveal_processor::ChatRequest;
use foveal_types::{HeapPixels, SamplingParams, TokenId};

use crate::api::models::{Health, ModelCard, ModelList, Version};
use crate::api::tokens::{DetokenizeRequest, Text, TokenizeRequest, Tokens};
use crate::chat_request::{template_kwargs, text_messages};
use crate::config::ServedModel;
use crate::error::{ApiError, ErrorBody};
use crate::json_body::{JsonBody, typed};
use crate::preparation::Cancelled;
use crate::state::AppState;

/// The model, under each of its names.
#[utoipa::path(get, path = "/v1/models", tag = "about", responses((status = 200, body = ModelList)))]
pub(crate) async fn models(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let model = state.ready()?;
    let data = model.names.iter().map(|name| card(&state, model, name)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// The model under one of its names, slashes included.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "about", params(("model" = String, Path, description = "One of its names")),
    responses((status = 200, body = ModelCard), (status = 404, body = ErrorBody))
)]
pub(crate) async fn model(
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let model = state.ready()?;
    let Path(name) =
        name.map_err(|_| ApiError::invalid("model_not_found", "the model's name isn't UTF-8").at("model"))?;
    model.check_name(Some(&name))?;
    Ok(Json(card(&state, model, &name)))
}

fn card(state: &AppState, model: &ServedModel, name: &str) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: state.started_s,
        owned_by: "foveal",
        root: model.root.as_ref().map_or_else(|| model.name().to_owned(), |root| root.display().to_string()),
        max_model_len: model.engine.limits().max_model_len,
    }
}

/// The program's version.
#[utoipa::path(get, path = "/version", tag = "about", responses((status = 200, body = Version)))]
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

/// Whether requests are answered: the model has been loaded and has answered, and the engine lives.
#[utoipa::path(
    get, path = "/health", tag = "about",
    responses((status = 200, body = Health), (status = 503, description = "Not yet, or not any more", body = ErrorBody))
)]
pub(crate) async fn health(State(state): State<AppState>) -> Result<Json<Health>, ApiError> {
    state.ready().map(|_| Json(Health { status: "ready" }))
}

/// Counts and times in Prometheus's text form.
#[utoipa::path(get, path = "/metrics", tag = "about", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(State(state): State<AppState>) -> Response {
    let stats = state.model().map(|model| model.engine.stats());
    let preparing = state.pictures.num_waiting() + state.text.num_waiting();
    match state.metrics.render(stats.as_ref(), preparing, state.num_requests()) {
        Some(text) => {
            let text_format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            ([(CONTENT_TYPE, text_format)], text).into_response()
        }
        None => ApiError::internal("another metrics recorder is installed in this process").into_response(),
    }
}

/// A text's tokens, or a chat's.
#[utoipa::path(
    post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest,
    responses((status = 200, body = Tokens), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Tokens>, ApiError> {
    let _admission = state.admit()?;
    let JsonBody { object, memory: _memory } = state.read_object(&headers, body).await?;
    let request: TokenizeRequest = typed(object)?;
    let model = state.ready()?.clone();
    model.check_name(request.model.as_deref())?;
    state.text.run(move |_| tokens(&model, request)).await.map(Json)
}

fn tokens(model: &ServedModel, request: TokenizeRequest) -> Result<Tokens, ApiError> {
    let processor = &model.processor;
    let ids = match (request.prompt, request.messages) {
        (Some(prompt), None) => processor.encode_prompt(&prompt).map_err(|error| ApiError::from(error).at("prompt"))?,
        (None, Some(messages)) => {
            let chat = ChatRequest {
                add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
                template_kwargs: template_kwargs(request.chat_template_kwargs)?,
                ..ChatRequest::new(text_messages(messages)?)
            };
            processor.prepare(&chat, SamplingParams::default(), &HeapPixels)?.input_ids
        }
        _ => {
            return Err(ApiError::invalid("missing_field", "send either `prompt` or `messages`").at("prompt"));
        }
    };
    let text = |id: &TokenId| String::from_utf8_lossy(processor.tokenizer().token_bytes(*id)).into_owned();
    let token_strs = request.return_token_strs.unwrap_or(false).then(|| ids.iter().map(text).collect());
    Ok(Tokens {
        count: ids.len(),
        max_model_len: model.engine.limits().max_model_len,
        tokens: ids.into_iter().map(|id| id.0).collect(),
        token_strs,
    })
}

/// Tokens' text.
#[utoipa::path(
    post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest,
    responses((status = 200, body = Text), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Text>, ApiError> {
    let _admission = state.admit()?;
    let JsonBody { object, memory: _memory } = state.read_object(&headers, body).await?;
    let request: DetokenizeRequest = typed(object)?;
    let model = state.ready()?.clone();
    model.check_name(request.model.as_deref())?;
    let vocab_size = model.engine.limits().vocab_size;
    if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= vocab_size) {
        let message = format!("token {id} is outside of the model's vocabulary of {vocab_size} tokens");
        return Err(ApiError::invalid("invalid_value", message).at("tokens"));
    }
    let text = move |_: &Cancelled| {
        let tokenizer = model.processor.tokenizer();
        let bytes: Vec<u8> =
            request.tokens.iter().flat_map(|&id| tokenizer.token_bytes(TokenId(id))).copied().collect();
        Ok(Text { prompt: String::from_utf8_lossy(&bytes).into_owned() })
    };
    state.text.run(text).await.map(Json)
}
