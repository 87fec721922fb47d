//! Which path leads where, and what every request passes.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ORIGIN, VARY,
};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::error::{ApiError, ErrorDetail};
use crate::request_id::RequestId;
use crate::state::AppState;
use crate::{auth, chat, completions, info, openapi, page};

/// All paths.
pub(crate) fn router(state: AppState) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{*model}", get(info::model))
        .route("/tokenize", post(info::tokenize))
        .route("/detokenize", post(info::detokenize))
        .route_layer(from_fn_with_state(state.clone(), auth::require_key));
    let mut open = Router::new()
        .route("/health", get(info::health))
        .route("/metrics", get(info::metrics))
        .route("/version", get(info::version))
        .route("/openapi.json", get(openapi::document));
    if state.config.page {
        open = open.route("/", get(page::page));
    }
    let origins: Arc<[String]> = state.config.allowed_origins.clone().into();
    guarded
        .merge(open)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(origins, cross_origin))
        .layer(from_fn(name_request))
        .with_state(state)
}

async fn unknown_path(uri: Uri) -> ApiError {
    let shown: String = uri.path().chars().take(128).collect();
    ApiError::invalid("unknown_path", format!("there is no `{shown}` here; /openapi.json lists what there is"))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("`{}` doesn't take {method}; /openapi.json says what it takes", uri.path());
    ApiError::invalid("method_not_allowed", message)
}

/// Gives a request its name, says it to the client, and logs what is refused.
async fn name_request(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let path = request.uri().path().to_owned();
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    if let Some(ErrorDetail { message, param, code, .. }) = response.extensions().get() {
        let (status, code) = (response.status().as_u16(), code.unwrap_or_default());
        // Words of the client's stand in it, which mustn't begin a line of their own.
        let message: String = message.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
        tracing::info!(id = %id.0, path, status, code, param, "refused: {message}");
    }
    if let Some(name) = id.header() {
        response.headers_mut().insert(crate::request_id::HEADER, name);
    }
    response
}

/// Lets pages of the allowed origins ask: a browser keeps the answer from all others.
async fn cross_origin(State(origins): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let allowed = request
        .headers()
        .get(ORIGIN)
        .cloned()
        .filter(|origin| origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes()));
    let mut response = match (request.method(), &allowed) {
        (&Method::OPTIONS, Some(_)) => {
            let headers = [
                (ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST")),
                (ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type, x-request-id")),
            ];
            (StatusCode::NO_CONTENT, headers).into_response()
        }
        _ => next.run(request).await,
    };
    if let Some(origin) = allowed {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().insert(VARY, HeaderValue::from_static("origin"));
    }
    response
}
