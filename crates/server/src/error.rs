//! The one place where errors become HTTP: a status, and OpenAI's `{"error": {message, type, param, code}}`.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use foveal_processor::ProcessorError;
use foveal_types::{Error, RequestError};
use serde::Serialize;
use utoipa::ToSchema;

/// What a client is told instead of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) detail: ErrorDetail,
    retry_after_s: Option<u32>,
}

/// OpenAI's form of an error.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

/// What is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// For people.
    pub(crate) message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The parameter that is wrong.
    pub(crate) param: Option<String>,
    /// A stable word for programs.
    pub(crate) code: Option<&'static str>,
}

/// Seconds after which a client may try again when there was no room.
const RETRY_SOON_S: u32 = 1;
/// Seconds after which another server may have taken this one's place.
const RETRY_LATER_S: u32 = 5;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        let detail = ErrorDetail { message: message.into(), kind, param: None, code: Some(code) };
        Self { status, detail, retry_after_s: None }
    }

    /// The request is wrong; `code` is a stable word for programs.
    pub(crate) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        let status = match code {
            "model_not_found" | "unknown_path" => StatusCode::NOT_FOUND,
            "method_not_allowed" => StatusCode::METHOD_NOT_ALLOWED,
            "request_timeout" => StatusCode::REQUEST_TIMEOUT,
            "unsupported_media_type" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "image_too_large" | "request_too_large" | "text_too_large" | "too_many_images" => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, "invalid_request_error", code, message)
    }

    /// The caller has no valid key.
    pub(crate) fn unauthorized(message: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    /// There is no room now.
    pub(crate) fn overloaded(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "overloaded", message);
        Self { retry_after_s: Some(RETRY_SOON_S), ..error }
    }

    /// This server takes no requests: not yet, or not any more.
    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message);
        Self { retry_after_s: Some(RETRY_LATER_S), ..error }
    }

    /// Something that is nobody's fault outside.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error", message)
    }

    /// Names the parameter.
    pub(crate) fn at(mut self, param: impl Into<String>) -> Self {
        self.detail.param = Some(param.into());
        self
    }

    /// The body alone, for a stream whose status has been sent.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let RequestError { message, param, code, .. } = error;
        let mapped = Self::invalid(code, message);
        Self { detail: ErrorDetail { param, ..mapped.detail }, ..mapped }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::Request(error) => error.into(),
            Error::Exhausted(error) => Self::overloaded(error.message),
            // What a driver says is the operator's to read.
            Error::Device(failure) => {
                tracing::error!(%failure, "a request failed");
                Self::unavailable("engine_stopped", "the engine has stopped; the server's log says why")
            }
            _ => Self::internal("the request failed for a reason that this server doesn't know"),
        }
    }
}

impl From<ProcessorError> for ApiError {
    fn from(error: ProcessorError) -> Self {
        Error::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, bearer);
        }
        response.extensions_mut().insert(self.detail);
        response
    }
}

#[cfg(test)]
mod tests {
    use foveal_types::{DeviceFailure, Exhausted};

    use super::*;

    #[test]
    fn each_class_has_its_status() {
        let of = |error: Error| {
            let response = ApiError::from(error).into_response();
            (response.status().as_u16(), response.headers().get(RETRY_AFTER).is_some())
        };
        assert_eq!(of(RequestError::new("invalid_value", "x").into()), (400, false));
        assert_eq!(of(RequestError::new("image_too_large", "x").into()), (413, false));
        assert_eq!(of(Exhausted::new("x").into()), (429, true));
        assert_eq!(of(DeviceFailure::new("CUDA_ERROR at 0x7f00").into()), (503, true));
        let shown = ApiError::from(Error::from(DeviceFailure::new("CUDA_ERROR at 0x7f00")));
        assert!(!shown.detail.message.contains("0x7f00"), "a driver's words stay in the log");
    }

    #[test]
    fn the_body_is_openais() {
        let error = ApiError::from(RequestError::new("invalid_value", "`n` is 0").at("n"));
        let json = serde_json::to_value(error.body()).unwrap();
        let expected = serde_json::json!({
            "error": {"message": "`n` is 0", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
        });
        assert_eq!(json, expected);
    }
}
