//! The page at `/`: drop a picture, ask, watch the answer.

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

/// The page; one file without a build step.
const PAGE: &str = include_str!("../page/index.html");

/// Nothing but the page's own code runs, and it talks to this server alone.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline'; \
                      script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page.
pub(crate) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    ];
    (headers, PAGE).into_response()
}
