//! Pictures over the network: which hosts and addresses, which answers.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION};
use ureq::http::{HeaderMap, HeaderName, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};
use url::Host;

use crate::read::read_all;
use crate::target::Target;
use crate::worker::{Switch, Workers};
use crate::{FetchError, Policy, address, media_type};

/// The addresses of a name, with the port given.
pub(crate) type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// What tests replace: the system's lookup of names, and which addresses count as public.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) lookup: Arc<Lookup>,
    pub(crate) is_public: fn(IpAddr) -> bool,
}

impl Network {
    pub(crate) fn of_the_system() -> Self {
        let lookup = |name: &str, port: u16| Ok((name, port).to_socket_addrs()?.collect());
        Self { lookup: Arc::new(lookup), is_public: address::is_public }
    }
}

/// Fetches from the hosts that a policy allows.
pub(crate) struct Remote {
    policy: Policy,
    network: Network,
    workers: Workers,
}

/// What a host answers.
enum Answer {
    Picture(Vec<u8>),
    MovedTo(Target),
}

impl Remote {
    pub(crate) fn new(policy: Policy, network: Network) -> Self {
        let workers = Workers::new(policy.max_concurrent);
        Self { policy, network, workers }
    }

    /// Fetches an `http(s)` URL.
    pub(crate) fn fetch(self: &Arc<Self>, url: &str, is_cancelled: &dyn Fn() -> bool) -> Result<Vec<u8>, FetchError> {
        if self.policy.allowed_media_domains.is_empty() {
            return Err(FetchError::RemoteDisabled);
        }
        let target = Target::parse(url)?;
        self.check_domain(&target)?;
        let deadline = Instant::now() + self.policy.timeout;
        let remote = Arc::clone(self);
        let work = move |switch: &Switch| remote.follow(target, deadline, switch);
        self.workers.run(deadline, is_cancelled, work).unwrap_or_else(|| Err(self.timed_out()))
    }

    /// Goes from address to address until there is a picture.
    fn follow(&self, mut target: Target, deadline: Instant, switch: &Switch) -> Result<Vec<u8>, FetchError> {
        let mut num_redirects = 0;
        loop {
            let addresses = self.checked_addresses(&target).map_err(|error| match error {
                // The client knows its own host, not where that one sends it.
                FetchError::AddressNotAllowed { .. } if num_redirects > 0 => not_allowed_redirect(),
                error => error,
            })?;
            match self.exchange(&target, addresses, deadline, switch)? {
                Answer::Picture(bytes) => return Ok(bytes),
                Answer::MovedTo(_) if num_redirects == self.policy.max_redirects => {
                    return Err(FetchError::Redirect { reason: "moved again more often than this server follows" });
                }
                Answer::MovedTo(next) => {
                    self.check_domain(&next).map_err(|_| not_allowed_redirect())?;
                    target = next;
                    num_redirects += 1;
                }
            }
        }
    }

    fn check_domain(&self, target: &Target) -> Result<(), FetchError> {
        let is_allowed = target
            .host()
            .is_some_and(|host| self.policy.allowed_media_domains.iter().any(|domain| domain.allows(&host)));
        if is_allowed {
            Ok(())
        } else {
            Err(FetchError::DomainNotAllowed { host: target.host_name().map(str::to_owned) })
        }
    }

    /// Where to connect to, if all addresses of the host may be connected to. A literal address is never looked up.
    fn checked_addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, FetchError> {
        let unknown = |source| FetchError::Network { what: "its host's name isn't known", source };
        let port = target.port();
        let addresses = match target.host() {
            Some(Host::Ipv4(address)) => vec![(address, port).into()],
            Some(Host::Ipv6(address)) => vec![(address, port).into()],
            Some(Host::Domain(name)) => (self.network.lookup)(name, port).map_err(|error| unknown(error.into()))?,
            None => Vec::new(),
        };
        if addresses.is_empty() {
            return Err(unknown("the lookup gave no address".into()));
        }
        let is_allowed = |address: &SocketAddr| (self.network.is_public)(address.ip());
        if self.policy.allow_private_addresses || addresses.iter().all(is_allowed) {
            return Ok(addresses);
        }
        Err(FetchError::AddressNotAllowed { host: target.host_name().map(str::to_owned) })
    }

    /// One request and its answer.
    fn exchange(
        &self,
        target: &Target,
        addresses: Vec<SocketAddr>,
        deadline: Instant,
        switch: &Switch,
    ) -> Result<Answer, FetchError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let agent = self.agent(addresses, left);
        switch.watch(&agent)?;
        let response = agent.get(target.uri()).call().map_err(|error| self.failure(error, target))?;
        let (head, body) = response.into_parts();
        match head.status.as_u16() {
            200 => self.picture(&head.headers, body, target, switch).map(Answer::Picture),
            301 | 302 | 303 | 307 | 308 if self.policy.max_redirects == 0 => {
                Err(FetchError::Redirect { reason: "this server follows no redirects: give its final address" })
            }
            301 | 302 | 303 | 307 | 308 => {
                let location = header(&head.headers, LOCATION)?;
                let location = location.ok_or(FetchError::Redirect { reason: "its host doesn't say where to" })?;
                target.redirected(location).map(Answer::MovedTo)
            }
            status => Err(FetchError::Status { status }),
        }
    }

    /// An agent for one exchange, which knows these addresses and no others.
    fn agent(&self, addresses: Vec<SocketAddr>, left: Duration) -> Agent {
        let config = Agent::config_builder()
            .proxy(None) // else it takes one from the environment
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("foveal-fetch/", env!("CARGO_PKG_VERSION")))
            .accept("image/*")
            .accept_encoding("identity")
            .max_idle_connections(0)
            .timeout_global(Some(left))
            .timeout_connect(Some(self.policy.connect_timeout))
            .build();
        Agent::with_parts(config, DefaultConnector::new(), CheckedAddresses(addresses))
    }

    fn picture(
        &self,
        headers: &HeaderMap,
        body: Body,
        target: &Target,
        switch: &Switch,
    ) -> Result<Vec<u8>, FetchError> {
        let encoding = header(headers, CONTENT_ENCODING)?.map(str::trim).unwrap_or_default();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            return Err(FetchError::NotAPicture { found: "a compressed answer, which wasn't asked for".to_owned() });
        }
        media_type::check(header(headers, CONTENT_TYPE)?.unwrap_or_default())?;
        let expected_bytes = body.content_length();
        let on_error = |error: io::Error| self.failure(error.into(), target);
        read_all(&mut body.into_reader(), expected_bytes, self.policy.max_bytes, &|| switch.check(), on_error)
    }

    fn timed_out(&self) -> FetchError {
        FetchError::TimedOut { timeout_ms: self.policy.timeout.as_millis() }
    }

    /// The HTTP library's error in own words.
    fn failure(&self, error: ureq::Error, target: &Target) -> FetchError {
        use io::ErrorKind;
        let what = match &error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => "no connection to its host came about in time",
            ureq::Error::Timeout(_) => return self.timed_out(),
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => TLS_FAILED,
            // The TLS library's errors come as this kind while a connection is made.
            ureq::Error::Io(error) if target.is_https() && error.kind() == ErrorKind::InvalidData => TLS_FAILED,
            ureq::Error::Io(error) => match error.kind() {
                ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown
                | ErrorKind::AddrNotAvailable => "no connection to its host came about",
                _ => "the connection to its host broke off",
            },
            ureq::Error::LargeResponseHeader(..) | ureq::Error::Protocol(_) => "its host's answer can't be read",
            _ => "the exchange with its host failed",
        };
        FetchError::Network { what, source: error.into() }
    }
}

const TLS_FAILED: &str = "no secure connection to its host came about (is its certificate valid?)";

fn not_allowed_redirect() -> FetchError {
    FetchError::Redirect { reason: "its new address is none that this server may fetch from" }
}

/// A header's text, if it is there.
fn header(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, FetchError> {
    let unreadable = |error: ureq::http::header::ToStrError| FetchError::Network {
        what: "its host's answer can't be read",
        source: error.into(),
    };
    headers.get(name).map(|value| value.to_str().map_err(unreadable)).transpose()
}

/// The addresses that have been checked, in place of a lookup. The HTTP library asks it for every connection, also for
/// literal addresses.
#[derive(Debug)]
struct CheckedAddresses(Vec<SocketAddr>);

impl Resolver for CheckedAddresses {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &ureq::config::Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        for address in &self.0 {
            if addresses.try_push(*address).is_err() {
                break; // the library tries no more than fit
            }
        }
        Ok(addresses)
    }
}
