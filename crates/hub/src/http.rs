//! Requests to a hub, and to the servers that it sends us to.

use std::io::ErrorKind;
use std::time::Duration;

use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderName, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::{Agent, Body};

use crate::HubError;
use crate::retry::Failure;

/// A server that sends us further more often is going in circles.
const MAX_REDIRECTS: usize = 10;

/// How long a server may take to be connected to, and how long it may be silent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the hub is: `https://host`, `http://127.0.0.1:8080/mirror`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Without `/` at its end.
    base: String,
    uri: Uri,
}

impl Endpoint {
    /// The hub itself.
    pub(crate) const DEFAULT: &str = "https://huggingface.co";

    pub(crate) fn parse(text: &str) -> Result<Self, HubError> {
        let invalid = |reason| HubError::InvalidSetting { setting: "HF_ENDPOINT", reason };
        let base = text.trim().trim_end_matches('/');
        let uri: Uri = base.parse().map_err(|_| invalid("it is no address, as https://host is"))?;
        if !is_web(&uri) {
            return Err(invalid("it doesn't begin with https:// or http:// and a host"));
        }
        if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(invalid("it has a query or a user's name, which an address of a hub hasn't"));
        }
        Ok(Self { base: base.to_owned(), uri })
    }

    /// An address below it. Parts of `path` that are not ours go through [`encode`] first.
    pub(crate) fn join(&self, path: &str) -> Result<Uri, HubError> {
        let reason = || "an address can't be made of what it lists".to_owned();
        let uri = format!("{}/{path}", self.base).parse();
        uri.map_err(|_| HubError::BadAnswer { host: self.host(), reason: reason() })
    }

    /// A page for people.
    pub(crate) fn page(&self, repo: &str) -> String {
        format!("{}/{repo}", self.base)
    }

    pub(crate) fn host(&self) -> String {
        host(&self.uri)
    }

    /// Whether an address is the hub's: only there the token may go.
    pub(crate) fn is_home_of(&self, uri: &Uri) -> bool {
        origin(uri) == origin(&self.uri)
    }

    fn is_loopback(&self) -> bool {
        matches!(self.uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"))
    }
}

/// A secret that is printed nowhere.
#[derive(Clone)]
pub(crate) struct Token(HeaderValue);

impl Token {
    /// None for an empty text, as an empty variable has it.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, HubError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let invalid =
            |_| HubError::InvalidSetting { setting: "HF_TOKEN", reason: "it has characters that no token has" };
        let mut value = HeaderValue::try_from(format!("Bearer {text}")).map_err(invalid)?;
        value.set_sensitive(true);
        Ok(Some(Self(value)))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Sends requests. The token goes to the hub's own host only.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    pub(crate) endpoint: Endpoint,
    token: Option<Token>,
}

/// What a server answered, and where it was asked.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    pub(crate) uri: Uri,
}

impl Client {
    pub(crate) fn new(endpoint: Endpoint, token: Option<Token>, max_connections: usize) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("foveal-hub/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .max_idle_connections(2 * max_connections)
            .max_idle_connections_per_host(max_connections);
        if endpoint.is_loopback() {
            // No proxy can reach a server that only this machine sees.
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), endpoint, token }
    }

    /// One request, one answer, whatever its status.
    pub(crate) fn send(&self, method: &Method, uri: &Uri, range: Option<&str>) -> Result<Response<Body>, Failure> {
        let unreachable = |error: &ureq::Error| Failure::Passing {
            error: HubError::Unreachable { host: host(uri), reason: reason(error) },
            retry_after: None,
        };
        let mut request = Request::builder().method(method).uri(uri);
        // A compressed answer's length and ranges are not the file's.
        request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.endpoint.is_home_of(uri)) {
            request = request.header(AUTHORIZATION, token.0.clone());
        }
        let request = request.body(()).map_err(|error| unreachable(&error.into()))?;
        self.agent.run(request).map_err(|error| unreachable(&error))
    }

    /// Follows redirects, wherever they lead.
    pub(crate) fn get(&self, uri: &Uri, range: Option<&str>) -> Result<Answer, Failure> {
        let mut uri = uri.clone();
        for _ in hops() {
            let response = self.send(&Method::GET, &uri, range)?;
            if !response.status().is_redirection() {
                return Ok(Answer { response, uri });
            }
            uri = redirected(&uri, response.headers())?;
        }
        Err(in_circles(&uri).into())
    }
}

/// Where a server sends us.
pub(crate) fn redirected(from: &Uri, headers: &HeaderMap) -> Result<Uri, HubError> {
    let bad = |reason: &str| HubError::BadAnswer { host: host(from), reason: reason.to_owned() };
    let location = text(headers, &LOCATION).ok_or_else(|| bad("it redirects to nowhere"))?;
    let base = format!("{}://{}", from.scheme_str().unwrap_or_default(), from.authority().map_or("", |a| a.as_str()));
    let absolute = match location {
        location if location.starts_with("//") => format!("{}:{location}", from.scheme_str().unwrap_or_default()),
        location if location.starts_with('/') => format!("{base}{location}"),
        location => location.to_owned(),
    };
    let to: Uri = absolute.parse().map_err(|_| bad("it redirects to what is no address"))?;
    if !is_web(&to) {
        return Err(bad("it redirects to what is no address of the web"));
    }
    if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
        return Err(bad("it redirects to a connection that isn't encrypted"));
    }
    Ok(to)
}

pub(crate) fn in_circles(uri: &Uri) -> HubError {
    HubError::BadAnswer { host: host(uri), reason: "it redirects in circles".to_owned() }
}

/// How many redirects are followed.
pub(crate) fn hops() -> std::ops::RangeInclusive<usize> {
    0..=MAX_REDIRECTS
}

/// A header's text, if there is one.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// When a server wants to be asked again: `Retry-After` in seconds, or the rest of a `RateLimit` window. Dates are left to the
/// usual pauses.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let window = || {
        let limit = text(headers, &HeaderName::from_static("ratelimit"))?;
        limit.split(';').find_map(|part| part.trim().strip_prefix("t="))
    };
    let seconds = text(headers, &RETRY_AFTER).or_else(window)?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// Keeps letters, digits and what no address makes something of; `/` only where it separates.
pub(crate) fn encode(text: &str, keep_slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            b'/' if keep_slashes => encoded.push('/'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// For messages: a host without path, query and secrets in it.
pub(crate) fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or("the server");
    uri.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn is_web(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
}

/// Scheme, host and port: what has to be the same for a secret to be shared.
fn origin(uri: &Uri) -> (Option<&str>, Option<String>, u16) {
    let scheme = uri.scheme_str();
    let usual = if scheme == Some("https") { 443 } else { 80 };
    (scheme, uri.host().map(str::to_ascii_lowercase), uri.port_u16().unwrap_or(usual))
}

/// Why there was no answer, in our own words.
fn reason(error: &ureq::Error) -> String {
    let text = match error {
        ureq::Error::HostNotFound => "no address is known for that name",
        ureq::Error::Timeout(_) => "it takes too long to answer",
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => UNSAFE,
        ureq::Error::InvalidProxyUrl | ureq::Error::ConnectProxyFailed(_) => "the proxy can't be used",
        ureq::Error::Io(error) => return io_reason(error.kind()),
        _ => "the connection failed",
    };
    text.to_owned()
}

const UNSAFE: &str = "no safe connection can be made; its certificate may be the reason";

fn io_reason(kind: ErrorKind) -> String {
    match kind {
        ErrorKind::InvalidData => UNSAFE.to_owned(),
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::BrokenPipe
        | ErrorKind::TimedOut
        | ErrorKind::UnexpectedEof => kind.to_string(),
        // What looking up a name fails with has no kind of its own.
        _ => "its name can't be looked up; is there a network?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Endpoint, HeaderMap, LOCATION, Token, Uri, encode, redirected, retry_after};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_token_is_at_home_at_one_origin_only() {
        let endpoint = Endpoint::parse("https://hub.example/mirror/").unwrap();
        let is_home = |text: &str| endpoint.is_home_of(&text.parse::<Uri>().unwrap());
        assert!(is_home("https://hub.example/x") && is_home("https://HUB.example:443/"));
        for other in [
            "http://hub.example/",
            "https://cdn.hub.example/",
            "https://hub.example:8443/",
            "https://hub.example.evil/",
        ] {
            assert!(!is_home(other), "{other}");
        }
        assert_eq!(endpoint.join("api/x").unwrap().to_string(), "https://hub.example/mirror/api/x");
        for bad in ["", "hub.example", "ftp://x", "https://", "https://user@x", "https://x?y=z", "https://a b"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::parse(" secret\n").unwrap().unwrap();
        assert_eq!(token.0.to_str().unwrap(), "Bearer secret");
        assert!(!format!("{token:?} {:?}", token.0).contains("secret"));
        assert!(Token::parse(" \n").unwrap().is_none());
        assert!(!Token::parse("sec\nret").unwrap_err().to_string().contains("sec\n"));
    }

    #[test]
    fn redirects_lead_to_the_web_and_never_out_of_encryption() {
        let to = |from: &str, location: &str| {
            redirected(&from.parse().unwrap(), &headers(&[(LOCATION.as_str(), location)])).map(|uri| uri.to_string())
        };
        assert_eq!(to("https://a/x/y", "/z?q=1").unwrap(), "https://a/z?q=1");
        assert_eq!(to("https://a/x", "//b/z").unwrap(), "https://b/z");
        assert_eq!(to("http://a:1/x", "http://b:2/z").unwrap(), "http://b:2/z");
        for bad in ["http://a/x", "ftp://a/x", "file:///etc/passwd", "z", ""] {
            assert!(to("https://a/x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_say_when_to_come_back() {
        let seconds = |pairs: &[(&'static str, &str)]| retry_after(&headers(pairs)).map(|d: Duration| d.as_secs());
        assert_eq!(seconds(&[("retry-after", "7")]), Some(7));
        assert_eq!(seconds(&[("ratelimit", "\"api\";r=0;t=55")]), Some(55));
        assert_eq!(seconds(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), None);
        assert_eq!(seconds(&[]), None);
    }

    #[test]
    fn names_become_parts_of_an_address() {
        assert_eq!(encode("a/b c#?%ü.json", true), "a/b%20c%23%3F%25%C3%BC.json");
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
    }
}
