//! The listener: connections in, a bounded number of them, and a stop that lets answers end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foveal_fetch::{Fetcher, PolicyError};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::config::{ServedModel, ServerConfig};
use crate::figures;
use crate::metrics::Metrics;
use crate::router::router;
use crate::state::AppState;

/// Why a server can't begin.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address can't be listened on.
    #[error("{address} can't be listened on: {reason}; another program may have the port: --port names another one")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// What may be fetched can't be as it was said.
    #[error(transparent)]
    Media(#[from] PolicyError),
}

/// A server that listens. It says that it isn't ready until it has a model.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    handle: ServerHandle,
}

/// Gives a running server its model. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle(AppState);

impl std::fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerHandle").field("num_requests", &self.0.num_requests()).finish_non_exhaustive()
    }
}

impl ServerHandle {
    /// From now on requests are answered. The model should have answered one before: `/health` says that it has.
    pub fn set_model(&self, model: ServedModel) {
        self.0.metrics.set_model(model.name());
        self.0.set_model(model);
    }

    /// Requests that are being answered.
    #[must_use]
    pub fn num_requests(&self) -> usize {
        self.0.num_requests()
    }
}

/// How long the listener rests when the system has no file handles left, or another error that passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Server {
    /// Listens on `address`, `HOST:PORT`; port 0 takes a free one. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// [`ServerError`]: the address is taken or isn't this machine's; the folder of local media isn't there.
    pub async fn bind(address: &str, config: ServerConfig) -> Result<Self, ServerError> {
        let fetcher = Fetcher::new(config.media.clone())?;
        let failed = |error: io::Error| ServerError::Listen { address: address.to_owned(), reason: error.to_string() };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self { listener, handle: ServerHandle(AppState::new(config, fetcher, Metrics::install())) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Gives it its model, before or while it runs.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Answers until `stop` is ready; then takes no more requests and lets running ones end, for
    /// [`ServerConfig::shutdown_timeout`] at most.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, handle: ServerHandle(state) } = self;
        let figures = tokio::spawn(figures::log_figures(state.clone()));
        let connections = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(state.config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        let app = router(state.clone());
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                (listener.accept().await, place)
            };
            let (stream, place) = tokio::select! {
                () = &mut stop => break,
                (accepted, place) = accepted => match accepted {
                    Ok((stream, _)) => (stream, place),
                    Err(error) => {
                        tracing::warn!(%error, "a connection couldn't be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let connection = connection(stream, &app, state.config.read_timeout);
            let connection = connections.watch(connection);
            tokio::spawn(async move {
                // A connection that breaks off is its client's business, and the request's line in the log says so.
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended early");
                }
                drop(place);
            });
        }
        drop(listener);
        drain(&state, connections).await;
        figures.abort();
    }
}

type Connection = http1::Connection<TokioIo<TcpStream>, TowerToHyperService<axum::Router>>;

fn connection(stream: TcpStream, app: &axum::Router, read_timeout: Duration) -> Connection {
    // A token is a small packet that somebody waits for.
    let _ = stream.set_nodelay(true);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()))
}

/// Waits for what is running, but not for ever.
async fn drain(state: &AppState, connections: GracefulShutdown) {
    state.drain();
    let timeout = state.config.shutdown_timeout;
    tracing::info!(requests = state.num_requests(), timeout_s = timeout.as_secs(), "shutting down");
    if tokio::time::timeout(timeout, connections.shutdown()).await.is_err() {
        tracing::warn!(requests = state.num_requests(), "the time for running answers is up; they end here");
    }
}
