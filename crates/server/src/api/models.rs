//! `/v1/models`, `/version` and `/health` as they are sent.

use serde::Serialize;
use utoipa::ToSchema;

/// The models: one, under each of its names.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`.
    pub(crate) object: &'static str,
    pub(crate) data: Vec<ModelCard>,
}

/// A model under one of its names.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelCard {
    pub(crate) id: String,
    /// `model`.
    pub(crate) object: &'static str,
    /// Seconds since 1970, when the server started.
    pub(crate) created: u64,
    /// `foveal`.
    pub(crate) owned_by: &'static str,
    /// The model's folder or hub id.
    pub(crate) root: String,
    /// The most tokens of prompt and answer together.
    pub(crate) max_model_len: usize,
}

/// The program's version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
}

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ready`: the model has answered.
    pub(crate) status: &'static str,
}
