//! The hosts that may be fetched from.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use url::Host;

use crate::PolicyError;

/// The hosts that one entry of [`Policy::allowed_media_domains`](crate::Policy::allowed_media_domains) allows.
///
/// Parsed from `example.com` (that host alone), `*.example.com` (its subdomains, not itself) or `*` (every host). An
/// address stands for itself: `203.0.113.7`, `2001:db8::1`. The port is free.
///
/// ```
/// use foveal_fetch::MediaDomain;
///
/// let domain: MediaDomain = "*.Example.com".parse()?;
/// assert_eq!(domain.to_string(), "*.example.com");
/// assert!("https://example.com".parse::<MediaDomain>().is_err());
/// # Ok::<(), foveal_fetch::PolicyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaDomain(Pattern);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Any,
    Host(Host<String>),
    /// Holds the parent, without a leading dot.
    SubdomainsOf(String),
}

impl MediaDomain {
    /// Whether a normalised host is one of them.
    pub(crate) fn allows(&self, host: &Host<&str>) -> bool {
        match (&self.0, host) {
            (Pattern::Any, _) => true,
            (Pattern::Host(allowed), host) => allowed == host,
            (Pattern::SubdomainsOf(parent), Host::Domain(name)) => name
                .strip_suffix(parent.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|subdomain| !subdomain.is_empty()),
            (Pattern::SubdomainsOf(_), _) => false,
        }
    }
}

impl FromStr for MediaDomain {
    type Err = PolicyError;

    fn from_str(entry: &str) -> Result<Self, PolicyError> {
        let pattern = match (entry, entry.strip_prefix("*.")) {
            ("*", _) => Some(Pattern::Any),
            (_, Some(parent)) => match parse_host(parent) {
                Some(Host::Domain(parent)) => Some(Pattern::SubdomainsOf(parent)),
                _ => None,
            },
            (host, None) => parse_host(host).map(Pattern::Host),
        };
        pattern.map(Self).ok_or_else(|| PolicyError::Domain { entry: entry.to_owned() })
    }
}

impl fmt::Display for MediaDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pattern::Any => f.write_str("*"),
            Pattern::Host(host) => write!(f, "{host}"),
            Pattern::SubdomainsOf(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// A host as the URL parser normalises it, without a last dot.
fn parse_host(text: &str) -> Option<Host<String>> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some(Host::Ipv6(address));
    }
    match Host::parse(text).ok()? {
        Host::Domain(name) => {
            let name = without_last_dot(&name);
            // A further star would look like a pattern and match nothing.
            (is_name(name) && !name.contains('*')).then(|| Host::Domain(name.to_owned()))
        }
        address => Some(address),
    }
}

/// A name without the dot that marks it as complete.
pub(crate) fn without_last_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Whether a name has labels, none of them empty, and a length that name servers know.
pub(crate) fn is_name(name: &str) -> bool {
    const MAX_NAME_LEN: usize = 253; // RFC 1035
    name.len() <= MAX_NAME_LEN && name.split('.').all(|label| !label.is_empty())
}
