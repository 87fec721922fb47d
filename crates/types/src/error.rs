//! The three error classes. They are types and not codes, so that the one place which maps them to an exit status or an
//! HTTP status can't forget one.

use thiserror::Error;

/// The request is wrong; the same request would fail again. HTTP's 400 family.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
#[non_exhaustive]
pub struct RequestError {
    /// What is wrong, where, and what would be right, in our own words.
    pub message: String,
    /// The request's field, as the caller spells it (`messages[0].content[1].image_url`).
    pub param: Option<String>,
    /// A stable word for programs (`invalid_image`, `context_length_exceeded`).
    pub code: &'static str,
}

impl RequestError {
    /// A wrong request; `code` is a stable word for programs.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: None, code }
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }
}

/// There is no room now; the same request may succeed later. HTTP's 429 and 503.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
#[non_exhaustive]
pub struct Exhausted {
    /// What ran out and how much of it there is.
    pub message: String,
}

impl Exhausted {
    /// Something ran out.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// The device or the engine is broken: it stops, drains and reports itself unhealthy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
#[non_exhaustive]
pub struct DeviceFailure {
    /// What failed.
    pub message: String,
}

impl DeviceFailure {
    /// Something that no retry mends.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Why a request ended without its answer, by class.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The request is wrong.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no room now.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The device is broken.
    #[error(transparent)]
    Device(#[from] DeviceFailure),
}
