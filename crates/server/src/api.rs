//! What is sent over the wire, as types. The OpenAPI document is made from them.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod models;
pub(crate) mod object;
pub(crate) mod sampling;
pub(crate) mod tokens;
pub(crate) mod usage;
