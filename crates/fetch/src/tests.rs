//! What needs a look inside: a lookup and a notion of public addresses of the test's own.

mod addresses;
mod data_urls;
mod domains;
mod limits;
mod local;
mod properties;
mod redirects;
mod remote;
mod server;
mod waiting;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::remote::Network;
use crate::{FetchError, Fetcher, Policy};

/// Where the tests' servers listen. [`only_server_is_public`] takes it for a public address.
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Longer than any test takes: a wait of this length is a failure.
const NEVER: Duration = Duration::from_secs(60);

/// A policy that allows these hosts.
fn policy(domains: &[&str]) -> Policy {
    let allowed_media_domains = domains.iter().map(|domain| domain.parse().unwrap()).collect();
    Policy { allowed_media_domains, timeout: NEVER, connect_timeout: NEVER, ..Policy::default() }
}

/// A network in which every name has this address, and the tests' servers are public hosts.
fn names_lead_to(address: IpAddr) -> Network {
    let lookup = move |_: &str, port: u16| Ok(vec![SocketAddr::new(address, port)]);
    Network { lookup: Arc::new(lookup), is_public: only_server_is_public }
}

fn only_server_is_public(address: IpAddr) -> bool {
    address == SERVER
}

/// A fetcher for which all names lead to the tests' servers.
fn fetcher(policy: Policy) -> Fetcher {
    Fetcher::with_network(policy, names_lead_to(SERVER)).unwrap()
}

fn fetch(fetcher: &Fetcher, url: &str) -> Result<Vec<u8>, FetchError> {
    fetcher.fetch(url, &|| false)
}

fn file_url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// The error's code and its message, which must hold none of what clients mustn't learn.
fn refusal(result: Result<Vec<u8>, FetchError>) -> (&'static str, String) {
    let error = result.unwrap_err();
    let message = error.to_string();
    for secret in ["127.0.0.", "os error", "169.254", "10.0.0", "/tmp", "ureq", "rustls", "refused"] {
        assert!(!message.contains(secret), "`{secret}` in: {message}");
    }
    (error.code(), message)
}
