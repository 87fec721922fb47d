//! What an operator sets.

use std::path::PathBuf;
use std::time::Duration;

use foveal_fetch::Policy;

/// What an operator sets of the server. The default is safe in front of strangers: data URLs alone, bounded everywhere.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Who may ask: one of these keys must come as `Authorization: Bearer KEY`. Empty: everybody.
    pub api_keys: Vec<String>,
    /// Where pictures may come from, and their largest encoded size.
    pub media: Policy,
    /// The most bytes of a request's body. Default: 64 MiB, some forty pictures of a megabyte.
    pub max_body_bytes: usize,
    /// The most bytes of all bodies over 64 KiB that are held at once; who comes beyond that is told to come again. Default: 1 GiB.
    pub max_total_body_bytes: usize,
    /// The most requests at once, from the first byte of their body to the last of their answer; the next one is told to come
    /// again. Default: 1024.
    pub max_requests: usize,
    /// The most connections at once; more wait to be accepted. Default: 4096.
    pub max_connections: usize,
    /// Threads that prepare requests with pictures. Default: as many as there are cores.
    pub preprocess_threads: usize,
    /// The most requests with pictures that wait for such a thread. Default: 256.
    pub max_preparing: usize,
    /// The most answers to one request (`n`). Default: 16.
    pub max_choices: usize,
    /// The most time that a request's head, and then its body, takes to arrive, and that an answer waits for a client that doesn't
    /// read. Default: 60 s.
    pub read_timeout: Duration,
    /// How long answers may go on after the server was told to stop. Default: 30 s.
    pub shutdown_timeout: Duration,
    /// How often a line of the engine's figures is logged. Default: 10 s.
    pub figures_every: Duration,
    /// Origins of web pages elsewhere that may ask, as `https://example.com`, or `*` for all. Default: none.
    pub allowed_origins: Vec<String>,
    /// Serves the page at `/`. Default: yes.
    pub page: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            api_keys: Vec::new(),
            media: Policy::default(),
            max_body_bytes: 64 << 20,
            max_total_body_bytes: 1 << 30,
            max_requests: 1024,
            max_connections: 4096,
            preprocess_threads: cores,
            max_preparing: 256,
            max_choices: 16,
            read_timeout: Duration::from_secs(60),
            shutdown_timeout: Duration::from_secs(30),
            figures_every: Duration::from_secs(10),
            allowed_origins: Vec::new(),
            page: true,
        }
    }
}

/// The model as it is served.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// The names that requests may call it by; the first is what answers carry. At least one.
    pub names: Vec<String>,
    /// Its folder, for `/v1/models`.
    pub root: Option<PathBuf>,
    /// Turns chats into requests.
    pub processor: std::sync::Arc<foveal_processor::Processor>,
    /// Answers them.
    pub engine: foveal_engine::Engine,
    /// What a request's parameters are before it sets any.
    pub default_sampling: foveal_types::SamplingParams,
}
