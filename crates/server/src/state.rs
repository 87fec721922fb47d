//! What all requests share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::HeaderMap;
use foveal_fetch::Fetcher;
use rayon::ThreadPool;

use crate::config::{ServedModel, ServerConfig};
use crate::error::ApiError;
use crate::json_body::{BodyLimits, JsonBody, read_object};
use crate::metrics::Metrics;
use crate::preparation::Preparation;

/// What all requests share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AppState(Arc<Shared>);

/// The parts of [`AppState`].
pub(crate) struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) fetcher: Fetcher,
    /// Requests with pictures: bounded by cores.
    pub(crate) pictures: Preparation,
    /// Threads that decode pictures, apart from those that compute.
    pub(crate) decoders: ThreadPool,
    /// Requests of text alone: a moment each, so they never wait behind pictures.
    pub(crate) text: Preparation,
    pub(crate) metrics: Metrics,
    /// Seconds since 1970 when the server started.
    pub(crate) started_s: u64,
    model: OnceLock<ServedModel>,
    is_draining: AtomicBool,
    num_requests: AtomicUsize,
    /// What bodies may be.
    pub(crate) bodies: BodyLimits,
}

impl std::ops::Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// A request's place among those that the server answers at once; given back when it is dropped.
pub(crate) struct Admission(AppState);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.num_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What answers carry as `system_fingerprint`.
pub(crate) const FINGERPRINT: &str = concat!("foveal-", env!("CARGO_PKG_VERSION"));

/// Text-only requests that wait for one of as many threads as there are for pictures.
const TEXT_QUEUE_FACTOR: usize = 4;

impl AppState {
    pub(crate) fn new(config: ServerConfig, fetcher: Fetcher, decoders: ThreadPool, metrics: Metrics) -> Self {
        let pictures = Preparation::new(config.preprocess_threads, config.max_preparing);
        let text = Preparation::new(config.preprocess_threads, config.max_preparing.saturating_mul(TEXT_QUEUE_FACTOR));
        Self(Arc::new(Shared {
            fetcher,
            pictures,
            decoders,
            text,
            metrics,
            started_s: unix_seconds(),
            model: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            num_requests: AtomicUsize::new(0),
            bodies: BodyLimits::new(config.max_body_bytes, config.max_total_body_bytes, config.read_timeout),
            config,
        }))
    }

    /// From now on requests are answered. Once.
    pub(crate) fn set_model(&self, model: ServedModel) {
        let _ = self.model.set(model);
    }

    /// From now on no request is taken.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Requests that are being answered.
    pub(crate) fn num_requests(&self) -> usize {
        self.num_requests.load(Ordering::Relaxed)
    }

    /// The model, if requests are answered now.
    pub(crate) fn ready(&self) -> Result<&ServedModel, ApiError> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable(
                "shutting_down",
                "the server is shutting down and takes no more requests",
            ));
        }
        let model = self.model.get();
        let model =
            model.ok_or_else(|| ApiError::unavailable("loading", "the model is being loaded; try again soon"))?;
        match model.engine.stopped() {
            None => Ok(model),
            Some(_) => {
                Err(ApiError::unavailable("engine_stopped", "the engine has stopped; the server's log says why"))
            }
        }
    }

    /// The model, as long as it is there, whether or not it takes requests.
    pub(crate) fn model(&self) -> Option<&ServedModel> {
        self.model.get()
    }

    /// Takes a place for a request.
    pub(crate) fn admit(&self) -> Result<Admission, ApiError> {
        self.ready()?;
        let max = self.config.max_requests;
        if self.num_requests.fetch_add(1, Ordering::Relaxed) >= max {
            self.num_requests.fetch_sub(1, Ordering::Relaxed);
            return Err(ApiError::overloaded(format!("{max} requests are being answered already; try again later")));
        }
        Ok(Admission(self.clone()))
    }

    /// Reads a request's body.
    pub(crate) async fn read_object(&self, headers: &HeaderMap, body: Body) -> Result<JsonBody, ApiError> {
        read_object(headers, body, &self.bodies, &self.pictures).await
    }
}

impl ServedModel {
    /// The name that answers carry.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or("foveal", String::as_str)
    }

    /// Checks the name that a request calls the model by.
    pub(crate) fn check_name(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if !self.names.iter().any(|name| name == asked) => {
                let shown: String = asked.chars().take(128).collect();
                let message = format!("there is no model `{shown}` here; it is called `{}`", self.names.join("` or `"));
                Err(ApiError::invalid("model_not_found", message).at("model"))
            }
            _ => Ok(()),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
