//! HTTP with one server.

use std::fmt;
use std::io::Read;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use crate::answer::{Answer, AnswerReader};
use crate::chunk::RawError;
use crate::error::LoadError;
use crate::event_stream::EventStream;
use crate::options::options;

/// A server that doesn't take a connection in this time isn't there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest silence: a first token behind a long queue may take minutes.
const READ_TIMEOUT: Duration = Duration::from_secs(1800);
/// Servers close connections that have been idle for a few seconds; one that is about to be closed must not be used.
const MAX_IDLE: Duration = Duration::from_secs(1);
/// Between two questions whether a server is ready.
const READY_INTERVAL: Duration = Duration::from_millis(100);
/// What a server says about an error, at most.
const MAX_MESSAGE_CHARS: usize = 300;
/// What is read of a response that is no stream.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;
/// A chunk of an answer is some hundred bytes.
const READ_BYTES: usize = 16 << 10;

/// Which of OpenAI's APIs is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Api {
    /// Chat completions, with or without pictures.
    #[default]
    Chat,
    /// Completions: text alone.
    Completions,
}

impl Api {
    /// The name of `vllm bench serve --backend`.
    #[must_use]
    pub fn backend(self) -> &'static str {
        match self {
            Self::Chat => "openai-chat",
            Self::Completions => "openai",
        }
    }

    fn endpoint(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

impl FromStr for Api {
    type Err = LoadError;

    fn from_str(name: &str) -> Result<Self, LoadError> {
        match name {
            "openai-chat" => Ok(Self::Chat),
            "openai" => Ok(Self::Completions),
            other => Err(options("backend", format!("`{other}` is none; use openai-chat or openai"))),
        }
    }
}

/// A server and how it is spoken to.
#[derive(Clone)]
pub struct Target {
    /// Scheme, host and port, as `http://127.0.0.1:8000`.
    pub base_url: String,
    /// What requests are sent to; `None` for the API's usual path.
    pub endpoint: Option<String>,
    /// Which API.
    pub api: Api,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base_url, endpoint, api, api_key } = self;
        let has_key = api_key.is_some();
        let mut all = f.debug_struct("Target");
        all.field("base_url", base_url)
            .field("endpoint", endpoint)
            .field("api", api)
            .field("has_key", &has_key)
            .finish()
    }
}

/// A server's connections.
#[derive(Clone)]
pub(crate) struct Client {
    agent: Agent,
    base_url: String,
    endpoint: String,
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<ModelName>,
}

#[derive(Deserialize)]
struct ModelName {
    id: String,
}

#[derive(Deserialize)]
struct Tokens {
    count: Option<usize>,
    tokens: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct Failure {
    error: Option<RawError>,
    message: Option<String>,
    detail: Option<RawError>,
}

impl Client {
    pub(crate) fn new(target: &Target) -> Result<Self, LoadError> {
        let base_url = target.base_url.trim_end_matches('/');
        // Other clients' base is the API's.
        let base_url = base_url.strip_suffix("/v1").unwrap_or(base_url).to_owned();
        let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if !base_url.parse().is_ok_and(|uri| is_http(&uri)) {
            return Err(LoadError::Address { url: target.base_url.clone() });
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // A proxy's time isn't the server's.
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .max_idle_connections(usize::MAX)
            .max_idle_connections_per_host(usize::MAX)
            .max_idle_age(MAX_IDLE)
            .build();
        Ok(Self {
            agent: config.new_agent(),
            base_url,
            endpoint: target.endpoint.clone().unwrap_or_else(|| target.api.endpoint().to_owned()),
            authorization: target.api_key.as_ref().map(|key| format!("Bearer {key}")),
        })
    }

    /// Asks `/health` until the server is ready, and gives the time that took. A server without such a route is taken as
    /// ready when it answers.
    pub(crate) fn wait_until_ready(&self, timeout: Duration) -> Result<Duration, LoadError> {
        let start = Instant::now();
        loop {
            let last = match self.get("/health") {
                Ok(response) if [200, 404].contains(&response.status().as_u16()) => return Ok(start.elapsed()),
                Ok(response) => format!("status {}", response.status().as_u16()),
                Err(reason) => reason,
            };
            if start.elapsed() >= timeout {
                return Err(LoadError::NotReady { url: self.url("/health"), seconds: timeout.as_secs(), last });
            }
            std::thread::sleep(READY_INTERVAL);
        }
    }

    /// The first model of `/v1/models`.
    pub(crate) fn first_model(&self) -> Result<String, LoadError> {
        const PATH: &str = "/v1/models";
        let models: Models = self.json(PATH, self.get(PATH))?;
        let first = models.data.into_iter().next();
        first.map(|model| model.id).ok_or(LoadError::Response { url: self.url(PATH), reason: "it serves no model" })
    }

    /// How many tokens a text has, by `/tokenize`.
    pub(crate) fn count_tokens(&self, model: &str, text: &str) -> Result<usize, LoadError> {
        const PATH: &str = "/tokenize";
        let body = json!({ "model": model, "prompt": text, "add_special_tokens": false }).to_string();
        let tokens = match self.json::<Tokens>(PATH, self.post(PATH, body.as_bytes())) {
            Err(LoadError::Status { url, status: 404 | 405 | 501, .. }) => return Err(LoadError::NoTokenizer { url }),
            other => other?,
        };
        let count = tokens.count.or_else(|| Some(tokens.tokens?.len()));
        count.ok_or(LoadError::Response { url: self.url(PATH), reason: "it says neither count nor tokens" })
    }

    /// Sends a request and reads its answer. The times are from here on; a failure is told in a sentence.
    pub(crate) fn ask(&self, body: &[u8]) -> Result<Answer, String> {
        let start = Instant::now();
        let mut response = self.post(&self.endpoint, body)?;
        let status = response.status().as_u16();
        if status != 200 {
            let message = said(&mut response);
            let colon = if message.is_empty() { "" } else { ": " };
            return Err(format!("the server answered with status {status}{colon}{message}"));
        }
        let mut reader = response.body_mut().as_reader();
        let (mut events, mut answer) = (EventStream::default(), AnswerReader::default());
        let mut buffer = [0; READ_BYTES];
        loop {
            let read = reader.read(&mut buffer);
            // Before anything is parsed.
            let at = start.elapsed();
            let bytes = match read {
                Ok(0) => return answer.finish(),
                Ok(len) => buffer.get(..len).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(answer.failure().map_or_else(|| broken(&error), str::to_owned)),
            };
            if events.push(bytes, |data| answer.event(data, at)).is_err() {
                return Err("the server sent an event of more than 4 MiB".to_owned());
            }
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    fn get(&self, path: &str) -> Result<Response<Body>, String> {
        let mut request = self.agent.get(self.url(path));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        request.call().map_err(|error| reason(&error))
    }

    fn post(&self, path: &str, body: &[u8]) -> Result<Response<Body>, String> {
        let mut request = self.agent.post(self.url(path)).header("content-type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        request.send(body).map_err(|error| reason(&error))
    }

    fn json<T: DeserializeOwned>(&self, path: &str, response: Result<Response<Body>, String>) -> Result<T, LoadError> {
        let mut response = response.map_err(|reason| LoadError::Connection { url: self.url(path), reason })?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(LoadError::Status { url: self.url(path), status, message: said(&mut response) });
        }
        let body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_vec();
        let body = body.map_err(|error| LoadError::Connection { url: self.url(path), reason: reason(&error) })?;
        serde_json::from_slice(&body).map_err(|_| LoadError::Response {
            url: self.url(path),
            reason: "it is not the JSON that OpenAI's API has there",
        })
    }
}

/// What a server says about its error: its message if there is one, else the beginning of its text.
fn said(response: &mut Response<Body>) -> String {
    let body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_vec().unwrap_or_default();
    let message = serde_json::from_slice::<Failure>(&body)
        .ok()
        .and_then(|failure| failure.message.or_else(|| failure.error.or(failure.detail).map(RawError::into_message)));
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    message.trim().chars().take(MAX_MESSAGE_CHARS).collect()
}

/// Why no response came.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => broken(error),
        ureq::Error::HostNotFound => "no such host".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            "the address or the API key holds characters that HTTP doesn't take".to_owned()
        }
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => "the server's certificate can't be verified".to_owned(),
        ureq::Error::Protocol(_) => "the server doesn't keep to HTTP".to_owned(),
        ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => "the server sends elsewhere".to_owned(),
        _ => "the connection failed".to_owned(),
    }
}

fn broken(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused: nobody listens there".to_owned(),
        kind => format!("the connection broke: {kind}"),
    }
}
