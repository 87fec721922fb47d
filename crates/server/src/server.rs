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
use rayon::ThreadPoolBuilder;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::config::{ServedModel, ServerConfig};
use crate::connection::{Observer, Socket, watched};
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
    /// The system gives no threads.
    #[error("{threads} threads for decoding pictures can't be started: {reason}; --preprocess-threads asks for fewer")]
    Threads {
        /// How many were asked for.
        threads: usize,
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
        let threads = config.preprocess_threads.max(1);
        let decoders = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("decode-{i}")).build();
        let decoders = decoders.map_err(|error| ServerError::Threads { threads, reason: error.to_string() })?;
        Ok(Self { listener, handle: ServerHandle(AppState::new(config, fetcher, decoders, Metrics::install())) })
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

    /// Answers until `stop` is ready; then refuses new requests with 503 and lets running ones end, for
    /// [`ServerConfig::shutdown_timeout`] at most.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, handle: ServerHandle(state) } = self;
        let figures = tokio::spawn(figures::log_figures(state.clone()));
        let max_connections = state.config.max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let door = Door {
            listener,
            places: Arc::new(Semaphore::new(max_connections)),
            app: router(state.clone()),
            read_timeout: state.config.read_timeout,
        };
        let connections = GracefulShutdown::new();
        tokio::select! {
            () = stop => {}
            () = door.take(true, |connection| connections.watch(connection)) => {}
        }
        state.drain();
        // Who comes now is told so rather than left without an answer; nobody waits for such a connection.
        tokio::select! {
            () = drain(&state, connections) => {}
            () = door.take(false, |connection| connection) => {}
        }
        figures.abort();
    }
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    app: axum::Router,
    read_timeout: Duration,
}

type Connection = http1::Connection<TokioIo<Socket>, TowerToHyperService<axum::Router>>;

impl Door {
    /// Takes connections until it is dropped; each lasts for one request alone unless `keep_alive`.
    async fn take<F>(&self, keep_alive: bool, watch: impl Fn(Connection) -> F)
    where
        F: Future<Output = hyper::Result<()>> + Send + 'static,
    {
        loop {
            // The semaphore is never closed.
            let place = Arc::clone(&self.places).acquire_owned().await.ok();
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection couldn't be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (connection, observer) = self.connection(stream, keep_alive);
            let (connection, patience) = (watch(connection), self.read_timeout);
            tokio::spawn(async move {
                // A connection that breaks off is its client's business, and the request's line in the log says so.
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended early");
                    },
                    reason = observer.until_given_up(patience) => tracing::debug!(?reason, "a connection was given up"),
                }
                drop(place);
            });
        }
    }

    fn connection(&self, stream: TcpStream, keep_alive: bool) -> (Connection, Observer) {
        // A token is a small packet that somebody waits for.
        let _ = stream.set_nodelay(true);
        let (socket, observer) = watched(stream);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.read_timeout)
            .keep_alive(keep_alive)
            .serve_connection(TokioIo::new(socket), TowerToHyperService::new(self.app.clone()));
        (connection, observer)
    }
}

/// Waits for what is running, but not for ever.
async fn drain(state: &AppState, connections: GracefulShutdown) {
    let timeout = state.config.shutdown_timeout;
    tracing::info!(requests = state.num_requests(), timeout_s = timeout.as_secs(), "shutting down");
    if tokio::time::timeout(timeout, connections.shutdown()).await.is_err() {
        tracing::warn!(requests = state.num_requests(), "the time for running answers is up; they end here");
    }
}
